"""A Python function as a judge: rules, verifiers, other people's models."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...catalog.sources import calling, load_named, source_hash
from ...documents import parse_yaml
from ...errors import UserError
from ...records import Text, content_hash
from .checking import check_equal_length, finite


@dataclass(frozen=True, slots=True)
class FunctionScorer:
    """Scores by ``function(prompts, completions)``, called with all of them at once."""

    name: str
    recipe_id: str
    function: Callable[..., Any]

    def score(
        self, prompts: Sequence[Text], completions: Sequence[Text], finished: Sequence[bool] | None = None
    ) -> list[float]:
        """One number for each completion, which does not learn whether it was ``finished``.

        Raises UserError where the function gives another count or no finite number.
        """
        check_equal_length(prompts, completions)
        if not completions:
            return []
        # By name where it can be: reward functions of TRL take completions first, and what else they do not use.
        with calling(f"function {self.name}"):
            values = self.function(prompts=list(prompts), completions=list(completions))
        return finite(values, prompts, completions, f"function {self.name}")


def load(
    source: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, **settings: object
) -> FunctionScorer:
    """The function that ``source`` names, as ``module:attribute`` or ``path/to/file.py:attribute``.

    It takes lists of ``prompts`` and ``completions`` (texts, or lists of messages) and returns one finite number for
    each; larger is better. The hash of the file it stands in is part of the recipe id, what that file imports is not.
    ``settings`` are its keyword-only parameters, as text; ``device`` and ``dtype`` mean nothing to it. Raises UserError where there is no such function.
    """
    function = load_named(source, f"function={source}")
    place, _, attribute = source.rpartition(":")
    module = Path(place).stem if place.endswith(".py") else place
    recipe = f"function.1/{module}:{attribute}/{source_hash(source)[:12]}"
    if settings:
        typed = {key: parse_yaml(str(value), f"function={source}, {key}") for key, value in settings.items()}
        recipe += f"/{content_hash(repr(sorted(typed.items())))[:12]}"
        function = functools.partial(function, **typed)
    return FunctionScorer(source, recipe, _by_name(function, source))


def over(function: Callable[..., object], name: str | None = None) -> FunctionScorer:
    """The judge that ``function`` itself is, called as one that is named; ``name`` (its own by default) stands in results.

    The hash of its source and of what it holds is part of the recipe id. Raises UserError for another signature.
    """
    own = str(name or getattr(function, "__qualname__", type(function).__qualname__))
    recipe = f"function.1/{own}/{source_hash(function)[:12]}"
    return FunctionScorer(own, recipe, _by_name(function, own))


def _by_name(function: Callable[..., object], source: str) -> Callable[..., object]:
    """``function`` so that it can be called with ``prompts`` and ``completions`` by name."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in ones tell nothing of themselves
        return lambda prompts, completions: function(prompts, completions)
    try:
        signature.bind(prompts=[], completions=[])
    except TypeError:
        try:
            signature.bind([], [])
        except TypeError as error:
            problem = f"function={source}: takes {signature}, and is called with prompts and completions ({error})"
            raise UserError(problem, "give a function of two lists") from error
        return lambda prompts, completions: function(prompts, completions)
    return function
