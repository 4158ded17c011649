"""The runner shares what is alike, keeps the order, and hides no failure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_feedback.errors import UserError
from diffusion_feedback.scorers.runner import score_batches
from diffusion_feedback.scorers.scorer import Scorer
from diffusion_feedback.types.images import ImageItem, Scores


@dataclass
class Counted:
    """A picture of one grey level that counts how often it is decoded."""

    level: int
    counts: Counter[str]

    @property
    def key(self) -> str:
        return str(self.level)

    def open(self) -> Image.Image:
        self.counts["open"] += 1
        if self.level < 0:
            raise UserError(f"picture {self.level}: broken", "repair it")
        return Image.new("RGB", (4, 4), (self.level,) * 3)


def scorer(counts: Counter[str], name: str = "a", view: str = "v", image: str = "t", text: str = "t") -> Scorer:
    """Score = grey level * 10 + length of the prompt; every stage counts its rows."""

    def cut(picture: Image.Image) -> Tensor:
        counts[f"view {view}"] += 1
        return torch.tensor([float(picture.getpixel((0, 0))[0])])  # type: ignore[index]

    def encode(views: Tensor) -> Tensor:
        counts[f"image {view} {image}"] += len(views)
        return views * 10

    def read(prompts: Sequence[str]) -> Tensor:
        counts[f"text {text}"] += len(prompts)
        return torch.tensor([[float(len(prompt))] for prompt in prompts])

    def judge(images: Tensor, prompts: Tensor) -> Scores:
        scores = (images + prompts).flatten()
        return Scores(scores, scores)

    return Scorer(name, f"{name}/recipe", view, image, text, 1.0, cut, encode, read, judge)


def pictures(levels: Sequence[int], counts: Counter[str]) -> list[ImageItem]:
    return [ImageItem(f"p{level}", "x" * (level % 3), Counted(level, counts)) for level in levels]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_every_item_once_and_in_order(batch_size: int) -> None:
    counts: Counter[str] = Counter()
    items = pictures(range(20), counts)
    batches = list(score_batches([scorer(counts)], items, batch_size=batch_size, workers=3))
    assert [item for batch in batches for item in batch.items] == items
    values = [float(value) for batch in batches for value in batch.scores[0].score]
    assert values == [level * 10 + level % 3 for level in range(20)]
    assert max(len(batch.items) for batch in batches) <= batch_size


def test_what_is_alike_is_shared() -> None:
    counts: Counter[str] = Counter()
    scorers = [
        scorer(counts, "a"),
        scorer(counts, "b"),  # all alike
        scorer(counts, "c", image="other"),  # another tower on the same view
        scorer(counts, "d", view="w", text="own"),  # nothing alike
    ]
    list(score_batches(scorers, pictures(range(12), counts), batch_size=4, workers=2))
    assert counts == {
        "open": 12,
        "view v": 12,
        "view w": 12,
        "image v t": 12,
        "image v other": 12,
        "image w t": 12,
        "text t": 3,  # three distinct prompts, though each recurs in every batch
        "text own": 3,
    }


def test_a_broken_image_stops_or_is_listed() -> None:
    counts: Counter[str] = Counter()
    items = pictures([5, -1, 7, -2, 9], counts)
    with pytest.raises(UserError, match="picture -1: broken"):
        list(score_batches([scorer(counts)], items, batch_size=2))
    bad: list[str] = []
    batches = list(
        score_batches([scorer(counts)], items, batch_size=2, on_bad=lambda item, error: bad.append(item.name))
    )
    assert bad == ["p-1", "p-2"]
    assert [item.name for batch in batches for item in batch.items] == ["p5", "p7", "p9"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_named(value: float) -> None:
    counts: Counter[str] = Counter()

    def judge(images: Tensor, prompts: Tensor) -> Scores:
        scores = torch.where(images.flatten() == 20, value, 1.0)
        return Scores(scores, scores)

    broken = replace(scorer(counts), judge=judge)
    with pytest.raises(UserError, match=r"(?s)p2: score (nan|inf) by a/recipe .*float16 may overflow"):
        list(score_batches([broken], pictures(range(4), counts), batch_size=4))


def test_score_needs_a_prompt_for_each_image() -> None:
    counts: Counter[str] = Counter()
    picture = Image.new("RGB", (4, 4), (3, 3, 3))
    assert scorer(counts).score([picture], ["ab"]).tolist() == [32.0]
    with pytest.raises(ValueError, match="2 images, 1 prompts"):
        scorer(counts).score([picture, picture], ["ab"])
