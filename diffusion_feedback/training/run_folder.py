"""A run's folder, which explains itself: recipe, environment, metrics, samples, checkpoints, weights, model card.

recipe.yaml        the resolved recipe; training reads it back
environment.json   versions, hardware and command, and patterns of the files that the result is written in
notes.json         what was said before the first step, and all warnings
history.jsonl      settings that changed when the run went on, and after which step; where any did
best.json          the best step by validation.keep_best, its value, and where its checkpoint is; where one is kept
metrics.jsonl      one line a step, and one an evaluation of held-out pairs, with their time
heldout.jsonl      one line an evaluation: what is known of each held-out example
samples/           validation grids, or completions, on fixed seeds
report.html        the page of the run
checkpoints/       step-000100/..., whole or absent, with checksums; each holds weights as the result does
README.md          model card, written last: its presence says that the run is complete
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from ..config.continuing import ChangedSetting, Changes
from ..config.sources import user_sources
from ..documents import read_object, read_yaml
from ..errors import UserError
from ..folders import ROUNDS
from ..foreign import reading
from ..output_folders import OutputKind, check_writable
from ..records import content_hash, write_json, write_text
from ..runs import BEST, CHECKPOINTS, best_step, checkpoint_steps
from . import checkpoints
from .environment import environment
from .history import HISTORY, read_history, record_changes
from .resuming import check_changes, effective_batch

Row = dict[str, Any]
"""A line of JSON, by its keys."""

_ENVIRONMENT = "environment.json"
_NOTES = "notes.json"
_START_OVER = "start over with `overwrite`, or choose another output_dir"
_CODE = "code"  # of the user's own, in environment.json
_FILE_PATTERN = re.compile(r"[\w-][\w.*-]*")
PREFIX = "validation/"  # of what an evaluation measured, in metrics.jsonl
TRACKED = "diffusion-feedback"  # project of the trackers, and the folder in which TensorBoard's files stand
_RUNS = OutputKind(
    mark="recipe.yaml",
    own=(
        *("README.md", "report.html", _NOTES, "metrics.jsonl", "heldout.jsonl", HISTORY, BEST),
        *("checkpoints", "samples", TRACKED),
    ),
    foreign="is there and is no run",
    changed="`resume` with another {key}: {old} became {new}",
)


class RunFolder:
    """The folder of one run; all writing is done by the main process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._going_on: tuple[Changes, str, int] | None = None  # what changes, the recipe, and the number of processes
        self._clock_start = time.monotonic()  # the seconds that an earlier part of the run took are counted in

    @property
    def metrics_path(self) -> Path:
        """Where the metrics stand."""
        return self.path / "metrics.jsonl"

    def is_complete(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "README.md").exists()

    @property
    def last_step(self) -> int:
        """The step of the newest checkpoint; 0 where there is none."""
        saved = self.checkpoints()
        return checkpoints.step_number(saved[-1]) if saved else 0

    def check_free(self, recipe: Mapping[str, object], *, resume: bool, overwrite: bool, processes: int = 1) -> Changes:
        """What a run by ``recipe``, in this many ``processes``, changes in the one that is here; nothing where it is new.

        Raises UserError where ``open`` would: before minutes go into loading a model. Writes nothing.
        """
        if (self.path / ROUNDS).exists():
            raise UserError(f"{self.path}: holds rounds", "choose another output_dir")
        _RUNS.check_own(self.path)
        changes = Changes()
        if _RUNS.is_marked(self.path):
            if resume:
                changes = self._changes(recipe, processes)
                self._check_code(recipe)
            elif not overwrite:
                remedy = "continue it with `resume`, replace it with `overwrite`, or choose another output_dir"
                raise UserError(f"{self.path}: already holds a run", remedy)
        check_writable(self.path)
        return changes

    def check_length(self, steps: int) -> None:
        """Raise UserError where the run that is here has gone further than ``steps``."""
        if steps < self.last_step:
            problem = f"training.max_train_steps: {steps}, and {self.path} has gone {self.last_step} steps"
            remedy = f"give {self.last_step} or more; or another output_dir, and model.init_from: {self.path}@STEP"
            raise UserError(problem, remedy)

    def open(
        self,
        recipe: Mapping[str, object],
        written_files: Sequence[str] = (),
        *,
        resume: bool,
        overwrite: bool,
        processes: int = 1,
    ) -> None:
        """Start or continue a run here, whose result is written in ``written_files`` (patterns, as of ``Path.glob``).

        A new run removes what the one before it says that it wrote, and what might be taken for its own result. One that
        goes on changes nothing before ``go_on``. Raises UserError for a folder that holds something else, or cannot be written.
        """
        changes = self.check_free(recipe, resume=resume, overwrite=overwrite, processes=processes)
        content = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
        is_new = overwrite or not _RUNS.is_marked(self.path)
        try:
            # The recipe comes first: with it in place, a folder whose writer was killed is continued, not refused. A run
            # that goes on writes it again, as what is free may have changed.
            if is_new:
                own = (*_RUNS.own, *self._recorded_files(), *written_files, _ENVIRONMENT)
                replace(_RUNS, own=own).claim(self.path, content)
                sources = user_sources(recipe)
                code = {_CODE: sources} if sources else {}
                begun = {"processes": processes, "effective_batch": effective_batch(recipe, processes)}
                facts = {**environment(), **begun, **code, "written_files": list(written_files)}
                write_json(self.path / _ENVIRONMENT, facts)
            else:
                self._going_on = (changes, content, processes)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def go_on(self) -> None:
        """Record what a run that was opened to go on changes; nothing for a new one. To be called once its checkpoint fits.

        Raises UserError where the folder cannot be written.
        """
        if self._going_on is None:
            return
        changes, content, processes = self._going_on
        try:
            if changes.is_longer_or_shorter:
                for name in ("README.md", "report.html"):  # it is complete no more
                    (self.path / name).unlink(missing_ok=True)
            record_changes(self.path, self.last_step, changes.accepted, processes)
            _RUNS.write_mark(self.path, content)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._going_on = None

    def forget_result(self) -> None:
        """Remove the weights that the run has given out: it goes on, and they would be taken for those of its end."""
        for pattern in self._recorded_files():
            for path in self.path.glob(pattern):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _recorded_files(self) -> list[str]:
        """What the run that is here says that it writes; nothing that is not a plain name or pattern of one."""
        try:
            recorded = json.loads((self.path / _ENVIRONMENT).read_text("utf-8"))["written_files"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []
        return (
            [str(name) for name in recorded if _FILE_PATTERN.fullmatch(str(name))] if isinstance(recorded, list) else []
        )

    def _changes(self, new: Mapping[str, object], processes: int) -> Changes:
        """What ``new`` changes. Raises UserError where that makes another run, and where what is here is no recipe."""
        path = self.path / _RUNS.mark
        old = read_yaml(path, _START_OVER)
        if not isinstance(old, dict):
            raise UserError(f"{path}: holds no recipe but {type(old).__name__}", _START_OVER)
        began, batch = self._began()
        changes = check_changes(self.path, old, new, (batch, effective_batch(new, processes) if batch else None))
        if changes.is_longer_or_shorter and self.is_complete() and not self.checkpoints():
            problem = f"{self.path}: is complete and has no checkpoint, from which it could go on"
            raise UserError(problem, "begin another run, with its result as the model or as model.init_lora")
        if began and began != processes:
            accepted = (*changes.accepted, ChangedSetting("processes", began, processes))
            changes = replace(changes, accepted=accepted)
        return changes

    def _began(self) -> tuple[int | None, int | None]:
        """How many processes the run had when it last went on, and the examples of its steps; None where nothing says so."""
        try:
            facts = json.loads((self.path / _ENVIRONMENT).read_text("utf-8"))
            began, batch = facts.get("processes"), facts.get("effective_batch")
        except (OSError, ValueError, AttributeError, RecursionError):
            began = batch = None
        history = read_history(self.path)
        return history[-1].processes if history else began, batch

    def _check_code(self, recipe: Mapping[str, object]) -> None:
        """Raise UserError where the user's own code is not what the run began with."""
        path, code = self.path / _ENVIRONMENT, user_sources(recipe)
        before = read_object(path, _START_OVER).get(_CODE, code) if code and path.exists() else code
        for name, now in code.items():
            if before.get(name) != now:
                problem = f"{self.path}: `resume` with another {name}: its file has changed since the run began"
                raise UserError(problem, f"bring back the file as it was, or {_START_OVER}")

    def log(self, row: Mapping[str, object]) -> None:
        """Append one line to metrics.jsonl, with its ``time`` (UTC) and the ``seconds`` of work up to it."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        seconds = round(time.monotonic() - self._clock_start, 3)
        _append(self.metrics_path, {**row, "time": now, "seconds": seconds})

    def log_heldout(self, step: int, ids: Collection[str], values: Mapping[str, Sequence[float]]) -> None:
        """Append one line to heldout.jsonl: metrics of each of the held-out examples ``ids``, in their order.

        Runs whose ``examples``, a hash of the ids, are equal can be compared example by example.
        """
        kept = {name: [float(f"{value:.6g}") for value in each] for name, each in values.items()}
        _append(self.heldout_path, {"step": step, "examples": content_hash(*ids), **kept})

    @property
    def heldout_path(self) -> Path:
        """Where metrics of single held-out examples stand."""
        return self.path / "heldout.jsonl"

    def read_metrics(self) -> list[Row]:
        """All whole lines of metrics.jsonl. Raises UserError naming a line that is no JSON object with a step."""
        return self._rows(self.metrics_path)

    def read_heldout(self) -> dict[int, Row]:
        """The lines of heldout.jsonl by their steps. Raises UserError as ``read_metrics`` does."""
        return {row["step"]: row for row in self._rows(self.heldout_path)}

    def note(self, unit: str, kind: str, steps: int, plan: Sequence[str], warnings: Sequence[str]) -> None:
        """Write notes.json: what examples are called, the kind of run, its length, lines on it, and all warnings so far."""
        said = list(dict.fromkeys([*self.read_notes().get("warnings", []), *warnings]))
        write_json(
            self.path / _NOTES, {"unit": unit, "kind": kind, "steps": steps, "plan": list(plan), "warnings": said}
        )

    def read_notes(self) -> Row:
        """What notes.json says; nothing where there is none."""
        path = self.path / _NOTES
        return read_object(path, "remove the file") if path.exists() else {}

    def _rows(self, path: Path) -> list[Row]:
        if not path.exists():
            return []
        with reading(path, "metrics", "remove the file; the run goes on without the metrics of its beginning"):
            lines = path.read_text("utf-8").split("\n")[:-1]  # what follows the last newline was cut off by a kill
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: not JSON", "remove the line") from error
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise UserError(f"{path}, line {number}: no object with a step", "remove the line")
            rows.append(row)
        return rows

    def forget_evaluation(self, step: int) -> None:
        """Drop what was evaluated after ``step``, above 0; the metrics of its update stay."""
        if step > 0:
            is_update = [
                row
                for row in self.read_metrics()
                if row["step"] != step or not any(name.startswith(PREFIX) for name in row)
            ]
            self._keep(self.metrics_path, is_update)
            self._keep(self.heldout_path, [row for row in self._rows(self.heldout_path) if row["step"] != step])

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps beyond ``step``, which a continued run will write again."""
        for path in (self.metrics_path, self.heldout_path):
            self._keep(path, [row for row in self._rows(path) if row["step"] <= step])
        spent = max((float(row.get("seconds", 0.0)) for row in self.read_metrics()), default=0.0)
        self._clock_start = time.monotonic() - spent

    def _keep(self, path: Path, rows: Sequence[Row]) -> None:
        if rows or path == self.metrics_path:
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        else:
            path.unlink(missing_ok=True)

    def save_checkpoint(
        self,
        step: int,
        states: Mapping[str, Mapping[str, Tensor]],
        state: object,
        save_weights: Callable[[Path], None] = lambda folder: None,
    ) -> Path:
        """Write ``checkpoints/step-N``, whole or not at all."""
        return checkpoints.save_checkpoint(self.path / CHECKPOINTS, step, states, state, save_weights)

    def prune(self, keep: int) -> None:
        """Remove all checkpoints but the newest ``keep`` and that of the best step."""
        best = best_step(self.path)
        checkpoints.prune(self.path, keep, [] if best is None else [best])

    def mark_best(self, step: int, metric: str, value: float) -> None:
        """Say which step is the best, by the ``value`` of a ``metric``; its checkpoint stays."""
        place = self.place_of(step).relative_to(self.path).as_posix()
        write_json(self.path / BEST, {"step": step, "metric": metric, "value": value, "checkpoint": place})

    def forget_best(self) -> None:
        """No step is the best."""
        (self.path / BEST).unlink(missing_ok=True)

    def read_best(self) -> tuple[int, str, float] | None:
        """What ``mark_best`` said: step, metric and value; None where no step is marked. Raises UserError."""
        if best_step(self.path) is None:
            return None
        best = read_object(self.path / BEST, "remove the file", ["step", "metric", "value"])
        return int(best["step"]), str(best["metric"]), float(best["value"])

    def place_of(self, step: int) -> Path:
        """The folder of the checkpoint of ``step``."""
        return self.path / CHECKPOINTS / checkpoints.checkpoint_name(step)

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return list(checkpoint_steps(self.path).values())

    def load_checkpoint(self) -> tuple[int, dict[str, dict[str, Tensor]], dict[str, object]] | None:
        """The newest checkpoint: step, tensors by state and name, state of optimizer and run; None where there is none."""
        saved = self.checkpoints()
        return checkpoints.load_checkpoint(saved[-1]) if saved else None


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written: {error.strerror}", "choose another output_dir")


def _append(path: Path, row: Mapping[str, object]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(row)) + "\n")
