"""Published results of the HPSv2 benchmark as data, each with its source, and their unit; none was reproduced here.

HPSv2 v2.0 and v2.1 are two scorers: their results must never stand in one table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...records import ScoreRecord

STYLES = ("anime", "concept-art", "paintings", "photo")
_BOARD = "HPSv2 README, github.com/tgxs002/HPSv2"
_DIFFUSION_DPO = "Diffusion-DPO, arXiv:2311.12908, as quoted in github.com/huggingface/diffusers, number 6702"

SPREAD = (
    "Published and reproduced results of this benchmark differ: with the authors' images and code, users report 28.71 for "
    "SDXL Base 0.9 under v2.1 (31.03 anime, 29.42 concept-art, 28.83 paintings, 25.56 photo) where 30.63 is published "
    "(github.com/tgxs002/HPSv2, number 43). The resampler, JPEG compression and the image size all move the score, so "
    "compare models by images that one command made and scored."
)


@dataclass(frozen=True, slots=True)
class PublishedResult:
    """What somebody published: ``styles`` in the order anime, concept-art, paintings, photo (empty where not published)."""

    model: str
    styles: tuple[float, ...]
    average: float
    source: str
    reproduced: bool = False

    def by_style(self) -> dict[str, float]:
        """The means by the names of the styles."""
        return dict(zip(STYLES, self.styles, strict=True)) if self.styles else {}


# Of each model the means by style, then their average: under v2.0, and under v2.1.
_MEANS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "Dreamlike Photoreal 2.0": ((28.24, 27.60, 27.59, 27.99, 27.86), (30.87, 29.75, 29.46, 28.85, 29.73)),
    "SDXL Refiner 0.9": ((28.45, 27.66, 27.67, 27.46, 27.80), (33.26, 32.07, 31.63, 28.38, 31.34)),
    "Realistic Vision": ((28.22, 27.53, 27.56, 27.75, 27.77), (31.01, 29.95, 30.00, 28.61, 29.89)),
    "SDXL Base 0.9": ((28.42, 27.63, 27.60, 27.29, 27.73), (32.84, 31.36, 30.86, 27.48, 30.63)),
    "Deliberate": ((28.13, 27.46, 27.45, 27.62, 27.67), (31.46, 30.48, 30.17, 28.83, 30.23)),
    "ChilloutMix": ((27.92, 27.29, 27.32, 27.61, 27.54), (29.46, 28.46, 28.35, 27.63, 28.47)),
    "MajicMix Realistic": ((27.88, 27.19, 27.22, 27.64, 27.48), (29.67, 28.50, 28.44, 28.02, 28.66)),
    "Openjourney": ((27.85, 27.18, 27.25, 27.53, 27.45), (28.37, 27.38, 27.53, 26.66, 27.48)),
    "DeepFloyd-XL": ((27.64, 26.83, 26.86, 27.75, 27.27), (27.71, 26.07, 25.79, 27.96, 26.88)),
    "Epic Diffusion": ((27.57, 26.96, 27.03, 27.49, 27.26), (27.07, 26.14, 26.17, 26.43, 26.45)),
    "Stable Diffusion v2.0": ((27.48, 26.89, 26.86, 27.46, 27.17), (27.09, 26.02, 25.68, 26.73, 26.38)),
    "Stable Diffusion v1.4": ((27.26, 26.61, 26.66, 27.27, 26.95), (26.03, 24.87, 24.80, 25.70, 25.35)),
    "DALL·E 2": ((27.34, 26.54, 26.68, 27.24, 26.95), (26.38, 24.51, 24.93, 25.55, 25.34)),
    "Versatile Diffusion": ((26.59, 26.28, 26.43, 27.05, 26.59), (23.69, 23.39, 24.02, 24.64, 23.93)),
    "CogView2": ((26.50, 26.59, 26.33, 26.44, 26.47), (23.64, 24.86, 23.40, 22.68, 23.64)),
    "VQGAN + CLIP": ((26.44, 26.53, 26.47, 26.12, 26.39), (22.55, 23.76, 23.41, 21.51, 22.81)),
    "DALL·E mini": ((26.10, 25.56, 25.56, 26.12, 25.83), (21.54, 20.50, 20.32, 21.72, 21.02)),
    "Latent Diffusion": ((25.73, 25.15, 25.25, 26.97, 25.78), (20.63, 19.65, 19.79, 21.26, 20.34)),
    "FuseDream": ((25.26, 25.15, 25.13, 25.57, 25.28), (19.16, 19.37, 19.07, 20.07, 19.42)),
    "VQ-Diffusion": ((24.97, 24.70, 25.01, 25.71, 25.10), (18.44, 18.31, 19.24, 20.62, 19.15)),
    "LAFITE": ((24.63, 24.38, 24.43, 25.81, 24.81), (17.79, 17.55, 17.61, 20.88, 18.46)),
    "GLIDE": ((23.34, 23.08, 23.27, 24.50, 23.55), (13.90, 13.50, 13.94, 16.72, 14.51)),
}


def _board(version: int) -> list[PublishedResult]:
    """The results of all models under one version, by falling average."""
    results = [
        PublishedResult(model, means[version][:-1], means[version][-1], _BOARD) for model, means in _MEANS.items()
    ]
    return sorted(results, key=lambda result: -result.average)


PUBLISHED: Mapping[str, tuple[PublishedResult, ...]] = {
    "v2.0": (PublishedResult("Diffusion-DPO, SDXL 1.0", (), 28.16, _DIFFUSION_DPO), *_board(0)),
    "v2.1": tuple(_board(1)),
}
"""Results by the version of the scorer, on 100 x cosine, by falling average."""

_HPSV2 = re.compile(r"hps(v2\.[01])/")


def version_of(recipe_id: str) -> str | None:
    """The version, v2.0 or v2.1, where ``recipe_id`` is that of an HPSv2 scorer, else None."""
    match = _HPSV2.match(recipe_id)
    return match.group(1) if match else None


def unit_of(recipe_id: str) -> str:
    """What a benchmark shows in the place of the score; empty where that is the score itself."""
    return "100 x cosine" if version_of(recipe_id) else ""


def published_value(record: ScoreRecord) -> float:
    """The number that is reported for one score: 100 x cosine for HPSv2, whose tables hold the cosine, else the score."""
    return 100 * record.raw if version_of(record.recipe_id) else record.score
