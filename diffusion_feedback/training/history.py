"""What ran until when: a run that goes on under other settings says so in ``history.jsonl``, one line a change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..config.continuing import ChangedSetting
from ..config.recipe import plain
from ..foreign import reading
from ..records import write_text

HISTORY = "history.jsonl"
_REMEDY = "remove the file; the run goes on without the record of what it changed"


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a run changed when it went on: ``changed`` holds after ``step``, ``processes`` is how many there were."""

    step: int
    time: str
    processes: int
    changed: tuple[ChangedSetting, ...]

    def __str__(self) -> str:
        return f"after step {self.step}: {', '.join(map(str, self.changed))}"

    def to_json(self) -> str:
        """One line of the file."""
        changed = {each.name: {"old": plain(each.old), "new": plain(each.new)} for each in self.changed}
        return json.dumps({"step": self.step, "time": self.time, "processes": self.processes, "changed": changed})


def _from_json(line: str) -> Continuation:
    row = json.loads(line)
    changed = tuple(ChangedSetting(name, values["old"], values["new"]) for name, values in row["changed"].items())
    return Continuation(int(row["step"]), str(row["time"]), int(row["processes"]), changed)


def read_history(run: Path) -> list[Continuation]:
    """How ``run`` went on under other settings, oldest first.

    A line takes the place of those before it that are of a later step. Raises UserError for a file that holds other things.
    """
    path = run / HISTORY
    if not path.exists():
        return []
    with reading(path, "the history of a run", _REMEDY):
        rows = [_from_json(line) for line in path.read_text("utf-8").splitlines()]
    kept: list[Continuation] = []
    for row in rows:
        kept = [*(before for before in kept if before.step <= row.step), row]
    return kept


def record_changes(run: Path, step: int, changed: Sequence[ChangedSetting], processes: int) -> None:
    """Append to the history of ``run`` that ``changed`` holds after ``step``; nothing where nothing changed."""
    if changed:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        rows = [*read_history(run), Continuation(step, now, processes, tuple(changed))]
        write_text(run / HISTORY, "".join(f"{row.to_json()}\n" for row in rows))
