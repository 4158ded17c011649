"""Rounds of images: image folders, scorers of images, pairs in Pick-a-Pic's columns."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...catalog import needs_reference, resolve
from ...config.recipe import Recipe
from ...data.image_sets import open_images
from ...data.scores import write_scores
from ...errors import UserError
from ...folders import is_main_process
from ...generation.images import generate_images, load_generated, own_noise
from ...labeling.rule_specs import rule_of
from ...prompts import read_prompts
from ...records import Text, atomic_folder
from ...types.models import Denoiser
from ..labeling import label_images
from ..scoring import score_items
from ..settings import LabelingSettings, ScoringSettings
from .judges import NamedJudge

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImageModality:
    """A ``Modality``; ``recipe`` is that of the rounds."""

    recipe: Recipe

    @property
    def pairs_name(self) -> str:
        """File name of the pairs of a round."""
        return "pairs.parquet"

    @property
    def judge(self) -> NamedJudge:
        """The recipe's scorer of images."""
        return NamedJudge(self.heldout_judge)

    @property
    def heldout_judge(self) -> str:
        """The recipe's scorer of images."""
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
        if rounds.labels_from is not None:
            problem = "rounds.labels_from: labels pairs for a reward model, and none is trained"
            raise UserError(problem, "leave it out")

    def prompts(self, path: str) -> list[Text]:
        """The different prompts of a file."""
        return list(dict.fromkeys(record.prompt for record in read_prompts(path)))

    def _load(self, model: str, *, dtype: str = "float32") -> Denoiser:
        settings = self.recipe.model
        is_initial = model == settings.pretrained_model_name_or_path
        denoiser: Denoiser = resolve("family", settings.family)(
            model,
            revision=settings.revision if is_initial else None,
            variant=settings.variant if is_initial else None,
            dtype=getattr(torch, dtype),
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
        return denoiser

    def draw(self, model: str, prompts: Sequence[Text], folder: Path, *, seed: int, num_samples: int) -> int:
        """Images of every prompt in ``folder``, each from noise of its own, the same for every model."""
        denoiser = self._load(model, dtype=self.recipe.model.dtype)
        validation = self.recipe.validation
        settings: dict[str, Any] = {
            "num_inference_steps": validation.num_inference_steps,
            "guidance_scale": validation.guidance_scale,
        }
        records = generate_images(
            [str(prompt) for prompt in prompts],
            range(seed, seed + num_samples),
            folder,
            sampler=own_noise(lambda texts, seeds: denoiser.sample(denoiser.network, texts, seeds, **settings)),
            model_hash=denoiser.model_hash(),
            settings={**settings, "noise": "by prompt and seed"},
            batch_size=self.recipe.rounds.batch_size,
        )
        return len(records)

    def score(self, scorer: str, drawn: Path, output: Path) -> None:
        """Score every image, each process its share; what the cache holds is not scored again."""
        settings = ScoringSettings(cache_dir=self.recipe.data.cache_dir)
        records = score_items(open_images(str(drawn)), [scorer], settings)
        if is_main_process():
            write_scores(records, output)

    def pair(self, drawn: Path, scores: Path, output: Path) -> None:
        """Pairs by the recipe's rule, the images inside; ties are left out."""
        labelled = label_images(
            open_images(str(drawn)),
            scorers=None,
            scores=scores,
            rule=rule_of(self.recipe.rounds.rule, "rounds.rule"),
            settings=LabelingSettings(),
            scoring=ScoringSettings(),
        )
        labelled.write(output)

    def merge(self, run: Path, start: str, folder: Path) -> None:
        """The LoRA weights of ``run`` merged into the pipeline that it started from, in float32."""
        denoiser = self._load(start)
        denoiser.load_lora(str(run))
        with atomic_folder(folder) as temporary:
            denoiser.save_merged(temporary)

    def average(self, old: str, new: str, share: float, folder: Path) -> None:
        """Nothing that rounds of images ask for: each compares with the model that it starts from."""
        raise UserError("rounds.reference: there is no average of pipelines", "set it to previous or initial")

    def divergence(self, model: str, initial: str, drawn: Path) -> Mapping[str, list[float]]:
        """Nothing: an image has no likelihood that could be had at this price."""
        return {}

    def samples(self, drawn: Path) -> list[tuple[Text, str | Path]]:
        """Prompt and image file of every sample."""
        return [(record.prompt, path) for record, path in load_generated(drawn)]
