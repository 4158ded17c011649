"""The exact verifier of the Shapes world: reads size, colour, shape, background and cleanliness back from pixels.

It plays the part that object detectors play in GenEval (arXiv:2310.11513): a claim of improvement is checked against
the truth and not only against the scorer that made the labels. It works by analysis through synthesis: estimate the
two colours, fit every template of (shape, radius) to the mask, then compare the picture with the ideal scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..pixels import resample, to_rgb
from .scenes import ATTRIBUTES, COLORS, RESOLUTION, SHAPES, Scene

FloatArray = NDArray[np.floating[Any]]

_CENTER = (RESOLUTION - 1) / 2
_NAMES, _COLORS = list(COLORS), np.array(list(COLORS.values()), np.float32) / 255
_RADII = np.arange(7.0, 24.5, 0.5)
_SIZE_BOUNDARY = 14.5
_MAX_MASK_ERROR = 0.45  # squared mask error over mask energy; beyond it no shape is seen
_CLEAN_SCALE = 0.16  # regional RMS deviation from the ideal scene at which cleanliness falls to 1/e


@dataclass(frozen=True, slots=True)
class Reading:
    """What the verifier sees in one image; ``shape`` and ``size`` are "unknown" where nothing fits.

    ``cleanliness`` lies in (0, 1]: exp(-(r / 0.16)^2) with r the root mean square over background, edge and inside of
    the deviation from the ideal scene; 0 where no shape is seen.
    """

    scene: Scene
    cleanliness: float

    def correct(self, target: Scene) -> dict[str, bool]:
        """Which of the four attributes agree with ``target``."""
        return {name: getattr(self.scene, name) == getattr(target, name) for name in ATTRIBUTES}

    def score(self, target: Scene) -> float:
        """Half the fraction of correct attributes plus half the cleanliness, in [0, 1]."""
        return 0.5 * float(np.mean(list(self.correct(target).values()))) + 0.5 * self.cleanliness


def shape_distance(shape: str, x: FloatArray, y: FloatArray, radius: float) -> FloatArray:
    """Signed distance-like field of ``shape`` (negative inside), px, for offsets ``x``, ``y`` from its centre."""
    r = np.hypot(x, y)
    if shape == "circle":
        return r - radius
    if shape == "ring":
        return np.abs(r - 0.76 * radius) - 0.24 * radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.86 * radius
    if shape == "triangle":
        # Equilateral, centroid at the origin, corners at 1.15 radius, one corner up (y grows downwards).
        apothem = 1.15 * radius / 2
        edges = [y, -0.5 * y + np.sqrt(3) / 2 * x, -0.5 * y - np.sqrt(3) / 2 * x]
        farthest: FloatArray = np.maximum.reduce(edges)
        return farthest - apothem
    if shape == "cross":
        arm, half = 0.32 * radius, radius
        horizontal = np.maximum(np.abs(x) - half, np.abs(y) - arm)
        vertical = np.maximum(np.abs(x) - arm, np.abs(y) - half)
        return np.minimum(horizontal, vertical)
    if shape == "star":
        # Five points at 1.12 radius, notches at 0.46 of that; folded into one half-sector of 36 degrees.
        outer, inner = 1.12 * radius, 0.46 * 1.12 * radius
        angle = np.abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        px, py = r * np.sin(angle), r * np.cos(angle)
        bx, by = inner * np.sin(np.pi / 5), inner * np.cos(np.pi / 5)
        normal = np.array([outer - by, bx]) / np.hypot(outer - by, bx)
        distance: FloatArray = px * normal[0] + (py - outer) * normal[1]
        return distance.astype(np.float32)
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


@lru_cache(maxsize=1)
def _templates() -> tuple[list[tuple[str, float]], FloatArray]:
    """All (shape, radius) masks, centred, antialiased over one pixel: names and an array (K, 64 * 64)."""
    axis = np.arange(RESOLUTION, dtype=np.float32) - np.float32(_CENTER)
    x, y = np.meshgrid(axis, axis)
    names = [(shape, float(radius)) for shape in SHAPES for radius in _RADII]
    masks = [np.clip(0.5 - shape_distance(shape, x, y, radius), 0, 1).ravel() for shape, radius in names]
    return names, np.stack(masks).astype(np.float32)


def _nearest_color(rgb: FloatArray) -> str:
    return _NAMES[int(np.argmin(((_COLORS - rgb) ** 2).sum(-1)))]


def _shift(mask: FloatArray, dy: float, dx: float) -> FloatArray:
    """Bilinear read of ``mask`` (H, W) at (y + dy, x + dx), zero outside."""
    image = Image.fromarray(mask)
    moved = image.transform(image.size, Image.Transform.AFFINE, (1, 0, dx, 0, 1, dy), Image.Resampling.BILINEAR)
    return np.asarray(moved, np.float32)


def _two_colors(pixels: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Median background colour (from the border) and median colour of what deviates most from it."""
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[:, :2].reshape(-1, 3)])
    background = np.median(border, axis=0)
    deviation = np.sqrt(((pixels - background) ** 2).sum(-1))
    peak = np.percentile(deviation, 98.0)
    foreground = np.median(pixels[deviation >= 0.75 * peak], axis=0)
    return background.astype(np.float32), foreground.astype(np.float32)


def _fit_mask(mask: FloatArray) -> tuple[str, float, FloatArray, float]:
    """Best template for ``mask`` (64, 64): shape, radius, the template moved into place, relative squared error."""
    names, templates = _templates()
    weights = np.where(mask > 0.5, mask, 0)
    total = float(weights.sum())
    if total < 20:
        return "unknown", 0.0, np.zeros_like(mask), np.inf
    rows, columns = np.mgrid[:RESOLUTION, :RESOLUTION]
    cy, cx = float((weights * rows).sum() / total), float((weights * columns).sum() / total)
    offsets = [(cy + dy - _CENTER, cx + dx - _CENTER) for dy in (-1.5, -0.75, 0, 0.75, 1.5) for dx in (-1, 0, 1)]
    moved = np.stack([_shift(mask, dy, dx).ravel() for dy, dx in offsets])
    energy = (templates**2).sum(-1)
    errors = (moved**2).sum(-1)[:, None] - 2 * moved @ templates.T + energy
    place, best = np.unravel_index(int(np.argmin(errors)), errors.shape)
    dy, dx = offsets[int(place)]
    shape, radius = names[int(best)]
    template = _shift(templates[int(best)].reshape(mask.shape), -dy, -dx)
    return shape, radius, template, float(errors[place, best] / energy[best])


def _cleanliness(pixels: FloatArray, template: FloatArray, color: str, background: str) -> float:
    alpha = template[..., None]
    ideal = _COLORS[_NAMES.index(background)] * (1 - alpha) + _COLORS[_NAMES.index(color)] * alpha
    squared = ((pixels - ideal) ** 2).mean(-1)
    # The three regions count alike, so that a soft edge weighs as much as a noisy background.
    near = np.zeros_like(template, bool)
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        near |= np.abs(np.roll(template, (dy, dx), (0, 1)) - template) > 0.05
    regions = [near, (template > 0.5) & ~near, (template <= 0.5) & ~near]
    parts = [float(squared[region].mean()) for region in regions if region.any()]
    return float(np.exp(-np.mean(parts) / _CLEAN_SCALE**2))


def read_scene(image: Image.Image) -> Reading:
    """Read the attributes and the cleanliness of one ``image`` (any size and mode; judged at 64 x 64 RGB)."""
    return read_pixels(at_resolution(image))


def at_resolution(image: Image.Image) -> NDArray[np.uint8]:
    """``image`` as the verifier sees it: levels (64, 64, 3), RGB."""
    return np.asarray(resample(to_rgb(image), (RESOLUTION, RESOLUTION), Image.Resampling.BOX))


def read_pixels(levels: NDArray[np.uint8]) -> Reading:
    """Read the attributes and the cleanliness of ``levels`` (64, 64, 3), RGB."""
    pixels = levels.astype(np.float32) / 255
    back, fore = _two_colors(pixels)
    background, color = _nearest_color(back), _nearest_color(fore)
    axis = fore - back
    contrast = float(axis @ axis)
    if contrast < 0.1**2:
        return Reading(Scene("unknown", color, "unknown", background), 0.0)
    mask = np.clip((pixels - back) @ axis / contrast, 0, 1).astype(np.float32)
    shape, radius, template, error = _fit_mask(mask)
    if error > _MAX_MASK_ERROR:
        return Reading(Scene("unknown", color, "unknown", background), 0.0)
    size = "small" if radius < _SIZE_BOUNDARY else "large"
    return Reading(Scene(size, color, shape, background), _cleanliness(pixels, template, color, background))
