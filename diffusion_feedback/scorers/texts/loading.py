"""From what a user writes ("reward_model=runs/reward", "function=rewards.py:length") to a loaded judge of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...catalog import check_settings, names, resolve
from ...errors import UserError, nearest
from ...specs import split_spec
from ...types.texts import TextScorer
from ..function import FUNCTION

SPEC_HELP = (
    "write reward_model=PATH, classifier=PATH,label=POSITIVE or function=module:attribute, and settings as ,key=value"
)


@dataclass(frozen=True, slots=True)
class TextScorerSpec:
    """Which kind of judge, where it lies, and its settings."""

    kind: str
    source: str
    settings: Mapping[str, str]


def parse_text_spec(text: str, kind: str = "text_scorer") -> TextScorerSpec:
    """Read ``KIND=SOURCE[,key=value...]``; ``kind`` is the catalog's kind of names that are allowed.

    Raises UserError for an unknown kind of judge or setting, one that stands twice or is missing, and an empty value.
    """
    spec = split_spec(text, repr(text), SPEC_HELP)
    name = spec.head
    if name not in names(kind):
        raise UserError(f"{text!r}: unknown kind of judge {name!r}", f"{SPEC_HELP}; {nearest(name, names(kind))}")
    if not spec.source:
        raise UserError(f"{text!r}: does not say where the {name} lies", SPEC_HELP)
    if name != FUNCTION:
        check_settings(kind, name, spec.settings)
    elif spec.settings:  # which are those of the function
        check_settings(kind, spec.source, spec.settings)
    return TextScorerSpec(name, spec.source, spec.settings)


def load_text_scorer(
    spec: str | TextScorerSpec, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> TextScorer:
    """Load the judge that ``spec`` names, on ``device`` in ``dtype``. Raises UserError for a bad spec or model."""
    given = parse_text_spec(spec) if isinstance(spec, str) else spec
    scorer: TextScorer = resolve("text_scorer", given.kind)(given.source, device, dtype, **given.settings)
    return scorer
