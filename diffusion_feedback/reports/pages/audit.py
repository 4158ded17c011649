"""The page of an audit: what predicts the labels by itself, and pairs in which it does so most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...evaluation.audited import AuditResult
from ..shown_pairs import ShownPair, write_pair_page


@dataclass(frozen=True, slots=True)
class AuditExamples:
    """Pairs that differ most in the property ``name``: with the label ``agreeing`` with it, and ``against`` it."""

    name: str
    agreeing: Sequence[ShownPair]
    against: Sequence[ShownPair]


def write_audit(result: AuditResult, examples: Sequence[AuditExamples], file: Path) -> None:
    """Write ``result`` as one page to ``file``, whole or not at all."""
    write_pair_page("audit.html.j2", file, title=f"Shortcuts in {result.source}", result=result, examples=examples)
