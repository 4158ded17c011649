"""From what a user writes ("hpsv2=weights/HPS_v2.1.pt,version=v2.1") to loaded scorers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..catalog import check_settings, names, resolve
from ..errors import UserError, nearest
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


@dataclass(frozen=True, slots=True)
class ScorerSpec:
    """Which scorer, with which weights (None: the published ones, from the hub), settings, and name in the results."""

    name: str
    weights: str | None
    settings: Mapping[str, object]
    alias: str | None = None


def parse_spec(text: str) -> ScorerSpec:
    """Read ``[ALIAS:]NAME[=WEIGHTS][,key=value...]``; the values of settings are text.

    Raises UserError for an unknown scorer or setting, a setting that stands twice, and weights or values that are empty:
    without its weights a scorer would be another one, the published.
    """
    head, *rest = text.split(",")
    name, has_weights, weights = head.partition("=")
    alias, colon, name = name.rpartition(":")
    if name not in names("scorer"):
        known = _ELSEWHERE.get(re.sub(r"[^a-z0-9]", "", name.lower()))
        if known:
            problem = f"scorer {name!r} ({known}) is none of this project's"
            raise UserError(
                problem, f"known: {', '.join(names('scorer'))}; it is another scorer than those of like names"
            )
        raise UserError(f"unknown scorer {name!r}", nearest(name, names("scorer")))
    settings: dict[str, object] = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if not (equals and value):
            raise UserError(f"scorer {text!r}: {part!r} is no setting", SPEC_HELP)
        if key in settings:
            raise UserError(f"scorer {text!r}: {key!r} stands twice", "give each setting once")
        settings[key] = value
    check_settings("scorer", name, settings)
    if colon and not alias:
        raise UserError(f"scorer {text!r}: the alias is empty", SPEC_HELP)
    if has_weights and not weights:
        raise UserError(f"scorer {text!r}: the weights are empty", SPEC_HELP)
    try:
        Path(weights).expanduser().exists()
    except (OSError, RuntimeError) as error:  # too long for a path, or the home of nobody
        raise UserError(f"scorer {text!r}: the weights are no path ({error})", SPEC_HELP) from error
    return ScorerSpec(name, weights or None, settings, alias or None)


def load_scorers(
    specs: Sequence[str | ScorerSpec], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> list[Scorer]:
    """Load ``specs`` in order; weights that several of them use are loaded once.

    Raises UserError for bad specs and weights, and for two scorers of one name or one recipe.
    """
    towers = Towers(torch.device(device), dtype)
    scorers: list[Scorer] = []
    for given in specs:
        spec = parse_spec(given) if isinstance(given, str) else given
        scorer: Scorer = resolve("scorer", spec.name)(spec.weights, towers, **spec.settings)
        scorers.append(replace(scorer, name=spec.alias) if spec.alias else scorer)
    for what in ("recipe_id", "name"):
        values = [getattr(scorer, what) for scorer in scorers]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            remedy = (
                "name each scorer once" if what == "recipe_id" else "tell them apart by an alias: ALIAS:NAME=WEIGHTS"
            )
            raise UserError(f"two scorers have the {what.replace('_', ' ')} {twice!r}", remedy)
    return scorers
