"""What ran until when: a run that goes on under other settings says so in ``history.jsonl``, one line a change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..config.continuing import ChangedSetting
from ..config.recipe import plain
from ..foreign import reading
from ..records import write_text

HISTORY = "history.jsonl"
_REMEDY = "remove the file; the run goes on without the record of what it changed"


def read_history(run: Path) -> list[dict[str, Any]]:
    """The changes of ``run``, oldest first: ``step`` after which they hold, ``time``, ``processes``, and ``changed``, which
    maps settings to their ``old`` and ``new`` value.

    A line takes the place of those before it that are of a later step. Raises UserError for a file that holds other things.
    """
    path = run / HISTORY
    if not path.exists():
        return []
    with reading(path, "the history of a run", _REMEDY):
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        rows = [{key: line[key] for key in ("step", "time", "processes", "changed")} for line in lines]
    kept: list[dict[str, Any]] = []
    for row in rows:
        kept = [*(before for before in kept if before["step"] <= row["step"]), row]
    return kept


def record_changes(run: Path, step: int, changed: Sequence[ChangedSetting], processes: int) -> None:
    """Append to the history of ``run`` that ``changed`` holds after ``step``; nothing where nothing changed."""
    if not changed:
        return
    row = {
        "step": step,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processes": processes,
        "changed": {each.name: {"old": plain(each.old), "new": plain(each.new)} for each in changed},
    }
    lines = [json.dumps(each) for each in [*read_history(run), row]]
    write_text(run / HISTORY, "".join(f"{line}\n" for line in lines))


def describe_change(row: dict[str, Any]) -> str:
    """A line of the history in words: "after step 10: training.learning_rate 0.001 -> 0.0001"."""
    changes = (f"{name} {values['old']} -> {values['new']}" for name, values in row["changed"].items())
    return f"after step {row['step']}: {', '.join(changes)}"
