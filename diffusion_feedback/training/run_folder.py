"""A run's folder, which explains itself: recipe, environment, metrics, samples, checkpoints, weights, model card.

recipe.yaml        the resolved recipe; ``dfb train --config`` reads it back
environment.json   versions and hardware
metrics.jsonl      one line a step, and one a look at held-out pairs
samples/           validation grids, or completions, on fixed seeds
checkpoints/       step-000100/..., whole or absent
README.md          model card, written last: its presence says that the run is complete
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError, first_line
from ..folders import ROUNDS
from ..records import atomic_write

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "datasets", "safetensors", "pillow", "numpy")
_WEIGHTS = (
    "pytorch_lora_weights.safetensors",
    "model_index.json",
    "model*.safetensors*",
    "value_heads.safetensors",
    "config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "adapter_*",
    "generation_config.json",
    "chat_template.jinja",
    "tokenizer.model",
)
_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler", "feature_extractor")
# These may differ between a run and its continuation: they change neither data, draws nor updates.
FREE_KEYS = {
    ("training", "checkpointing_steps"),
    ("training", "checkpoints_total_limit"),
    ("training", "report_to"),
    ("data", "cache_dir"),
    ("validation",),
    ("output_dir",),
}


def environment() -> dict[str, Any]:
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

    def check_free(self, recipe: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Raise UserError where ``open`` would: before minutes go into loading a model. Writes nothing."""
        if (self.path / ROUNDS).exists():
            raise UserError(f"{self.path}: holds rounds of dfb rounds", "choose another output_dir")
        if (self.path / "recipe.yaml").exists():
            if resume:
                self._check_same(yaml.safe_load((self.path / "recipe.yaml").read_text()), recipe)
            elif not overwrite:
                remedy = "continue it with --resume, replace it with --overwrite, or choose another output_dir"
                raise UserError(f"{self.path}: already holds a run", remedy)
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.glob("[!.]*"))):
            raise UserError(f"{self.path}: is there and is no run", "choose another output_dir")
        existing = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not os.access(existing, os.W_OK):
            raise UserError(f"{self.path}: {existing} cannot be written", "choose another output_dir")

    def open(self, recipe: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Start or continue a run here. Raises UserError for a folder that holds something else, or cannot be written."""
        self.check_free(recipe, resume=resume, overwrite=overwrite)
        recipe_path = self.path / "recipe.yaml"
        if recipe_path.exists() and not overwrite:
            return
        try:
            if recipe_path.exists():
                self._clear()
            # The recipe comes first: with it in place, a folder whose writer was killed is continued, not refused.
            with atomic_write(recipe_path) as file:
                file.write_text(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True))
            with atomic_write(self.path / "environment.json") as file:
                file.write_text(json.dumps(environment(), indent=2) + "\n")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}", "choose another output_dir") from error

    def _clear(self) -> None:
        """Remove what a run writes and nothing else; the recipe goes last, so that a killed clearing can be repeated."""
        for pattern in ("README.md", "metrics.jsonl", "environment.json", *_WEIGHTS):
            for file in self.path.glob(pattern):
                file.unlink()
        for name in ("checkpoints", "samples", *_PARTS):
            shutil.rmtree(self.path / name, ignore_errors=True)
        (self.path / "recipe.yaml").unlink()

    def _check_same(self, old: Any, new: Mapping[str, Any]) -> None:
        before, after = _flatten(old), _flatten(new)
        differing = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
        for key in differing:
            if not any(key[: len(free)] == free for free in FREE_KEYS):
                problem = (
                    f"{self.path}: --resume with another {'.'.join(key)}: {before.get(key)!r} became {after.get(key)!r}"
                )
                raise UserError(problem, "resume with the run's own recipe.yaml, or choose another output_dir")

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics_path.open("a") as file:
            file.write(json.dumps(dict(row)) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl."""
        if not self.metrics_path.exists():
            return []
        lines = self.metrics_path.read_text().split("\n")[:-1]  # what follows the last newline was cut off by a kill
        found = []
        for number, line in enumerate(lines, start=1):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"{self.metrics_path}, line {number}: not JSON", "remove the line") from error
        return found

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps beyond ``step``, which a continued run will write again."""
        rows = [row for row in self.read_metrics() if row["step"] <= step]
        with atomic_write(self.metrics_path) as file:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def save_checkpoint(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], optimizer: Any, keep: int
    ) -> None:
        """Write ``checkpoints/step-N`` beside and rename it; then remove all but the newest ``keep``."""
        folder = self.path / "checkpoints" / f"step-{step:06d}"
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            for name, values in tensors.items():
                save_file({key: value.contiguous() for key, value in values.items()}, temporary / f"{name}.safetensors")
            _save_optimizer(optimizer, temporary / "optimizer.pt")
        except (OSError, SafetensorError) as error:
            problem = f"{folder}: the checkpoint could not be written: {first_line(error)}"
            raise UserError(problem, "make room; --resume goes on from the checkpoint before it") from error
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old)

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*"))

    def load_checkpoint(self) -> tuple[int, dict[str, dict[str, Tensor]], Any] | None:
        """The newest checkpoint: step, tensors by name, optimizer state; None where there is none."""
        found = self.checkpoints()
        if not found:
            return None
        try:
            tensors = {file.stem: load_file(file) for file in found[-1].glob("*.safetensors")}
            optimizer = torch.load(found[-1] / "optimizer.pt", weights_only=True, map_location="cpu")
        except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            problem = f"{found[-1]}: the checkpoint cannot be read: {first_line(error)}"
            raise UserError(problem, "remove the folder to go on from the checkpoint before it") from error
        return int(found[-1].name.removeprefix("step-")), tensors, optimizer


def _save_optimizer(state: Any, path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:  # torch's way to say that the disk is full
        raise OSError(str(error)) from error


def _flatten(value: Any, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(value, Mapping):
        return {
            key: item for name, inner in value.items() for key, item in _flatten(inner, (*prefix, str(name))).items()
        }
    return {prefix: value}
