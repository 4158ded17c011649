"""Rounds of texts: completions, judges of texts, pairs in TRL's columns, divergence from the initial model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from accelerate import PartialState

from ...catalog import family_row, objective_row
from ...config.parsing import load_recipe
from ...config.recipe import Recipe
from ...data.scores import read_scores, write_scores
from ...devices import best_device
from ...errors import UserError
from ...folders import is_main_process
from ...generation.completions import load_completions
from ...labeling.candidates import join_scores
from ...labeling.pairs import LabelledPair, PairCounts, build_pairs
from ...labeling.panel import build_panel
from ...labeling.rule_specs import rule_of
from ...models import causal_lm
from ...records import CompletionRecord, ScoreRecord, Text, atomic_folder, content_hash, write_json, write_text
from ...scorers.texts.loading import load_text_scorer, parse_text_spec
from ..generating import complete, text_prompts
from ..model_measures import divergence_of
from ..sampling import TextSampler, open_text_sampler
from ..settings import CompletionSampling, GenerationSettings, LabelingSettings
from ..training.base_model import source_of
from ..verdicts import completion_text, prompt_name, score_records
from .schedule import Stage, train_to_end

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TextModality:
    """How completions are drawn, judged, paired and measured; ``recipe`` is that of the rounds.

    Every output is written whole or not at all.
    """

    recipe: Recipe
    pairs_name: ClassVar[str] = "pairs.jsonl"

    def judge_of(self, number: int, folder: Path, state: PartialState) -> str:
        """Who judges in round ``number`` of the rounds in ``folder``, whose samples are drawn: the recipe's reward.

        With ``rounds.reward_recipe`` a reward model, trained on what was labelled in all rounds up to this one.
        """
        rounds, place = self.recipe.rounds, folder / f"round-{number}"
        if rounds.reward_recipe is None:
            return self.recipe.rollouts.reward
        score = partial(self.score, str(rounds.labels_from), place / "samples")
        labels = Stage(place / "labels-scores.parquet", score, is_shared=True).run(state)
        pair = partial(self.pair, place / "samples", labels)
        labelled = Stage(place / f"labelled-{self.pairs_name}", pair).run(state)
        parts = [folder / f"round-{earlier}" / labelled.name for earlier in range(1, number + 1)]
        joined = Stage(place / f"reward-{self.pairs_name}", partial(_join_lines, parts)).run(state)
        own = {"data.train": joined, "output_dir": place / "reward"}
        train_to_end(load_recipe(rounds.reward_recipe, own), state)
        return f"reward_model={place / 'reward'}"

    def check(self) -> None:
        """Raise UserError for samples that would all be alike, judges that are none, and a recipe that trains none."""
        rounds, rollouts = self.recipe.rounds, self.recipe.rollouts
        if not 0 < rollouts.temperature < float("inf"):
            problem = f"rollouts.temperature: got {rollouts.temperature}"
            raise UserError(problem, "allowed: above 0, as samples must differ")
        for spec in filter(None, (rollouts.reward, rounds.labels_from, rounds.heldout_judge)):
            parse_text_spec(spec)
        if rounds.scorer:
            problem = f"rounds.scorer: got {rounds.scorer!r}, and texts are judged by rollouts.reward"
            raise UserError(problem, "leave it out")
        if rounds.reward_recipe is not None:
            self._check_reward_recipe(rounds.reward_recipe)
        elif not rollouts.reward:
            raise UserError("rollouts.reward: nobody judges the samples", "set rollouts.reward")

    def _check_reward_recipe(self, path: str) -> None:
        if self.recipe.rollouts.reward:
            problem = (
                f"rollouts.reward: got {self.recipe.rollouts.reward!r}, and the rounds train the judge that they use"
            )
            raise UserError(problem, "leave it out, or leave rounds.reward_recipe out")
        if self.recipe.rounds.labels_from is None:
            raise UserError("rounds.labels_from: nobody labels the reward model's pairs", "set it")
        if not Path(path).is_file():
            raise UserError(f"rounds.reward_recipe: {path}: no such file", "recipes lie under configs/")
        # A mistake in it is named now, not after hours of sampling.
        own = load_recipe(path)
        if not objective_row(own.objective["name"]).trains_judge or not family_row(own.model.family).reads_text:
            problem = f"rounds.reward_recipe: {path} trains no reward model (family {own.model.family})"
            raise UserError(problem, "give a recipe of family reward_model")

    def prompts(self, path: str) -> list[Text]:
        """The different prompts of a file; plain ones become turns where the recipe has a chat template."""
        return text_prompts(path, in_turns=self.recipe.text.chat_template is not None)

    def _sampler(self, model: str, num_samples: int = 1) -> TextSampler:
        rollouts = self.recipe.rollouts
        sampling = CompletionSampling(
            num_samples=num_samples,
            max_new_tokens=rollouts.max_new_tokens,
            temperature=rollouts.temperature,
            chat_template=self.recipe.text.chat_template,
        )
        generation = GenerationSettings(dtype=self.recipe.model.dtype)
        return open_text_sampler(model, source_of(self.recipe, model), sampling, generation)

    def draw(self, model: str, prompts: Sequence[Text], output: Path, *, seed: int, num_samples: int) -> None:
        """Completions of every prompt beside ``output``, which says how many there are."""
        generation = GenerationSettings(seeds=(seed,), batch_size=self.recipe.rollouts.batch_size)
        records = complete(prompts, self._sampler(model, num_samples), output.parent, generation)
        write_json(output, {"samples": len(records)})

    def score(self, scorer: str, drawn: Path, output: Path) -> None:
        """Score every completion; equal ones of one prompt once. The main process does it alone."""
        if not is_main_process():
            return
        loaded = load_text_scorer(scorer, best_device())
        records = load_completions(drawn)
        scores = score_records(loaded, records)
        rows = [
            ScoreRecord(
                f"prompt {record.prompt_index}, sample {record.sample}",
                content_hash(record.completion),
                prompt_name(record.prompt),
                "judge",
                loaded.recipe_id,
                score,
                score,
                getattr(loaded, "logit_scale", None),
            )
            for record, score in zip(records, scores, strict=True)
        ]
        write_scores(rows, output)

    def pair(self, drawn: Path, scores: Path, output: Path) -> None:
        """Pairs by the recipe's rule, as rows of prompt, chosen, rejected with scores and the tokens that were drawn.

        Ties are left out.
        """
        rule = rule_of(self.recipe.rounds.rule, "rounds.rule")
        completions, records = load_completions(drawn), read_scores(scores)
        by_name = dict(zip((record.sample for record in records), completions, strict=True))
        # A blank completion cannot be learnt from: there would be no token, or nothing that reads back as it was.
        written = [record for record in records if by_name[record.sample].completion.strip()]
        if not written:
            remedy = "raise rollouts.max_new_tokens, or use another model"
            raise UserError(f"{drawn}: every completion is blank", remedy)
        panel = build_panel(written, LabelingSettings().policy)
        candidates = join_scores(((r.sample, r.sample_key, r.prompt) for r in written), written, panel)
        pairs, counts = build_pairs(candidates, panel, rule)
        summary = _summary(counts, num_blank=len(records) - len(written))
        if not pairs:
            remedy = "raise rounds.num_samples, or use a judge that tells completions apart"
            raise UserError(f"{scores}: no pair to learn from ({summary})", remedy)
        rows = (json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(pairs, by_name))
        write_text(output, "".join(rows))
        logger.info(summary)

    def merge(self, run: Path, start: str, folder: Path) -> None:
        """The adapters of ``run`` merged into the model that it started from, in float32."""
        model = causal_lm.load(str(run))
        with atomic_folder(folder) as temporary:
            model.save(model.network, temporary)

    def average(self, old: str, new: str, share: float, folder: Path) -> None:
        """Both are whole models; the average is one in float32."""
        kept, model = causal_lm.load(old), causal_lm.load(new)
        before = kept.network.state_dict()
        with torch.no_grad():
            for name, weight in model.network.state_dict().items():
                if weight.is_floating_point():
                    weight.copy_(share * before[name] + (1 - share) * weight)
        with atomic_folder(folder) as temporary:
            model.save(model.network, temporary)

    def divergence(self, model: str, initial: str, drawn: Path, output: Path) -> None:
        """KL(model || initial): estimated on the held-out completions, exact too where all can be gone through."""
        sampler, other = self._sampler(model), self._sampler(initial)
        write_json(output, divergence_of(sampler, other.model.network, load_completions(drawn)))

    def samples(self, drawn: Path) -> list[tuple[Text, str | Path]]:
        """Prompt and completion of every sample."""
        return [(record.prompt, record.completion) for record in load_completions(drawn)]


def _join_lines(files: Sequence[Path], output: Path) -> None:
    write_text(output, "".join(part.read_text("utf-8") for part in files))


def _rows(pairs: Sequence[LabelledPair], by_name: Mapping[str, CompletionRecord]) -> Iterator[dict[str, object]]:
    for pair in pairs:
        sides = sorted((pair.first, pair.second), key=lambda candidate: -candidate.raws[0])
        chosen, rejected = (by_name[candidate.name] for candidate in sides)
        yield {
            "prompt": chosen.prompt,
            "chosen": completion_text(chosen),
            "rejected": completion_text(rejected),
            "chosen_token_ids": chosen.token_ids,
            "rejected_token_ids": rejected.token_ids,
            "score_chosen": sides[0].scores[0],
            "score_rejected": sides[1].scores[0],
            "weight": pair.weight,
        }


def _summary(counts: PairCounts, *, num_blank: int) -> str:
    parts = [f"{counts.prompts:,} prompts", f"{counts.candidates:,} completions"]
    parts += [f"{counts.identical:,} of them identical"] * bool(counts.identical)
    parts += [f"{num_blank:,} blank ones left out"] * bool(num_blank)
    parts += [f"{counts.ties_dropped:,} ties left out"] * bool(counts.ties_dropped)
    return ", ".join([*parts, f"{counts.pairs:,} pairs"])
