"""From what a user writes ("reward_model=runs/reward", "function=rewards.py:length") to a loaded judge of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...catalog import check_settings, names, resolve
from ...errors import UserError, nearest
from ...types import TextScorer

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
    head, *rest = text.split(",")
    name, _, source = head.partition("=")
    if name not in names(kind):
        raise UserError(f"{text!r}: unknown kind of judge {name!r}", f"{SPEC_HELP}; {nearest(name, names(kind))}")
    if not source:
        raise UserError(f"{text!r}: does not say where the {name} lies", SPEC_HELP)
    settings: dict[str, str] = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise UserError(f"{text!r}: {part!r} is no setting", SPEC_HELP)
        if key in settings:
            raise UserError(f"{text!r}: {key!r} stands twice", "give each setting once")
        settings[key] = value
    check_settings(kind, name, settings)
    return TextScorerSpec(name, source, settings)


def load_text_scorer(
    spec: str | TextScorerSpec, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> TextScorer:
    """Load the judge that ``spec`` names, on ``device`` in ``dtype``. Raises UserError for a bad spec or model."""
    given = parse_text_spec(spec) if isinstance(spec, str) else spec
    scorer: TextScorer = resolve("text_scorer", given.kind)(given.source, device, dtype, **given.settings)
    return scorer
