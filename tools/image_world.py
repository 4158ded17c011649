"""The Shapes world in pictures: all its scenes, their renderer, and the flawed mixture that the embedded model imitates.

The renderer draws with Pillow polygons at four times the size, so it shares no geometry code with the verifier
(``diffusion_feedback.shapes.verifier``), which is tested on these pictures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from diffusion_feedback.shapes.scenes import ATTRIBUTES, COLORS, RESOLUTION, SHAPES, SIZES, Scene, parse_caption
from diffusion_feedback.shapes.verifier import read_scene

SUPERSAMPLING = 4
WRONG_CAPTION_RATE = 0.2
MIXTURE = {"clean": 0.4, "noisy": 0.24, "blurred": 0.18, "washed_out": 0.18}


def all_scenes() -> list[Scene]:
    """Every scene of the grammar with two different colours, in a fixed order."""
    product = itertools.product(SIZES, COLORS, SHAPES, COLORS)
    return [Scene(size, color, shape, back) for size, color, shape, back in product if color != back]


def split_scenes(seed: int = 0) -> tuple[list[Scene], list[Scene]]:
    """Half of the scenes for training on feedback, half held out, by a fixed permutation."""
    scenes = all_scenes()
    order = np.random.default_rng([seed, 11]).permutation(len(scenes))
    half = len(scenes) // 2
    return [scenes[i] for i in order[:half]], [scenes[i] for i in order[half:]]


def _polygon(shape: str, radius: float) -> list[tuple[float, float]]:
    """Corner offsets of the straight-edged shapes."""
    if shape == "square":
        s = 0.86 * radius
        return [(-s, -s), (s, -s), (s, s), (-s, s)]
    if shape == "triangle":
        angles = [math.radians(a) for a in (-90, 30, 150)]
        return [(1.15 * radius * math.cos(a), 1.15 * radius * math.sin(a)) for a in angles]
    if shape == "cross":
        a, h = 0.32 * radius, radius
        return [
            (-a, -h),
            (a, -h),
            (a, -a),
            (h, -a),
            (h, a),
            (a, a),
            (a, h),
            (-a, h),
            (-a, a),
            (-h, a),
            (-h, -a),
            (-a, -a),
        ]
    tips = [1.12 * radius if i % 2 == 0 else 0.46 * 1.12 * radius for i in range(10)]
    return [(t * math.sin(math.pi * i / 5), -t * math.cos(math.pi * i / 5)) for i, t in enumerate(tips)]


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw a clean 64 x 64 picture of ``scene`` with random radius and place."""
    radius = rng.uniform(*SIZES[scene.size])
    space = min(RESOLUTION / 2 - 1.15 * radius - 2, 10.0)
    cx, cy = (RESOLUTION / 2 + rng.uniform(-space, space) for _ in range(2))
    scale = SUPERSAMPLING
    canvas = Image.new("RGB", (RESOLUTION * scale, RESOLUTION * scale), COLORS[scene.background])
    draw = ImageDraw.Draw(canvas)
    if scene.shape in ("circle", "ring"):
        for r, color in ((radius, scene.color), (0.52 * radius, scene.background)):
            if r == radius or scene.shape == "ring":
                draw.ellipse(
                    [(cx - r) * scale, (cy - r) * scale, (cx + r) * scale, (cy + r) * scale], fill=COLORS[color]
                )
    else:
        corners = [((cx + x) * scale, (cy + y) * scale) for x, y in _polygon(scene.shape, radius)]
        draw.polygon(corners, fill=COLORS[scene.color])
    return canvas.resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX)


def degrade(image: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    """Apply one flaw of the mixture: coarse noise, blur, or fading towards a light grey."""
    if kind == "clean":
        return image
    if kind == "blurred":
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(2.2, 4.0)))
    pixels = np.asarray(image, np.float32) / 255
    if kind == "washed_out":
        keep = rng.uniform(0.35, 0.55)
        pixels = keep * pixels + (1 - keep) * 0.62
    else:
        grain = rng.normal(0, rng.uniform(0.16, 0.28), (14, 14, 3)).astype(np.float32)
        channels = [
            Image.fromarray(grain[..., c]).resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC) for c in range(3)
        ]
        pixels = pixels + np.stack([np.asarray(channel) for channel in channels], -1)
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8))


def miscaption(scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene that differs from ``scene`` in exactly one attribute, as a sloppy caption would."""
    others = [
        other for other in all_scenes() if sum(getattr(other, name) != getattr(scene, name) for name in ATTRIBUTES) == 1
    ]
    return others[int(rng.integers(len(others)))]


def mixture_sample(index: int, seed: int = 0) -> tuple[Image.Image, str, str]:
    """The ``index``-th picture of the training mixture: image, its (possibly wrong) caption, and its flaw."""
    rng = np.random.default_rng([seed, 7, index])
    scenes = all_scenes()
    scene = scenes[int(rng.integers(len(scenes)))]
    kind = str(rng.choice(list(MIXTURE), p=list(MIXTURE.values())))
    image = degrade(render(scene, rng), kind, rng)
    named = miscaption(scene, rng) if rng.random() < WRONG_CAPTION_RATE else scene
    return image, named.caption, kind


def exact_scores(images: Sequence[Image.Image], captions: Sequence[str]) -> NDArray[np.float32]:
    """Verified score of each image against its caption, (N,), in [0, 1]. Raises ValueError for foreign captions."""
    pairs = zip(images, captions, strict=True)
    return np.array([read_scene(image).score(parse_caption(caption)) for image, caption in pairs], np.float32)
