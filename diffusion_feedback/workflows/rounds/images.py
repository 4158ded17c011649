"""Rounds of images: image folders, scorers of images, pairs in Pick-a-Pic's columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...catalog import resolve
from ...config import Recipe
from ...data.image_sets import open_images
from ...data.scores import read_scores, write_scores
from ...generation import generate, load_generated, own_noise
from ...labeling.panel import LabelPolicy
from ...labeling.rules import rule_of
from ...prompts import read_prompts
from ...records import Text
from ...types import Denoiser
from ..labeling import write_built
from ..scoring import score_items
from ..settings import ScoringSettings


@dataclass(frozen=True, slots=True)
class ImageSide:
    """A ``rounds_run.Side``; ``recipe`` is that of the rounds."""

    recipe: Recipe

    @property
    def pairs_name(self) -> str:
        """File name of the pairs of a round."""
        return "pairs.parquet"

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
        records = generate(
            [str(prompt) for prompt in prompts],
            range(seed, seed + num_samples),
            folder,
            sampler=own_noise(lambda texts, seeds: denoiser.sample(denoiser.network, texts, seeds, **settings)),
            model_hash=denoiser.model_hash(),
            settings={**settings, "noise": "by prompt and seed"},
            batch_size=self.recipe.rounds.batch_size,
        )
        return len(records)

    def judge(self, spec: str, drawn: Path, output: Path, *, is_main: bool) -> None:
        """Score every image, each process its share; what the cache holds is not scored again."""
        settings = ScoringSettings(cache_dir=self.recipe.data.cache_dir)
        records = score_items(open_images(str(drawn)), [spec], settings)
        if is_main:
            write_scores(records, output)

    def pair(self, drawn: Path, scores: Path, output: Path) -> str:
        """Pairs by the recipe's rule, the images inside; ties are left out."""
        name = self.recipe.rounds.rule
        items = open_images(str(drawn))
        return write_built(
            items, read_scores(scores), LabelPolicy(), None, (name, rule_of(name, "rounds.rule")), None, output
        )

    def merge(self, run: Path, start: str, folder: Path) -> None:
        """The LoRA weights of ``run`` merged into the pipeline that it started from, in float32."""
        denoiser = self._load(start)
        denoiser.load_lora(str(run))
        denoiser.save_merged(folder)

    def divergence(self, model: str, initial: str, drawn: Path) -> Mapping[str, list[float]]:
        """Nothing: an image has no likelihood that could be had at this price."""
        return {}

    def samples(self, drawn: Path) -> list[tuple[Text, str | Path]]:
        """Prompt and picture of every sample."""
        return [(record.prompt, path) for record, path in load_generated(drawn)]
