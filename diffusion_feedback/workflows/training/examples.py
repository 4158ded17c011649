"""What the examples of every kind of run share: held-out ones stand apart, and bad rows are named."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from ...errors import UserError

log = logging.getLogger(__name__)
_SHOWN = 20


def check_apart(what: str, train: Collection[str], heldout: Collection[str], *, may_share: bool = False) -> None:
    """Raise UserError where a held-out example is a training example too, by their ids; ``what`` they are, in words.

    With ``may_share`` that is an accident which may happen, and only the same examples twice are refused.
    """
    shared = set(train) & set(heldout)
    if may_share and shared < set(heldout):
        return
    if shared:
        which = f"all of its {len(heldout)} {what}" if may_share else f"{len(shared)} of its {len(heldout)} {what}"
        problem = f"data.validation: {which} are training {what} too"
        raise UserError(problem, "give other files or another validation_split")


def say_skipped(path: str, reasons: Sequence[str]) -> None:
    """Note the bad rows of ``path`` that were left out."""
    if reasons:
        log.warning("%d bad rows skipped in %s; the first of them:", len(reasons), path)
        for reason in reasons[:_SHOWN]:
            log.warning("  %s", reason)
