"""Rounds of images: image folders, scorers of images, pairs in Pick-a-Pic's columns."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from accelerate import PartialState

from ...catalog import needs_reference
from ...config.recipe import Recipe
from ...data.image_sets import open_images
from ...data.scores import write_scores
from ...devices import best_device
from ...errors import UserError
from ...folders import is_main_process
from ...generation.images import load_generated
from ...labeling.rule_specs import rule_of
from ...prompts import read_prompts
from ...records import Text, atomic_folder, write_json
from ..generating import draw_images
from ..labeling import label_images
from ..sampling import validation_sampler
from ..scoring import score_items
from ..settings import GenerationSettings, LabelingSettings, ScoringSettings
from ..training.base_model import load_named_model, source_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImageModality:
    """How images are drawn, judged and paired; ``recipe`` is that of the rounds. Every output is written whole or not at all."""

    recipe: Recipe
    pairs_name: ClassVar[str] = "pairs.parquet"

    def judge_of(self, number: int, folder: Path, state: PartialState) -> str:
        """The recipe's scorer of images, in every round."""
        return self.recipe.rounds.scorer

    def check(self) -> None:
        """Raise UserError for another reference than the model that a round starts from, and for no scorer of images."""
        rounds = self.recipe.rounds
        if needs_reference(self.recipe.objective) and rounds.reference != rounds.start_from:
            problem = f"rounds.reference: got {rounds.reference!r}, start_from is {rounds.start_from!r}"
            raise UserError(problem, "a run on images compares with the model that it starts from: make the two equal")
        if rounds.reward_recipe is not None:
            raise UserError("rounds.reward_recipe: reward models judge texts", "leave it out")
        if not rounds.scorer:
            raise UserError("rounds.scorer: nobody judges the samples", "set rounds.scorer")

    def prompts(self, path: str) -> list[Text]:
        """The different prompts of a file."""
        return list(dict.fromkeys(record.prompt for record in read_prompts(path)))

    def draw(self, model: str, prompts: Sequence[Text], output: Path, *, seed: int, num_samples: int) -> None:
        """Images of every prompt beside ``output``, which says how many there are.

        Each starts from noise of its own, the same for every model.
        """
        size, sampler = self.recipe.rounds.batch_size, validation_sampler(self.recipe, model)
        generation = GenerationSettings(seeds=range(seed, seed + num_samples), batch_size=size)
        records = draw_images([str(prompt) for prompt in prompts], sampler, output.parent, generation)
        write_json(output, {"samples": len(records)})

    def score(self, scorer: str, drawn: Path, output: Path) -> None:
        """Score every image, each process its share; what the cache holds is not scored again."""
        settings = ScoringSettings(cache_dir=self.recipe.data.cache_dir)
        records = score_items(open_images(str(drawn)), [scorer], settings)
        if is_main_process():
            write_scores(records, output)

    def pair(self, drawn: Path, scores: Path, output: Path) -> None:
        """Pairs by the recipe's rule, the images inside; ties are left out."""
        rule = rule_of(self.recipe.rounds.rule, "rounds.rule")
        settings, scoring = LabelingSettings(), ScoringSettings()
        pairs = label_images(open_images(str(drawn)), scores=scores, rule=rule, settings=settings, scoring=scoring)
        pairs.write(output)

    def merge(self, run: Path, start: str, folder: Path) -> None:
        """The LoRA weights of ``run`` merged into the pipeline that it started from, in float32."""
        source = replace(source_of(self.recipe, start), lora=str(run))
        denoiser = load_named_model(start, source, device=best_device())
        with atomic_folder(folder) as temporary:
            denoiser.save_merged(temporary)

    def average(self, old: str, new: str, share: float, folder: Path) -> None:
        """Nothing that rounds of images ask for: each compares with the model that it starts from."""
        raise UserError("rounds.reference: there is no average of pipelines", "set it to previous or initial")

    def divergence(self, model: str, initial: str, drawn: Path, output: Path) -> None:
        """Nothing: an image has no likelihood that could be had at this price."""
        write_json(output, {})

    def samples(self, drawn: Path) -> list[tuple[Text, str | Path]]:
        """Prompt and image file of every sample."""
        return [(record.prompt, path) for record, path in load_generated(drawn)]
