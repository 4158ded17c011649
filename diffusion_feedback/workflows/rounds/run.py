"""Rounds of drawing, judging, pairing and training: what is done in which order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from accelerate import PartialState

from ...catalog import family_row, needs_reference, objective_row
from ...config.meaning import refuse_keys
from ...config.parsing import checked
from ...config.recipe import Recipe, RolloutConfig, RoundsConfig, ValidationConfig
from ...data.scores import read_scores
from ...errors import UserError
from ...evaluation.rounds import RoundMetrics, measure
from ...folders import hold_folder
from ...labeling.rule_specs import rule_of
from ...processes import process_state
from ...records import Text, write_json
from ...reports.console import rounds_summary
from ...reports.pages.folder import write_pages
from ...reports.pages.rounds import rounds_report
from ..training.given import pinned
from .folder import claim, identity_of, read_divergence
from .images import ImageModality
from .schedule import PromptSchedule, Stage, derived_seed, train_to_end
from .texts import TextModality

logger = logging.getLogger(__name__)

Modality = ImageModality | TextModality
"""How samples are drawn, judged, paired and measured."""


@dataclass(frozen=True, slots=True)
class RoundsResult:
    """Rounds that came to their end: ``metrics`` of every round, round 0 being the initial model.

    ``models`` are the models by round, as folders (the first may be a hub id), in the form of diffusers or transformers.
    """

    folder: Path
    metrics: Sequence[RoundMetrics]
    models: Sequence[str]

    @property
    def report(self) -> Path:
        """The page on all rounds."""
        return self.folder / "report.html"


def rounds(recipe: Recipe, *, overwrite: bool = False) -> RoundsResult:
    """Let a model learn from judgements of what it makes itself, round after round, each measured on held-out prompts.

    ``recipe`` has the section rounds, and its data.train is a file of prompts. Everything stands in its output_dir, where
    the same call goes on after a kill, or with more rounds; ``overwrite`` starts again. Raises UserError for settings that
    contradict each other, and a folder that holds something else, or rounds of another recipe.
    """
    recipe = pinned(checked(recipe))
    modality = TextModality(recipe) if family_row(recipe.model.family).reads_text else ImageModality(recipe)
    check_rounds(recipe)
    modality.check()
    with hold_folder(Path(recipe.output_dir), "rounds"):
        return Rounds.open(recipe, modality, overwrite=overwrite).run()


def check_rounds(recipe: Recipe) -> None:
    """Raise UserError for a section rounds that is not there, and settings that contradict each other, whatever the samples are."""
    rounds, name = recipe.rounds, recipe.objective["name"]
    if rounds.num_rounds < 1:
        raise UserError(f"rounds.num_rounds: got {rounds.num_rounds}", "allowed: 1 or more")
    if not rounds.heldout_prompts:
        remedy = "name a file of prompts that the rounds do not train on"
        raise UserError("rounds.heldout_prompts: is not given", remedy)
    if not objective_row(name).sees_both:
        problem = f"objective.name: {name!r} does not learn from the pairs that rounds make"
        raise UserError(problem, "use one that does, such as dpo")
    if recipe.model.reference_model_name_or_path is not None:
        raise UserError("model.reference_model_name_or_path: every round has its own", "set rounds.reference")
    refuse_keys(recipe, ("model.init_from", "model.init_lora"), "rounds, of which each starts at the one before")
    rule_of(rounds.rule, "rounds.rule")
    if not needs_reference(recipe.objective) and rounds.reference != RoundsConfig().reference:
        problem = f"rounds.reference: got {rounds.reference!r}, and objective {name!r} has no reference"
        raise UserError(problem, "leave it out")
    if rounds.labels_from is not None and rounds.reward_recipe is None:
        problem = "rounds.labels_from: labels pairs for a reward model, and none is trained"
        raise UserError(problem, "set rounds.reward_recipe, or leave it out")
    if rounds.reference != "ema" and rounds.reference_decay != RoundsConfig().reference_decay:
        problem = f"rounds.reference_decay: means nothing with reference {rounds.reference!r}"
        raise UserError(problem, "leave it out, or set rounds.reference: ema")


@dataclass(frozen=True, slots=True)
class Rounds:
    """All rounds of one recipe, in its folder. ``state`` is that of this process, and of the group it belongs to."""

    recipe: Recipe
    modality: Modality
    schedule: PromptSchedule
    heldout: Sequence[Text]
    state: PartialState

    @classmethod
    def open(cls, recipe: Recipe, modality: Modality, *, overwrite: bool = False) -> Rounds:
        """Start or continue rounds. Raises UserError for a folder that holds something else, or rounds of another recipe."""
        settings = recipe.rounds
        if not isinstance(recipe.data.train, str):
            problem = f"data.train: {len(recipe.data.train)} data sets, and rounds take their prompts from one file"
            raise UserError(problem, "join them in one file")
        prompts, heldout = modality.prompts(recipe.data.train), modality.prompts(settings.heldout_prompts)
        shared = {repr(prompt) for prompt in prompts} & {repr(prompt) for prompt in heldout}
        if shared:
            problem = f"rounds.heldout_prompts: {len(shared)} of its {len(heldout)} prompts are trained on"
            raise UserError(problem, "measure on prompts that are not in data.train")
        heldout = heldout[: settings.num_heldout_prompts]
        if len(heldout) < 2:
            raise UserError(f"rounds.heldout_prompts: {len(heldout)} prompts", "give two or more")
        state = process_state()
        if state.is_main_process:
            claim(recipe, identity_of(recipe, (prompts, heldout)), overwrite=overwrite)
        state.wait_for_everyone()
        size = min(settings.num_prompts or len(prompts), len(prompts))
        schedule = PromptSchedule(prompts, size, derived_seed(recipe.training.seed, "prompts"))
        return cls(recipe, modality, schedule, heldout, state)

    @property
    def folder(self) -> Path:
        """Where all rounds lie."""
        return Path(self.recipe.output_dir)

    def run(self) -> RoundsResult:
        """Go through the rounds, then report."""
        initial = self.recipe.model.pretrained_model_name_or_path
        metrics = [self._measure(0, initial, None)]
        models, reference = [initial], initial
        for number in range(1, self.recipe.rounds.num_rounds + 1):
            if number > 1:
                reference = self._reference(number, reference, models)
            start = models[-1] if self.recipe.rounds.start_from == "previous" else initial
            pairs = self._pairs(number, models[-1])
            models.append(self._train(number, start, reference, pairs))
            metrics.append(self._measure(number, models[-1], metrics[-1]))
            logger.info("%s", rounds_summary(metrics[-1:]))
        result = RoundsResult(self.folder, metrics, models)
        if self.state.is_main_process:
            write_json(self.folder / "rounds.json", [each.to_json() for each in metrics])
            page = rounds_report(self.folder, self.recipe, metrics, self.modality.samples)
            write_pages(page, "rounds", self.folder, results=rounds_summary(metrics))
            logger.info("done: %s", result.report)
        self.state.wait_for_everyone()
        return result

    def _place(self, number: int) -> Path:
        return self.folder / f"round-{number}"

    def _pairs(self, number: int, model: str) -> Path:
        """Samples of the round's prompts, judged and paired."""
        settings, place = self.recipe.rounds, self._place(number)
        output = place / self.modality.pairs_name
        if output.exists():
            return output
        logger.info("\n== round %d: %d samples per prompt", number, settings.num_samples)
        drawn, prompts = place / "samples", self.schedule.of_round(number)
        self._draw(model, prompts, drawn, purpose=str(number), num_samples=settings.num_samples)
        judge = self.modality.judge_of(number, self.folder, self.state)
        scores = self._score(judge, drawn, place)
        return Stage(output, partial(self.modality.pair, drawn, scores)).run(self.state)

    def _reference(self, number: int, before: str, models: Sequence[str]) -> str:
        """What the objective of round ``number`` compares with; ``before`` is that of the round before."""
        settings = self.recipe.rounds
        if settings.reference == "ema":
            average = partial(self.modality.average, before, models[-1], settings.reference_decay)
            return str(Stage(self._place(number) / "reference", average).run(self.state))
        return models[-1] if settings.reference == "previous" else models[0]

    def _train(self, number: int, start: str, reference: str, pairs: Path) -> str:
        """Train on ``pairs``; returns the folder of the model, which stands on its own."""
        place = self._place(number)
        is_other = reference != start and needs_reference(self.recipe.objective)
        model = replace(
            self.recipe.model,
            pretrained_model_name_or_path=start,
            reference_model_name_or_path=reference if is_other else None,
        )
        recipe = replace(
            self.recipe,
            model=model,
            data=replace(self.recipe.data, train=str(pairs)),
            validation=self._validation(),
            output_dir=str(place / "run"),
            rounds=RoundsConfig(),
            rollouts=RolloutConfig(),
        )
        train_to_end(recipe, self.state)
        if model.tuning == "full":
            return recipe.output_dir
        merge = partial(self.modality.merge, Path(recipe.output_dir), start)
        return str(Stage(place / "model", merge).run(self.state))

    def _validation(self) -> ValidationConfig:
        """What a round's run is evaluated on; every round draws samples of its own, from prompts that none trained on."""
        validation, is_said = self.recipe.validation, self.recipe.data.validation or self.recipe.validation.prompts
        return validation if is_said else replace(validation, num_prompts=0)

    def _measure(self, number: int, model: str, before: RoundMetrics | None) -> RoundMetrics:
        """Samples of the held-out prompts with their scores and divergence from the initial model."""
        settings, place = self.recipe.rounds, self._place(number) / "evaluation"
        drawn, divergence = place / "samples", place / "divergence.json"
        if not ((place / "scores.parquet").exists() and divergence.exists()):
            logger.info("\n== round %d: held-out prompts", number)
            self._draw(model, self.heldout, drawn, purpose="heldout", num_samples=settings.num_heldout_samples)
        # Who labels comes before a judge that is trained on these labels: one that a model fools is found out.
        judge = settings.heldout_judge or settings.labels_from or settings.scorer or self.recipe.rollouts.reward
        scores = self._score(judge, drawn, place)
        initial = self.recipe.model.pretrained_model_name_or_path
        Stage(divergence, partial(self.modality.divergence, model, initial, drawn)).run(self.state)
        metrics = measure(number, read_scores(scores), read_divergence(divergence), self._place(number), before)
        if self.state.is_main_process:
            write_json(self._place(number) / "summary.json", metrics.to_json())
        return metrics

    def _draw(self, model: str, prompts: Sequence[Text], folder: Path, *, purpose: str, num_samples: int) -> None:
        seed = derived_seed(self.recipe.training.seed, purpose)
        draw = partial(self.modality.draw, model, prompts, seed=seed, num_samples=num_samples)
        Stage(folder / "drawn.json", draw).run(self.state)

    def _score(self, judge: str, drawn: Path, place: Path) -> Path:
        return Stage(place / "scores.parquet", partial(self.modality.score, judge, drawn), is_shared=True).run(
            self.state
        )
