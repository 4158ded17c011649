"""What the folder of a training run tells, read back; its page, and the warnings that are kept for it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...documents import read_text, read_yaml
from ...errors import UserError
from ...evaluation.trained import TrainedRun
from ...folders import ROUNDS
from ...progress import LOGGER
from ...reports.html import write_report
from ...reports.pages.folder import read_environment
from ...reports.pages.training import training_report
from ...runs import best_step
from ...training.history import read_history
from ...training.run_folder import RunFolder
from .drawn import read_samples

PAGE = "report.html"
_REMEDY = "remove the file, or give another run"
_CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
_NOTES = ("note", "left out", "cut")


def is_run(path: Path) -> bool:
    """Whether the folder ``path`` is that of one training run."""
    return (path / "recipe.yaml").is_file() and not (path / ROUNDS).exists()


def read_run(path: Path, *, name: str = "", card: str | None = None) -> TrainedRun:
    """The run in the folder ``path``, finished or not; ``card`` is its model card where that is not written yet.

    Raises UserError for a folder that holds no run, and for files that are damaged.
    """
    if not is_run(path):
        raise UserError(f"{path}: holds no training run", "give the folder that training wrote")
    folder, recipe = RunFolder(path), read_yaml(path / "recipe.yaml", _REMEDY)
    if not isinstance(recipe, dict) or not {"model", "data", "objective", "training"} <= recipe.keys():
        raise UserError(f"{path / 'recipe.yaml'}: holds no recipe", _REMEDY)
    readme = path / "README.md"
    said = card if card is not None else read_text(readme, _REMEDY) if readme.exists() else ""
    code, notes, rows = _CODE.search(said), folder.read_notes(), folder.read_metrics()
    last = max((int(row["step"]) for row in rows), default=0)
    return TrainedRun(
        path=path,
        name=name or path.resolve().name,
        recipe={"validation": {"prompts": []}, **recipe},
        rows=rows,
        heldout=folder.read_heldout(),
        samples=read_samples(path, up_to=last),
        unit=str(notes.get("unit", "examples")),
        kind=str(notes.get("kind", "")),
        planned_steps=int(notes.get("steps") or recipe["training"].get("max_train_steps") or last),
        plan=[str(line) for line in notes.get("plan", [])],
        warnings=[str(line) for line in notes.get("warnings", [])],
        environment=read_environment(path, _REMEDY) if (path / "environment.json").exists() else {},
        code=code[1] if code else "",
        is_finished=bool(said),
        marked_best=best_step(path),
        history=list(map(str, read_history(path))),
    )


def write_page(path: Path, card: str | None = None) -> TrainedRun:
    """Write the page of the run in the folder ``path`` into it; returns what stands on it."""
    run = read_run(path, card=card)
    write_report(training_report(run), path / PAGE)
    return run


class _Kept(logging.Handler):
    """Keeps the warnings of a run as single lines."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split()))


@contextmanager
def kept_warnings() -> Iterator[list[str]]:
    """The warnings of the package within this, as they come."""
    handler, logger = _Kept(), logging.getLogger(LOGGER)
    logger.addHandler(handler)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)


def warnings_among(lines: list[str]) -> list[str]:
    """Those of ``lines`` on a run that say what was left out, cut or guessed."""
    return [" ".join(line.split()) for line in lines if line.startswith(_NOTES)]
