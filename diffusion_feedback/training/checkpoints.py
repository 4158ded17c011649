"""Checkpoints of a run: ``step-000100/``, whole or absent, with checksums that are verified before anything is loaded.

A checkpoint is a result: its folder holds the weights as the run's own folder does at the end, and plain libraries load
it. ``resume/`` holds what training goes on from besides: optimizer, states, and tensors that stand in no file of the result.
Those of older versions hold that alone, in the checkpoint itself.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError, first_line, is_out_of_memory
from ..foreign import reading
from ..records import atomic_folder
from ..runs import checkpoint_steps
from .stored_weights import PLACES, Places, checked_name, load_stored, read_places, split_stored

CHECKSUMS = "checksums.json"
RESUME = "resume"
_STATE = "optimizer.pt"


def checkpoint_name(step: int) -> str:
    """What the checkpoint of ``step`` is called."""
    return f"step-{step:06d}"


def step_number(checkpoint: Path) -> int:
    """The step after which ``checkpoint`` was written."""
    return int(checkpoint.name.removeprefix("step-"))


def save_checkpoint(
    folder: Path,
    step: int,
    states: Mapping[str, Mapping[str, Tensor]],
    state: object,
    save_weights: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Write ``step-N`` beside and rename it, all on the disk before it bears its name.

    ``save_weights`` writes what plain libraries load into the folder that it is given; what of ``states`` stands there bit
    for bit is not written again. Raises UserError where that fails; what was there before is then still there.
    """
    final = folder / checkpoint_name(step)
    try:
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        with atomic_folder(final) as beside:
            save_weights(beside)
            own = beside / RESUME
            own.mkdir()
            places, rest = split_stored(beside, states)
            for name, values in rest.items():
                save_file(values, own / f"{name}.safetensors")
            (own / PLACES).write_text(json.dumps(places, indent=1) + "\n", "utf-8")
            _save_state(state, own / _STATE)
            files = sorted(path for path in beside.rglob("*") if path.is_file())
            sums = {path.relative_to(beside).as_posix(): _sha256(path) for path in files}
            (beside / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n", "utf-8")
    except (OSError, SafetensorError) as error:
        problem = f"{final}: the checkpoint could not be written: {first_line(error)}"
        raise UserError(problem, "make room; `resume` goes on from the checkpoint before it") from error
    return final


def forget_shared(folder: Path, raw: Path) -> None:
    """Remove from ``raw`` the parts of a model that ``folder`` has too: those in subfolders whose weights are the same.

    What is left of a pipeline then is the network that was trained, which loads by itself.
    """
    parts = [part for part in raw.glob("*/") if any(part.iterdir())]
    shared = [part for part in parts if all(_same(file, folder / file.relative_to(raw)) for file in part.iterdir())]
    for part in shared:
        shutil.rmtree(part)
    if shared:
        (raw / "model_index.json").unlink(missing_ok=True)


def _same(file: Path, other: Path) -> bool:
    return file.is_file() and other.is_file() and filecmp.cmp(file, other, shallow=False)


def prune(run: Path, keep: int, spared: Collection[int] = ()) -> None:
    """Remove all checkpoints of the run in ``run`` but the newest ``keep``, and those of the steps ``spared``."""
    steps = checkpoint_steps(run)
    for step in list(steps)[:-keep]:
        if step not in spared:
            # Under a name that no checkpoint has, so that half of one is never taken for a whole one.
            leaving = steps[step].with_name(f".{steps[step].name}.tmp")
            shutil.rmtree(leaving, ignore_errors=True)
            steps[step].rename(leaving)
            shutil.rmtree(leaving)


def fingerprint(checkpoint: Path) -> str:
    """The hash of the checksums of ``checkpoint``, by which two copies of it can be compared; empty without them."""
    path = checkpoint / CHECKSUMS
    return _sha256(path)[:16] if path.is_file() else ""


def state_folder(checkpoint: Path) -> Path:
    """Where ``checkpoint`` keeps what a run goes on from; older ones have it beside the weights."""
    return checkpoint / RESUME if (checkpoint / RESUME).is_dir() else checkpoint


def remedy_for(checkpoint: Path) -> str:
    """How to go on where ``checkpoint`` cannot be used."""
    steps = checkpoint_steps(checkpoint.parent.parent)
    before = [path for step, path in steps.items() if step < step_number(checkpoint)]
    if not before:
        return "there is no checkpoint before it: start over with `overwrite`"
    return f"remove the folder {checkpoint}, and `resume` goes on from {before[-1].name}, the checkpoint before it"


def load_checkpoint(checkpoint: Path) -> tuple[int, dict[str, dict[str, Tensor]], dict[str, object]]:
    """Step, tensors by the name of their state, and state of the optimizer and the run in ``checkpoint``.

    Raises UserError naming the file that is missing, differs from its checksum, or cannot be read, and how to go on.
    """
    remedy = remedy_for(checkpoint)
    own = state_folder(checkpoint)
    sums = _checksums(checkpoint, own, remedy)
    parts = sorted(name for name in sums if (checkpoint / name).parent == own)
    places: Places = {}
    if own != checkpoint:
        _verify(checkpoint, f"{RESUME}/{PLACES}", sums, remedy)
        places = read_places(own / PLACES, remedy)
    borrowed = sorted({file for stored in places.values() for file, _ in stored.values()})
    for name in (*parts, *borrowed):
        _verify(checkpoint, name, sums, remedy)
    tensors: dict[str, dict[str, Tensor]] = {}
    for state, stored in places.items():
        with reading(checkpoint, "a checkpoint", remedy):
            tensors[state] = load_stored(checkpoint, stored.items())
    for name in parts:
        with reading(checkpoint / name, "part of a checkpoint", remedy):
            if name.endswith(".safetensors"):
                tensors.setdefault((checkpoint / name).stem, {}).update(load_file(checkpoint / name))
    with reading(own / _STATE, "part of a checkpoint", remedy):
        state_of_run: Any = torch.load(own / _STATE, weights_only=True, map_location="cpu")
    if not isinstance(state_of_run, dict) or "optimizer" not in state_of_run:
        raise UserError(f"{own / _STATE}: holds no state of an optimizer", remedy)
    return step_number(checkpoint), tensors, state_of_run


def _verify(checkpoint: Path, name: str, sums: Mapping[str, str | None], remedy: str) -> None:
    """Raise UserError unless the file ``name`` is there, and is what was written."""
    path = checkpoint / name
    if not path.is_file():
        raise UserError(f"{checkpoint}: the checkpoint cannot be read: {name} is missing", remedy)
    expected = sums.get(name)
    if expected is not None and _sha256(path) != expected:
        problem = f"{name} is not what was written (its sha256 differs from the one in {CHECKSUMS})"
        raise UserError(f"{checkpoint}: the checkpoint cannot be read: {problem}", remedy)


def _checksums(checkpoint: Path, own: Path, remedy: str) -> dict[str, str | None]:
    """Files of ``checkpoint`` to their checksums; to None, with a warning, where there are none.

    ``own`` is the folder with the state, which must be among them.
    """
    path = checkpoint / CHECKSUMS
    state = (own / _STATE).relative_to(checkpoint).as_posix()
    if not path.exists():
        warnings.warn(f"{checkpoint}: holds no {CHECKSUMS}, so that damage cannot be detected", stacklevel=3)
        names = [file.relative_to(checkpoint).as_posix() for file in sorted(own.glob("*.safetensors"))]
        return dict.fromkeys((*names, state))
    with reading(path, "checksums", remedy):
        sums = json.loads(path.read_text("utf-8"))
        if not isinstance(sums, dict) or state not in sums or not all(isinstance(each, str) for each in sums.values()):
            raise UserError(f"{path}: the checkpoint cannot be read: this is no list of its files", remedy)
    return {checked_name(name, path, remedy): digest for name, digest in sums.items()}


def fitting(
    state: str, saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor], checkpoint: Path
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
        raise UserError(f"{checkpoint}, {state}: {'; '.join(problems)}", remedy_for(checkpoint))
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
