"""A run's folder, which explains itself: recipe, environment, metrics, samples, checkpoints, weights, model card.

recipe.yaml        the resolved recipe; training reads it back
environment.json   versions and hardware, and patterns of the files that the result is written in
metrics.jsonl      one line a step, and one an evaluation of held-out pairs
samples/           validation grids, or completions, on fixed seeds
checkpoints/       step-000100/..., whole or absent, with checksums
README.md          model card, written last: its presence says that the run is complete
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ..catalog import objective_row
from ..config.sources import is_object, user_sources
from ..documents import read_object, read_yaml
from ..errors import UserError
from ..folders import ROUNDS
from ..foreign import reading
from ..output_folders import OutputKind, check_writable, flat
from ..records import write_json, write_text
from . import checkpoints

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "datasets", "safetensors", "pillow", "numpy")
_ENVIRONMENT = "environment.json"
_CODE = "code"  # of the user's own, in environment.json
_FILE_PATTERN = re.compile(r"[\w-][\w.*-]*")
TRACKED = "diffusion-feedback"  # project of the trackers, and the folder in which TensorBoard's files stand
_RUNS = OutputKind(
    mark="recipe.yaml",
    own=("README.md", "metrics.jsonl", "checkpoints", "samples", TRACKED),
    # These may differ between a run and its continuation: they change neither data, draws nor updates.
    free={
        ("training", "checkpointing_steps"),
        ("training", "checkpoints_total_limit"),
        ("training", "report_to"),
        ("data", "cache_dir"),
        ("validation",),
        ("output_dir",),
    },
    foreign="is there and is no run",
    changed="`resume` with another {key}: {old} became {new}",
    changed_remedy="resume with the run's own recipe.yaml, or choose another output_dir",
)
# Neither do these, up to rounding, as long as the examples of one step are as many; not so where the loss of one example
# depends on the others of its pass. Whoever runs out of memory needs them.
_GEOMETRY = {
    ("training", "train_batch_size"),
    ("training", "gradient_accumulation_steps"),
    ("text", "max_tokens_per_pass"),
    ("model", "gradient_checkpointing"),
}


def environment() -> dict[str, object]:
    """Versions and hardware that a reader needs to repeat the run."""
    from .. import __version__

    versions = {name: metadata.version(name) for name in PACKAGES}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    system = {"python": platform.python_version(), "platform": platform.platform(), "device": device}
    return {"diffusion-feedback": __version__, **versions, **system, "threads": torch.get_num_threads()}


class RunFolder:
    """The folder of one run; all writing is done by the main process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def metrics_path(self) -> Path:
        """Where the metrics stand."""
        return self.path / "metrics.jsonl"

    def is_complete(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "README.md").exists()

    def check_free(self, recipe: Mapping[str, object], *, resume: bool, overwrite: bool) -> None:
        """Raise UserError where ``open`` would: before minutes go into loading a model. Writes nothing."""
        if (self.path / ROUNDS).exists():
            raise UserError(f"{self.path}: holds rounds", "choose another output_dir")
        _RUNS.check_own(self.path)
        if _RUNS.is_marked(self.path):
            if resume:
                self._check_same(recipe)
                self._check_code(recipe)
            elif not overwrite:
                remedy = "continue it with `resume`, replace it with `overwrite`, or choose another output_dir"
                raise UserError(f"{self.path}: already holds a run", remedy)
        check_writable(self.path)

    def open(
        self, recipe: Mapping[str, object], written_files: Sequence[str] = (), *, resume: bool, overwrite: bool
    ) -> None:
        """Start or continue a run here, whose result is written in ``written_files`` (patterns, as of ``Path.glob``).

        A new run removes what the one before it says that it wrote, and what might be taken for its own result. Raises
        UserError for a folder that holds something else, or cannot be written.
        """
        self.check_free(recipe, resume=resume, overwrite=overwrite)
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
                facts = {**environment(), **code, "written_files": list(written_files)}
                write_json(self.path / _ENVIRONMENT, facts)
            else:
                _RUNS.write_mark(self.path, content)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}", "choose another output_dir") from error

    def _recorded_files(self) -> list[str]:
        """What the run that is here says that it writes; nothing that is not a plain name or pattern of one."""
        try:
            recorded = json.loads((self.path / _ENVIRONMENT).read_text("utf-8"))["written_files"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []
        return (
            [str(name) for name in recorded if _FILE_PATTERN.fullmatch(str(name))] if isinstance(recorded, list) else []
        )

    def _check_same(self, new: Mapping[str, object]) -> None:
        """Raise UserError where the recipe that is here differs from ``new`` in what decides a run, or is none."""
        path, remedy = self.path / "recipe.yaml", "start over with `overwrite`, or choose another output_dir"
        old = read_yaml(path, remedy)
        if not isinstance(old, dict):
            raise UserError(f"{path}: holds no recipe but {type(old).__name__}", remedy)
        name = flat(new).get(("objective", "name"))
        # Of an objective that is an object nobody can tell here whether examples depend on each other.
        is_coupled = name is not None and (is_object(name) or objective_row(name).is_coupled)
        kind = _RUNS if is_coupled else replace(_RUNS, free={*_RUNS.free, *_GEOMETRY})
        kind.check_same(self.path, old, new)

    def _check_code(self, recipe: Mapping[str, object]) -> None:
        """Raise UserError where the user's own code is not what the run began with."""
        path, remedy = self.path / _ENVIRONMENT, "start over with `overwrite`, or choose another output_dir"
        code = user_sources(recipe)
        before = read_object(path, remedy).get(_CODE, code) if code and path.exists() else code
        for name, now in code.items():
            if before.get(name) != now:
                problem = f"{self.path}: `resume` with another {name}: its file has changed since the run began"
                raise UserError(problem, f"bring back the file as it was, or {remedy}")

    def log(self, row: Mapping[str, object]) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl. Raises UserError naming a line that is no JSON object with a step."""
        path = self.metrics_path
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

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps beyond ``step``, which a continued run will write again."""
        rows = [row for row in self.read_metrics() if row["step"] <= step]
        write_text(self.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))

    def save_checkpoint(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: object, keep: int) -> None:
        """Write ``checkpoints/step-N``, whole or not at all; then remove all but the newest ``keep``."""
        checkpoints.save_checkpoint(self._checkpoints, step, tensors, state, keep)

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return checkpoints.existing(self._checkpoints)

    def load_checkpoint(self) -> tuple[int, dict[str, dict[str, Tensor]], dict[str, object]] | None:
        """The newest checkpoint: step, tensors by name, state of optimizer and run; None where there is none."""
        saved = self.checkpoints()
        return checkpoints.load_checkpoint(saved[-1]) if saved else None

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"
