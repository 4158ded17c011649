"""From what a user writes ("reward_model=runs/reward", "function=rewards.py:length") to a loaded judge of texts."""

from __future__ import annotations

import torch

from ...catalog import check_settings, names, resolve
from ...errors import UserError, nearest
from ...runs import weights_of
from ...specs import Spec, naming_function, split_spec
from ...types.texts import PairJudge, TextScorer
from ..function import FUNCTION

SPEC_HELP = "write reward_model=PATH, classifier=PATH,label=POSITIVE, module:attribute or file.py:attribute, and settings as ,key=value"


def parse_text_spec(text: str, *more: str) -> Spec:
    """Read ``NAME=SOURCE[,key=value...]``, NAME a text_scorer of the catalog, or of the kinds ``more``; or "file.py:attribute".

    Raises UserError for an unknown kind of judge or setting, one that stands twice or is missing, and an empty value.
    """
    kinds = ("text_scorer", *more)
    text = naming_function(text, ())
    name = text.partition(",")[0].partition("=")[0]
    kind = next((kind for kind in kinds if name in names(kind)), None)
    if kind is None:
        known = [name for kind in kinds for name in names(kind)]
        raise UserError(f"{text!r}: unknown kind of judge {name!r}", f"{SPEC_HELP}; {nearest(name, known)}")
    spec = split_spec(kind, text, repr(text), SPEC_HELP)
    if not spec.source:
        raise UserError(f"{text!r}: does not say where the {name} lies", SPEC_HELP)
    if name != FUNCTION:
        check_settings(kind, name, spec.settings)
    elif spec.settings:  # which are those of the function
        check_settings(kind, spec.source, spec.settings)
    return spec


def load_text_scorer(spec: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> TextScorer:
    """The scorer that ``spec`` names, on ``device`` in ``dtype``. Raises UserError for a bad spec or model."""
    scorer = load_text_judge(parse_text_spec(spec), device, dtype)
    assert isinstance(scorer, TextScorer)
    return scorer


def load_text_judge(spec: Spec, device: torch.device | str, dtype: torch.dtype) -> TextScorer | PairJudge:
    """The judge that ``spec`` names. Raises UserError where it cannot be loaded."""
    source = weights_of(spec.source) if spec.source and spec.name != FUNCTION else spec.source
    judge: TextScorer | PairJudge = resolve(spec.kind, spec.name)(source, device, dtype, **spec.settings)
    return judge
