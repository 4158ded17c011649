"""A user's Python function as a scorer of images: ``function=file.py:brightness``, or any callable in Python."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..catalog.sources import calling, load_named, source_hash
from ..documents import parse_yaml
from ..errors import UserError
from ..pixels import to_rgb
from ..records import content_hash
from ..types.images import Scores
from .checking import numbers
from .scorer import Scorer, SharedFeatures, Towers, check_one_prompt_each

FUNCTION = "function"
"""The name of this scorer in the catalog."""

BatchFunction = Callable[[Sequence[Image.Image], Sequence[str]], Any]


@dataclass(frozen=True)
class ImageFunction:
    """A scorer that gives RGB images of any size and their prompts to ``judge``, a batch at a time."""

    name: str
    recipe_id: str
    judge: BatchFunction
    reads_prompts: bool
    logit_scale: float | None = None
    view_key: str = "image"

    @property
    def view(self) -> Callable[[Image.Image], Image.Image]:
        """The image upright in RGB."""
        return to_rgb

    def cuts(self, prompts: Sequence[str]) -> list[bool]:
        """Nothing is known to be cut."""
        return [False] * len(prompts)

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Scores (N,) float32. Raises ValueError for unequal lengths or no image, UserError where the function fails."""
        check_one_prompt_each(images, prompts)
        return self.judge_views([self.view(image) for image in images], prompts, SharedFeatures()).score

    def judge_views(self, views: Sequence[Image.Image], prompts: Sequence[str], shared: SharedFeatures) -> Scores:
        """What the function says. Raises UserError where it fails, gives another count, or no finite number."""
        label = f"scorer {self.name}"
        with calling(label):
            values = self.judge(list(views), list(prompts))

        def describe(place: int) -> str:
            return f"image {place + 1} of {len(views)} (prompt {prompts[place][:80]!r})"

        scores = torch.tensor(numbers(values, len(views), label, "image", describe), dtype=torch.float32)
        return Scores(scores, scores)


ImageScorer = Scorer | ImageFunction
"""What judges images against prompts; ``recipe_id`` names all that makes the number."""


def scorer_from(
    function: Callable[..., object], *, name: str | None = None, logit_scale: float | None = None, **settings: object
) -> ImageFunction:
    """A scorer of images made of ``function``, whose values are larger for better images.

    It is called with a list of RGB PIL images and a list of their prompts, and returns one finite number for each; where
    its first parameter is named ``image`` it is called image by image, and without a second one it gets no prompt.
    ``settings`` are its keyword-only parameters. ``name`` (the function's own by default) stands in the results;
    ``logit_scale`` * value is a Bradley-Terry logit, where that is known. The recipe id holds the hash of the source.
    Raises UserError for a function that cannot be called so, and for settings that it does not take.
    """
    from ..catalog import check_settings  # which names this module

    own = name or name_of_function(function)
    if settings:
        check_settings("scorer", function, settings)
    home = getattr(function, "__module__", "") or ""
    place = f"{home}:{getattr(function, '__qualname__', own)}"
    bound, recipe = bind(function, place, source_hash(function), settings)
    return ImageFunction(own, recipe, *_called(bound, own), logit_scale)


def name_of_function(function: Callable[..., object]) -> str:
    """The function's own name; that of its class, where it is an object."""
    return str(getattr(function, "__name__", type(function).__name__))


def load(source: str | None, towers: Towers, **settings: object) -> ImageFunction:
    """The function that ``source`` names, as ``path/to/file.py:attribute`` or ``module:attribute``; see ``scorer_from``.

    Its scores are no logits until a calibration gives a scale. Raises UserError where there is no such function.
    """
    from ..catalog import check_settings  # which names this module

    bound, recipe = load_function(source or "", settings)
    check_settings("scorer", str(source), settings)
    own = function_name(str(source))
    return ImageFunction(own, recipe, *_called(bound, own))


def function_name(source: str) -> str:
    """The name in results of the function that ``source`` names."""
    return source.rpartition(":")[2].rpartition(".")[2]


def load_function(source: str, settings: Mapping[str, object]) -> tuple[Callable[..., object], str]:
    """The function that ``source`` names with its ``settings``, which are text, and the recipe id of both.

    The hash of its file is part of that; what the file imports is not. Raises UserError where there is no such function.
    """
    label = f"function={source}"
    function = load_named(source, label)
    place, _, attribute = source.rpartition(":")
    home = Path(place).stem if place.endswith(".py") else place
    typed = {key: parse_yaml(str(value), f"{label}, {key}") for key, value in settings.items()}
    return bind(function, f"{home}:{attribute}", source_hash(source), typed)


def bind(
    function: Callable[..., object], place: str, source: str, settings: Mapping[str, object]
) -> tuple[Callable[..., object], str]:
    """``function`` with its ``settings``, and the recipe id of both; ``source`` is the hash of its code."""
    recipe = f"function.1/{place}/{source[:12]}"
    if not settings:
        return function, recipe
    return functools.partial(function, **settings), f"{recipe}/{content_hash(repr(sorted(settings.items())))[:12]}"


def _called(function: Callable[..., object], name: str) -> tuple[BatchFunction, bool]:
    """How ``function`` is called with images and prompts, and whether it reads prompts."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:
        return function, True
    empty = inspect.Parameter.empty
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    has_rest = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if not (places or has_rest) or any(p.default is empty for p in places[2:]):
        problem = f"scorer {name}: takes {inspect.signature(function)}, and is called with images and prompts"
        remedy = "give a function of a list of images and a list of prompts, or of an image and a prompt"
        raise UserError(problem, remedy)
    # A further parameter with a default is the function's own affair.
    second = places[1] if len(places) > 1 else None
    reads_prompts = has_rest or (second is not None and (second.default is empty or second.name.startswith("prompt")))
    if places and places[0].name == "image":
        if reads_prompts:
            return lambda images, prompts: [function(i, p) for i, p in zip(images, prompts, strict=True)], True
        return lambda images, prompts: [function(image) for image in images], False
    if reads_prompts:
        return function, True
    return lambda images, prompts: function(images), False
