"""A Python function as a judge: rules, verifiers, other people's models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch

from ...catalog.sources import calling, source_hash
from ...errors import UserError
from ...records import Text
from ..function import bind, load_function
from .completion_scorer import CompletionScorer


def load(
    source: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, **settings: object
) -> CompletionScorer:
    """The function that ``source`` names, as ``module:attribute`` or ``path/to/file.py:attribute``.

    It takes lists of ``prompts`` and ``completions`` (texts, or lists of messages) and returns one finite number for
    each; larger is better. The hash of the file it stands in is part of the recipe id, what that file imports is not.
    ``settings`` are its keyword-only parameters, as text; ``device`` and ``dtype`` mean nothing to it. Raises UserError
    where there is no such function.
    """
    return _scorer(source, *load_function(source, settings))


def from_function(function: Callable[..., object], name: str | None = None) -> CompletionScorer:
    """The judge that ``function`` itself is, called as one that is named; ``name`` (its own by default) stands in results.

    The hash of its source and of what it holds is part of the recipe id. Raises UserError for another signature.
    """
    own = str(name or getattr(function, "__qualname__", type(function).__qualname__))
    return _scorer(own, *bind(function, own, source_hash(function), {}))


def _scorer(name: str, function: Callable[..., object], recipe: str) -> CompletionScorer:
    """Scores by ``function``, called once with all prompts and completions; it does not learn which are finished."""
    function, label = _by_name(function, name), f"function {name}"

    def values(prompts: Sequence[Text], completions: Sequence[Text], finished: Sequence[bool] | None) -> object:
        with calling(label):
            return function(prompts=list(prompts), completions=list(completions))

    return CompletionScorer(name, recipe, label, values)


def _by_name(function: Callable[..., object], source: str) -> Callable[..., object]:
    """``function`` so that it can be called with ``prompts`` and ``completions`` by name.

    By name where it can be: reward functions of TRL take completions first, and what else they do not use.
    """

    def by_place(prompts: object, completions: object) -> object:
        return function(prompts, completions)

    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in ones tell nothing of themselves
        return by_place
    try:
        signature.bind(prompts=[], completions=[])
    except TypeError:
        try:
            signature.bind([], [])
        except TypeError as error:
            problem = f"function={source}: takes {signature}, and is called with prompts and completions ({error})"
            raise UserError(problem, "give a function of two lists") from error
        return by_place
    return function
