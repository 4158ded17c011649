"""What every scorer of the catalog promises, on small models with random weights, all of them in one run."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_world import all_scenes, render
from PIL import Image

from diffusion_feedback.catalog import names
from diffusion_feedback.scorers.loading import load_scorers
from diffusion_feedback.scorers.runner import score_batches
from diffusion_feedback.scorers.scorer import Scorer
from diffusion_feedback.types.images import ImageItem

# Of each, ``small`` of its own tests; a user's function has neither weights nor precision: tests/test_scoring.py.
NAMES = [name for name in names("scorer") if name != "function"]
SMALL: dict[str, Callable[[Path], str]] = {
    name: importlib.import_module(f"tests.scorers.test_{name}").small for name in NAMES
}


class Picture:
    """An image in memory; an ImageHandle."""

    def __init__(self, image: Image.Image, key: str) -> None:
        self.image, self.key = image, key

    def open(self) -> Image.Image:
        return self.image


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in SMALL.items()}


@pytest.fixture(scope="module")
def scorers(specs: dict[str, str]) -> list[Scorer]:
    return load_scorers(list(specs.values()))


@pytest.fixture(scope="module")
def items() -> list[ImageItem]:
    """Pictures of several sizes under captions that every scorer reads; captions recur."""
    scenes = all_scenes()
    found = []
    for number, (width, height) in enumerate([(64, 64), (96, 48), (40, 90), (64, 64), (128, 128), (33, 71), (64, 64)]):
        scene = scenes[53 * (number % 4)]
        picture = render(scene, np.random.default_rng(number)).resize((width, height), Image.Resampling.BICUBIC)
        found.append(ImageItem(f"{number}", scene.caption, Picture(picture, f"{number}")))
    return found


def scored(scorers: list[Scorer], items: list[ImageItem], batch_size: int) -> dict[str, dict[str, list[float]]]:
    """Score and raw by scorer and item."""
    found: dict[str, dict[str, list[float]]] = {scorer.name: {} for scorer in scorers}
    for batch in score_batches(scorers, items, batch_size=batch_size, workers=2):
        for scorer, scores in zip(scorers, batch.scores, strict=True):
            assert scores.score.dtype == scores.raw.dtype == torch.float32
            for item, score, raw in zip(batch.items, scores.score.tolist(), scores.raw.tolist(), strict=True):
                found[scorer.name][item.name] = [score, raw]
    return found


def test_batches_order_and_company_do_not_matter(scorers: list[Scorer], items: list[ImageItem]) -> None:
    whole = scored(scorers, items, 50)
    for other in (scored(scorers, items, 1), scored(scorers, items[::-1], 3)):
        for name, values in whole.items():
            for item, expected in values.items():
                scale = max(1.0, *map(abs, expected))
                assert other[name][item] == pytest.approx(expected, abs=1e-5 * scale), (name, item)
    for scorer in scorers:
        alone = scored([scorer], items, 4)[scorer.name]
        for item, expected in whole[scorer.name].items():
            assert alone[item] == pytest.approx(expected, abs=1e-5 * max(1.0, *map(abs, expected))), scorer.name


def test_score_is_what_the_runner_says(scorers: list[Scorer], items: list[ImageItem]) -> None:
    whole = scored(scorers, items, 50)
    for scorer in scorers:
        values = scorer.score([item.handle.open() for item in items], [item.prompt for item in items])
        expected = [whole[scorer.name][item.name][0] for item in items]
        assert values.tolist() == pytest.approx(expected, abs=1e-5 * max(1.0, *map(abs, expected)))
        assert len(set(expected)) > 3, "a scorer that cannot tell these pictures apart proves nothing"


def test_images_of_every_mode(scorers: list[Scorer], items: list[ImageItem]) -> None:
    """What Pillow can hold is read as its RGB picture is."""
    base = items[0].handle.open()
    prompt = items[0].prompt
    for mode in ("RGBA", "CMYK", "P", "L", "LA"):
        image = base.convert(mode)
        rgb = image.convert("RGB")
        for scorer in scorers:
            found = scorer.score([image, rgb], [prompt, prompt])
            assert float(found[0]) == pytest.approx(float(found[1]), abs=1e-5 * max(1.0, abs(float(found[1])))), mode


def test_recipes_say_what_made_the_number(scorers: list[Scorer], specs: dict[str, str]) -> None:
    assert [scorer.name for scorer in scorers] == list(SMALL)
    for scorer in scorers:
        assert re.fullmatch(r"[a-z_]+\S*/[a-z0-9-]+/fp32(/[0-9a-f]{12}(-[0-9a-f]{12})?)?", scorer.recipe_id), (
            scorer.recipe_id
        )
    again = load_scorers(list(specs.values()))
    assert [scorer.recipe_id for scorer in again] == [scorer.recipe_id for scorer in scorers]
    halves = load_scorers([spec for name, spec in specs.items() if name != "shapes"], dtype=torch.bfloat16)
    for half, full in zip(halves, scorers, strict=False):
        assert "/bf16/" in half.recipe_id
        assert half.recipe_id != full.recipe_id


def test_the_prompt_counts_where_it_is_read(scorers: list[Scorer], items: list[ImageItem]) -> None:
    picture = items[0].handle.open()
    for scorer in scorers:
        # The tiny vocabulary of ImageReward holds other words than the captions of the Shapes world.
        captions = items[0].prompt, items[1].prompt
        one, other = ("a cat on the sea", "a dog") if scorer.name == "imagereward" else captions
        scores = scorer.score([picture, picture], [one, other]).tolist()
        assert (scores[0] != scores[1]) == scorer.reads_prompts, scorer.name
