"""What a training run gives back: its folder, its metrics, and the tuned model as its own library loads it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ...config.recipe import Recipe
from ...errors import UserError
from ...folders import expand
from ...models.loaded import load_adapters_onto
from ...runs import best_step, holds_pipeline_adapter, is_model, weights_of
from ...training.run_folder import RunFolder
from .base_model import load_named_model, source_of
from .given import Given

Row = dict[str, Any]
_VALIDATION = "validation/"


@dataclass(frozen=True)
class Run:
    """A training run.

    Args:
        recipe: What was trained, with all defaults; an object in the place of a name stands there in angle brackets.
        path: The run's folder.
        plan: Lines on what is trained, by how many steps, and on the memory that it takes; of a dry run alone.
    """

    recipe: Recipe = field(repr=False)
    path: Path
    plan: Sequence[str] = ()
    given: Given = field(default_factory=Given, repr=False)

    @property
    def metrics(self) -> list[Row]:
        """One row a step, from the first one: ``step``, ``loss``, ``grad_norm``, ``lr`` and what the objective tells."""
        return [row for row in self._rows() if row["step"] and not _is_evaluation(row)]

    @property
    def evaluations(self) -> list[Row]:
        """One row an evaluation: ``step``, and metrics on held-out data."""
        rows = (row for row in self._rows() if _is_evaluation(row))
        return [{key.removeprefix(_VALIDATION): value for key, value in row.items()} for row in rows]

    def _rows(self) -> list[Row]:
        return RunFolder(self.path).read_metrics()

    @property
    def report(self) -> Path:
        """The model card, which is written last."""
        return self.path / "README.md"

    @property
    def is_whole(self) -> bool:
        """Whether the result is a model by itself, not adapters over one."""
        return is_model(self.path)

    @property
    def best(self) -> int | None:
        """The step that was the best by ``validation.keep_best``; None where the run keeps none."""
        return best_step(self.path)

    def load(self, step: int | Literal["best", "last"] | None = None) -> Any:
        """The tuned model: a diffusers pipeline or a transformers model, in float32, on the CPU.

        ``step``: of the checkpoint that is loaded in place of the result. Where the model was handed in as an object and
        tuned by adapters, it is that object, with the adapters on. Raises UserError for a run that is not finished, and a
        step that is not there.
        """
        if step is None and not self.report.exists():
            raise UserError(f"{self.path}: the run is not finished", "train it with `resume`, or give a step")
        path = str(self.path) if step is None else weights_of(f"{self.path}@{step}")
        is_adapter = not is_model(Path(path))
        if self.given.model is not None and is_adapter:
            return load_adapters_onto(self.given.model, Path(path))
        source = source_of(self.recipe, path)
        if is_adapter and holds_pipeline_adapter(Path(path)):
            base = self.recipe.model.pretrained_model_name_or_path
            path, source = base, replace(source_of(self.recipe, base), lora=path)
        return load_named_model(path, source).library_model

    def save(self, path: str | Path) -> Path:
        """Copy the result to ``path``: weights, recipe, metrics and card, without checkpoints. Raises UserError where it is."""
        target = expand(path)
        if target.exists():
            raise UserError(f"{target}: is there already", "choose another path")
        shutil.copytree(self.path, target, ignore=shutil.ignore_patterns("checkpoints", ".*"))
        return target


def _is_evaluation(row: Row) -> bool:
    return any(key.startswith(_VALIDATION) for key in row)
