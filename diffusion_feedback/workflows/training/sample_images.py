"""Images of fixed prompts on fixed seeds, before and during training, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image
from torch import nn

from ...catalog.heldout import SCORES, WINS
from ...config.recipe import Recipe
from ...documents import read_object
from ...errors import UserError
from ...evaluation.statistics import proportion_interval
from ...evaluation.trained import DrawnSamples
from ...records import atomic_write, write_json
from ...reports.figures import image_grid, open_picture
from ...scorers.function import ImageScorer
from ...scorers.loading import load_scorers
from ...training.run_folder import RunFolder
from ...types.models import Denoiser
from ...types.training import Reference
from .drawn import SAMPLES, evenly_spread, source_of_prompts, write_samples
from .image_pairs import ImagePairs
from .memory import PeakMemory


@dataclass(frozen=True, slots=True)
class ImageSamples:
    """Draws images of ``prompts`` with a network and its reference, at ``side`` px; writes a grid, and each image alone."""

    recipe: Recipe
    denoiser: Denoiser
    reference: Reference
    side: int
    prompts: Sequence[str]
    source: str
    scorers: Sequence[ImageScorer] = ()

    @classmethod
    def of(cls, recipe: Recipe, denoiser: Denoiser, reference: Reference, side: int, pairs: ImagePairs) -> ImageSamples:
        """Images of the recipe's prompts, else of held-out ones, else of training prompts, spread evenly over all.

        Raises UserError for scorers that cannot be loaded, or have nothing to judge.
        """
        validation, prompts = recipe.validation, list(recipe.validation.prompts)
        if not prompts and validation.num_prompts:
            index = pairs.train if pairs.heldout is None else pairs.heldout
            prompts = evenly_spread(sorted({pair.prompt for pair in index.pairs}), validation.num_prompts)
        source = source_of_prompts(recipe, len(prompts), has_heldout=pairs.heldout is not None)
        scorers = _load_judges(recipe, pairs.setup.accelerator.device) if validation.scorers else []
        if scorers and not prompts:
            raise UserError("validation.scorers: no samples are drawn", "set validation.num_prompts, or leave it out")
        return cls(recipe, denoiser, reference, side, prompts, source, scorers)

    def notes(self) -> list[str]:
        """What is drawn, in a line."""
        return [f"samples          of {self.source}"] if self.prompts else []

    def draw(self, step: int, network: nn.Module, run: RunFolder) -> dict[str, float]:
        """Draw all prompts with ``network``, and say what the scorers make of it; nothing is done where there are none."""
        if not self.prompts:
            return {}
        steps, first = self.recipe.validation.num_inference_steps, self.recipe.validation.seed
        before = self._before(network, run.path / SAMPLES / "before")
        images = self._sample(network, self.prompts, steps)
        after = _save(images, run.path / SAMPLES / f"step-{step:06d}")
        rows = [[open_picture(old), new] for old, new in zip(before, images, strict=True)]
        grid = image_grid(rows, self.prompts, ["before", f"step {step}"], cell=128, blocks=2)
        with atomic_write(run.path / SAMPLES / f"step-{step:06d}.png") as file:
            grid.save(file, format="PNG")
        seeds = [first + number for number in range(len(self.prompts))]
        write_samples(run.path, DrawnSamples(step, self.source, self.prompts, seeds, before, after))
        return self._judge([old for old, _ in rows], images)

    @torch.no_grad()
    def _judge(self, before: Sequence[Image], after: Sequence[Image]) -> dict[str, float]:
        """By scorer: the mean score of ``after``, and how often it beats ``before``, ties half, with the Wilson interval."""
        metrics: dict[str, float] = {}
        for scorer in self.scorers:
            old, new = (scorer.score(list(images), list(self.prompts)) for images in (before, after))
            wins = float((new > old).sum()) + 0.5 * float((new == old).sum())
            rate, name = proportion_interval(wins, len(new)), scorer.name
            metrics[SCORES + name] = float(new.double().mean())
            metrics |= {WINS + name: rate.value, f"{WINS}{name}_low": rate.low, f"{WINS}{name}_high": rate.high}
        return metrics

    def _before(self, network: nn.Module, folder: Path) -> list[Path]:
        """The images of the reference, drawn once; and once more where they were of other prompts or settings."""
        validation, mark = self.recipe.validation, folder / "settings.json"
        settings = {
            "prompts": list(self.prompts),
            "seed": validation.seed,
            "num_inference_steps": validation.num_inference_steps,
            "guidance_scale": validation.guidance_scale,
            "side": self.side,
        }
        if mark.exists() and read_object(mark, "remove the folder; it is drawn again") == settings:
            return [folder / _name(number) for number in range(len(self.prompts))]
        mark.unlink(missing_ok=True)
        with self.reference(network) as frozen:
            files = _save(self._sample(frozen, self.prompts, validation.num_inference_steps), folder)
        write_json(mark, settings)
        return files

    def _sample(self, network: nn.Module, prompts: Sequence[str], num_inference_steps: int) -> list[Image]:
        """One image a prompt, at the resolution of training, as many at once as pairs in a training pass."""
        recipe, images = self.recipe, list[Image]()
        for start in range(0, len(prompts), recipe.training.train_batch_size):
            part = list(prompts[start : start + recipe.training.train_batch_size])
            images += self.denoiser.sample(
                network,
                part,
                [recipe.validation.seed + start + number for number in range(len(part))],
                num_inference_steps=num_inference_steps,
                guidance_scale=recipe.validation.guidance_scale,
                height=self.side,
                width=self.side,
            )
        return images

    def peak_bytes(self) -> int:
        """Bytes that one batch of samples takes at its peak, measured; 0 where none are drawn."""
        prompts = self.prompts[: self.recipe.training.train_batch_size]
        if not prompts:
            return 0
        with torch.no_grad(), PeakMemory() as peak:
            self._sample(self.denoiser.network, prompts, 2)
        return int(peak.bytes)


def _load_judges(recipe: Recipe, device: torch.device) -> list[ImageScorer]:
    """The recipe's scorers of samples. Raises UserError where a metric is watched of one that is not among them."""
    validation = recipe.validation
    scorers = load_scorers(validation.scorers, device=device)
    names = [scorer.name for scorer in scorers]
    for key in ("keep_best", "early_stopping"):
        metric = getattr(validation, key) or ""
        if metric.startswith((SCORES, WINS)) and metric.partition("/")[2] not in names:
            problem = f"validation.{key}: got {metric!r}, and the scorers are {', '.join(names)}"
            raise UserError(problem, f"use {metric.partition('/')[0]}/{names[0]}, or add it to validation.scorers")
    return scorers


def _save(images: Sequence[Image], folder: Path) -> list[Path]:
    files = [folder / _name(number) for number in range(len(images))]
    for image, path in zip(images, files, strict=True):
        with atomic_write(path) as file:
            image.save(file, format="PNG")
    return files


def _name(number: int) -> str:
    return f"{number:03d}.png"
