"""Checkpoints of a run: ``step-000100/``, whole or absent, with checksums that are verified before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError, first_line, is_out_of_memory
from ..foreign import reading
from ..records import atomic_folder

CHECKSUMS = "checksums.json"
_NAME = re.compile(r"step-(\d{6,})")
_STATE = "optimizer.pt"


def existing(folder: Path) -> list[Path]:
    """Whole checkpoints in ``folder``, oldest first; what else lies there (copies, notes) is none and is left alone."""
    checkpoints = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(checkpoints, key=step_number)


def step_number(checkpoint: Path) -> int:
    """The step after which ``checkpoint`` was written."""
    return int(checkpoint.name.removeprefix("step-"))


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: object, keep: int
) -> Path:
    """Write ``step-N`` beside and rename it, all on the disk before it bears its name; keep the newest ``keep``.

    Raises UserError where that fails; what was there before is then still there.
    """
    final = folder / f"step-{step:06d}"
    try:
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        with atomic_folder(final) as beside:
            for name, values in tensors.items():
                save_file({key: value.contiguous() for key, value in values.items()}, beside / f"{name}.safetensors")
            _save_state(state, beside / _STATE)
            sums = {path.name: _sha256(path) for path in sorted(beside.iterdir())}
            (beside / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n", "utf-8")
    except (OSError, SafetensorError) as error:
        problem = f"{final}: the checkpoint could not be written: {first_line(error)}"
        raise UserError(problem, "make room; `resume` goes on from the checkpoint before it") from error
    for old in existing(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def fingerprint(checkpoint: Path) -> str:
    """The hash of the checksums of ``checkpoint``, by which two copies of it can be compared; empty without them."""
    path = checkpoint / CHECKSUMS
    return _sha256(path)[:16] if path.is_file() else ""


def remedy_for(checkpoint: Path) -> str:
    """How to go on where ``checkpoint`` cannot be used."""
    before = [path for path in existing(checkpoint.parent) if step_number(path) < step_number(checkpoint)]
    if not before:
        return "there is no checkpoint before it: start over with `overwrite`"
    return f"remove the folder {checkpoint}, and `resume` goes on from {before[-1].name}, the checkpoint before it"


def load_checkpoint(checkpoint: Path) -> tuple[int, dict[str, dict[str, Tensor]], dict[str, object]]:
    """Step, tensors by the name of their file, and state of ``checkpoint``.

    Raises UserError naming the file that is missing, differs from its checksum, or cannot be read, and how to go on.
    """
    remedy = remedy_for(checkpoint)
    sums = _checksums(checkpoint, remedy)
    for name, expected in sums.items():
        path = checkpoint / name
        if not path.is_file():
            raise UserError(f"{checkpoint}: the checkpoint cannot be read: {name} is missing", remedy)
        if expected is not None and _sha256(path) != expected:
            problem = f"{name} is not what was written (its sha256 differs from the one in {CHECKSUMS})"
            raise UserError(f"{checkpoint}: the checkpoint cannot be read: {problem}", remedy)
    tensors: dict[str, dict[str, Tensor]] = {}
    state: Any = None
    for name in sums:
        with reading(checkpoint / name, "part of a checkpoint", remedy):
            if name == _STATE:
                state = torch.load(checkpoint / name, weights_only=True, map_location="cpu")
            else:
                tensors[name.removesuffix(".safetensors")] = load_file(checkpoint / name)
    if not isinstance(state, dict) or "optimizer" not in state:
        raise UserError(f"{checkpoint / _STATE}: holds no state of an optimizer", remedy)
    return step_number(checkpoint), tensors, state


def _checksums(checkpoint: Path, remedy: str) -> dict[str, str | None]:
    """Files of ``checkpoint`` to their checksums; to None, with a warning, where there are none."""
    path = checkpoint / CHECKSUMS
    if not path.exists():
        warnings.warn(f"{checkpoint}: holds no {CHECKSUMS}, so that damage cannot be detected", stacklevel=3)
        return dict.fromkeys((*sorted(each.name for each in checkpoint.glob("*.safetensors")), _STATE))
    with reading(path, "checksums", remedy):
        sums = json.loads(path.read_text("utf-8"))
        names_ok = isinstance(sums, dict) and _STATE in sums and all(map(_is_part, sums, sums.values()))
    if not names_ok:
        raise UserError(f"{path}: the checkpoint cannot be read: this is no list of its files", remedy)
    return dict(sums)


def _is_part(name: str, digest: object) -> bool:
    return (name == _STATE or name.endswith(".safetensors")) and "/" not in name and isinstance(digest, str)


def fitting(
    file: str, saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor], checkpoint: Path
) -> Mapping[str, Tensor]:
    """``saved``, which must have the names and shapes of ``wanted`` and hold numbers alone. Raises UserError."""
    missing, foreign = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
    shapes = [name for name in wanted if name in saved and saved[name].shape != wanted[name].shape]
    problems = [f"{len(missing)} tensors are missing, {missing[0]} among them"] if missing else []
    problems += [f"{len(foreign)} are not of this run, {foreign[0]} among them"] if foreign else []
    problems += [
        f"{name} has the shape {tuple(saved[name].shape)} for {tuple(wanted[name].shape)}" for name in shapes[:1]
    ]
    broken = first_not_finite({name: saved[name] for name in wanted if name in saved})
    problems += [f"{broken} holds values that are not finite"] if broken else []
    if problems:
        raise UserError(f"{checkpoint / file}.safetensors: {'; '.join(problems)}", remedy_for(checkpoint))
    return saved


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first of ``tensors`` that holds NaN or infinity; None where all are numbers."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return name
    return None


def _save_state(state: object, path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:  # torch's way to say that the disk is full
        if is_out_of_memory(error):
            raise
        raise OSError(str(error)) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
