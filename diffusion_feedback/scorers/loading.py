"""From what a user writes ("hpsv2=weights/HPS_v2.1.pt,version=v2.1") to loaded scorers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import yaml

from ..catalog import check_settings, names, nearest, resolve
from ..errors import UserError
from .scorer import Scorer, Towers

SPEC_HELP = "NAME, NAME=WEIGHTS or NAME=WEIGHTS,key=value,... where WEIGHTS is a folder, a file or a hub id"


@dataclass(frozen=True, slots=True)
class ScorerSpec:
    """Which scorer, with which weights (None: the published ones, from the hub) and settings."""

    name: str
    weights: str | None
    settings: Mapping[str, object]


def parse_spec(text: str) -> ScorerSpec:
    """Read ``NAME[=WEIGHTS][,key=value...]``. Raises UserError for an unknown scorer or setting."""
    head, *rest = text.split(",")
    name, _, weights = head.partition("=")
    if name not in names("scorer"):
        raise UserError(f"unknown scorer {name!r}", nearest(name, names("scorer")))
    settings: dict[str, object] = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"scorer {text!r}: {part!r} is no setting", SPEC_HELP)
        settings[key] = value if value.startswith("v") else yaml.safe_load(value)
    check_settings("scorer", name, settings)
    return ScorerSpec(name, weights or None, settings)


def load_scorers(
    specs: Sequence[str | ScorerSpec], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> list[Scorer]:
    """Load ``specs`` in order; weights that several of them use are loaded once.

    Raises UserError for bad specs and weights, and for a scorer that is asked for twice under one recipe.
    """
    towers = Towers(torch.device(device), dtype)
    scorers: list[Scorer] = []
    for spec in specs:
        spec = parse_spec(spec) if isinstance(spec, str) else spec
        scorers.append(resolve("scorer", spec.name)(spec.weights, towers, **spec.settings))
    recipes = [scorer.recipe_id for scorer in scorers]
    for recipe in recipes:
        if recipes.count(recipe) > 1:
            raise UserError(f"scorer recipe {recipe!r} is asked for twice", "name each scorer once")
    return scorers
