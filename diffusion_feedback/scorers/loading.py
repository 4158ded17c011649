"""From what a user writes ("hpsv2=weights/HPS_v2.1.pt,version=v2.1") to loaded scorers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..catalog import check_settings, names, resolve
from ..errors import UserError, nearest
from ..runs import weights_of
from ..specs import Spec, naming_function, split_spec
from .function import FUNCTION, ImageFunction, ImageScorer, function_name, name_of_function, scorer_from
from .scorer import Scorer, Towers

SPEC_HELP = (
    "[ALIAS:]NAME[=WEIGHTS][,key=value,...] where WEIGHTS is a folder, a file or a hub id, and ALIAS tells two scorers of"
    " one kind apart"
)


# Scorers that people ask for: the nearest name of ours would be another scorer.
_ELSEWHERE = {
    "hpsv3": "a vision-language model with a head",
    "hps": "the first Human Preference Score, of 2023",
    "mps": "MPS, with a condition beside the prompt",
    "vqascore": "the answer of a vision-language model",
    "unifiedreward": "a vision-language model that writes its judgement",
    "visionreward": "a vision-language model that answers questions",
    "qalign": "a vision-language model",
    "deqa": "a vision-language model",
    "clipiqa": "CLIP with two prompts of its own",
    "musiq": "a network for picture quality",
    "aestheticv25": "a head on SigLIP, under the AGPL",
    "siglip": "another pair of towers",
}


def parse_spec(text: str) -> Spec:
    """Read ``[ALIAS:]NAME[=WEIGHTS][,key=value...]``, or "file.py:attribute"; the values of settings are text.

    Raises UserError for an unknown scorer or setting, a setting that stands twice, and weights or values that are empty:
    without its weights a scorer would be another one, the published.
    """
    label = f"scorer {text!r}"
    spec = split_spec("scorer", naming_function(text, names("scorer")), label, SPEC_HELP)
    alias, colon, name = spec.name.rpartition(":")
    if name not in names("scorer"):
        known = _ELSEWHERE.get(re.sub(r"[^a-z0-9]", "", name.lower()))
        if known:
            problem = f"scorer {name!r} ({known}) is none of this project's"
            remedy = f"known: {', '.join(names('scorer'))}; it is another scorer than those of like names"
            raise UserError(problem, remedy)
        raise UserError(f"unknown scorer {name!r}", nearest(name, names("scorer")))
    if name != FUNCTION:  # whose settings are those of the function
        check_settings("scorer", name, spec.settings)
    if colon and not alias:
        raise UserError(f"{label}: the alias is empty", SPEC_HELP)
    if spec.source == "":
        raise UserError(f"{label}: the weights are empty", SPEC_HELP)
    try:
        Path(spec.source or "").expanduser().exists()
    except (OSError, RuntimeError) as error:  # too long for a path, or the home of nobody
        raise UserError(f"{label}: the weights are no path ({error})", SPEC_HELP) from error
    return replace(spec, name=name, alias=alias or None)


AnyScorer = str | Spec | ImageScorer | Callable[..., Any]
"""A scorer as users name it: a spec as text or taken apart, a loaded one, or a function (see ``scorer_from``)."""


def label_of(scorer: AnyScorer) -> str:
    """The name in results of ``scorer``, which need not be loaded. Raises UserError for a bad spec."""
    if isinstance(scorer, str):
        scorer = parse_spec(scorer)
    if isinstance(scorer, Spec):
        return scorer.alias or (function_name(scorer.source or "") if scorer.name == FUNCTION else scorer.name)
    if isinstance(scorer, Scorer | ImageFunction):
        return scorer.name
    return name_of_function(scorer) if callable(scorer) else repr(scorer)


def load_scorer(
    spec: AnyScorer, *, device: torch.device | str = "cpu", dtype: torch.dtype | str = torch.float32
) -> ImageScorer:
    """The scorer that ``spec`` names, on ``device`` in ``dtype``: ``.score(images, prompts)`` gives (N,) float32.

    ``spec`` is ``[ALIAS:]NAME[=WEIGHTS][,key=value,...]`` as on the command line, such as "pickscore" or
    "function=file.py:brightness". Raises UserError for an unknown scorer or setting, and weights that are not to be had.
    """
    [scorer] = load_scorers([spec], device=device, dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    return scorer


def load_scorers(
    scorers: Sequence[AnyScorer], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> list[ImageScorer]:
    """Load ``scorers`` in order; weights that several of them use are loaded once. Loaded ones stay as they are.

    Raises UserError for bad specs and weights, and for two scorers of one name or one recipe.
    """
    towers = Towers(torch.device(device), dtype)
    loaded = [_load(given, towers) for given in scorers]
    for what in ("recipe_id", "name"):
        values = [getattr(scorer, what) for scorer in loaded]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            remedy = (
                "name each scorer once" if what == "recipe_id" else "tell them apart by an alias: ALIAS:NAME=WEIGHTS"
            )
            raise UserError(f"two scorers have the {what.replace('_', ' ')} {twice!r}", remedy)
    return loaded


def _load(given: AnyScorer, towers: Towers) -> ImageScorer:
    if isinstance(given, str):
        given = parse_spec(given)
    if isinstance(given, Spec):
        source = weights_of(given.source) if given.source and given.name != FUNCTION else given.source
        scorer: ImageScorer = resolve("scorer", given.name)(source, towers, **given.settings)
        return replace(scorer, name=given.alias) if given.alias else scorer
    if isinstance(given, Scorer | ImageFunction):
        return given
    if not callable(given):
        raise UserError(f"`scorers`: got {given!r}", f"give {SPEC_HELP}, a loaded scorer, or a function")
    return scorer_from(given)
