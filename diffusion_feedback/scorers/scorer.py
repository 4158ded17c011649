"""What a scorer is made of: the stages that every one of them fills in, and the towers that several may share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..types.images import Scores

PRECISION = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_MAX_PROMPTS = 65_536  # prompt features held for each text tower: 256 MB at 1024 float32


@dataclass(frozen=True)
class Scorer:
    """Judges images against prompts, in stages, so that several scorers share what is alike.

    ``view`` cuts one image of any size and mode to the tensor that the tower takes, on the CPU, and may be called from
    threads. ``encode_images`` maps stacked views (N, ...) to features (N, ...), ``encode_prompts`` N prompts to
    features (N, ...), both on the scorer's device; ``judge`` compares the two row by row, its last product in float32.
    Scorers with equal ``view_key`` share views, with equal ``view_key`` and ``image_key`` also image features, with
    equal ``text_key`` prompt features ("none": no prompt is read). A row's score depends on that row alone.

    ``recipe_id`` names all that makes the number: name and version / preprocessing / precision / hash of the weights.
    ``logit_scale * raw`` is a Bradley-Terry logit; None where the scorer has none.
    ``cuts`` says which of the prompts are longer than the scorer reads: what is cut from them does not count.
    """

    name: str
    recipe_id: str
    view_key: str
    image_key: str
    text_key: str
    logit_scale: float | None
    view: Callable[[Image.Image], Tensor]
    encode_images: Callable[[Tensor], Tensor]
    encode_prompts: Callable[[Sequence[str]], Tensor]
    judge: Callable[[Tensor, Tensor], Scores]
    cuts: Callable[[Sequence[str]], list[bool]] = lambda prompts: [False] * len(prompts)

    @property
    def reads_prompts(self) -> bool:
        """Whether the score depends on the prompt; ``text_key`` is "none" where it does not."""
        return self.text_key != "none"

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Scores (N,) float32 of each image against its prompt. Raises ValueError for unequal lengths or no image.

        Images and prompts that fit into memory; ``runner.score_batches`` takes any number of them.
        """
        check_one_prompt_each(images, prompts)
        with torch.inference_mode():
            return self.judge_views([self.view(image) for image in images], prompts, SharedFeatures()).score

    def judge_views(self, views: Sequence[Tensor], prompts: Sequence[str], shared: SharedFeatures) -> Scores:
        """Scores of stacked ``views``; what another scorer has computed of them is taken from ``shared``."""
        return self.judge(shared.of_images(self, views), shared.of_prompts(self, prompts))


def check_one_prompt_each(images: Sized, prompts: Sized) -> None:
    """Raise ValueError unless there are images, and one prompt for each."""
    if len(images) != len(prompts) or not len(images):
        raise ValueError(f"{len(images)} images, {len(prompts)} prompts: give one prompt for each image")


@dataclass
class SharedFeatures:
    """What scorers compute once: features of one batch of images, and those of prompts, of which the oldest are forgotten."""

    images: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    prompts: dict[str, OrderedDict[str, Tensor]] = field(default_factory=dict)

    def of_images(self, scorer: Scorer, views: Sequence[Tensor]) -> Tensor:
        """The features of ``views`` under the scorer's image tower."""
        place = (scorer.view_key, scorer.image_key)
        if place not in self.images:
            self.images[place] = scorer.encode_images(torch.stack(list(views)))
        return self.images[place]

    def of_prompts(self, scorer: Scorer, prompts: Sequence[str]) -> Tensor:
        """The features of ``prompts`` under the scorer's text tower."""
        known = self.prompts.setdefault(scorer.text_key, OrderedDict())
        absent = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        if absent:
            known.update(zip(absent, scorer.encode_prompts(absent), strict=True))
        features = torch.stack([known[prompt] for prompt in prompts])
        while len(known) > _MAX_PROMPTS:
            known.popitem(last=False)
        return features


@dataclass(frozen=True)
class Towers:
    """Where scorers load their weights, on which device and in which precision; what two scorers share is loaded once."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    loaded: dict[str, Any] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16: the part of a recipe id."""
        return PRECISION[self.dtype]

    def get(self, key: str, build: Callable[[], object]) -> Any:
        """What ``key`` stands for, built at the first call."""
        if key not in self.loaded:
            self.loaded[key] = build()
        return self.loaded[key]
