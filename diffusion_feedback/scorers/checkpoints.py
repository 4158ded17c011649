"""Weights from files that a stranger made: code in them never runs, and a wrong architecture is named."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a ``.safetensors`` file or of a torch pickle, bare or under ``state_dict``; on the CPU.

    A pickle is read with ``weights_only=True``. Raises UserError naming the file where it is missing, is no
    checkpoint, holds code, or holds something else than tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}", "give the file of the weights")
    try:
        content = _read(path)
    except Exception as error:  # a stranger's bytes: the unpickler may fail in any way
        raise _refusal(path, error) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise UserError(f"{path}: holds no state dict (tensors by name)", "give the file of the weights")
    for name, value in content.items():
        if value.layout != torch.strided or value.is_complex() or value.is_quantized:
            kind = f"{value.dtype}, {value.layout}".replace("torch.", "")
            raise UserError(
                f"{path}: {name} is no plain tensor ({kind})", "give weights of real numbers, not quantized"
            )
    return {str(name): value for name, value in content.items()}


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        return load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols that it may not know; what it cannot read is raised
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_can_map(path))


def _refusal(path: Path, error: Exception) -> UserError:
    # torch's own message advises to switch the protection off, so only the name of what it met is passed on.
    if isinstance(error, pickle.UnpicklingError) and (met := re.search(r"GLOBAL (\S+)", str(error))):
        remedy = "get the weights as .safetensors, or as a plain state dict"
        return UserError(f"{path}: refused, it holds code or objects besides weights ({met[1]})", remedy)
    reason = f": {error}" if isinstance(error, SafetensorError | RuntimeError | OSError) else ""
    return UserError(f"{path}: not a checkpoint ({type(error).__name__}{reason})", "download the file again")


def _can_map(path: Path) -> bool:
    """Whether torch can map the file: checkpoints of its zip format; the old ones are read into memory."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def fill(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    published: Callable[[str], str] = lambda name: name,
) -> None:
    """Load ``state`` into ``module``, every tensor of both; ``published`` maps the module's names to those of ``state``.

    A module on the meta device takes the tensors of ``state`` themselves, without a copy and in their precision.
    Raises UserError naming ``source`` and what does not fit, in the names of ``state``.
    """
    own = module.state_dict()
    wanted = {published(name): value for name, value in own.items()}
    missing, unknown = [n for n in wanted if n not in state], [n for n in state if n not in wanted]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    kinds = [
        f"{name} holds {str(state[name].dtype).removeprefix('torch.')}"
        for name, value in wanted.items()
        if name in state and state[name].is_floating_point() != value.is_floating_point()
    ]
    if kinds:
        raise UserError(f"{source}: not weights as they are computed with: {kinds[0]}", "give the original weights")
    if missing or unknown or shapes:
        counts = f"{len(missing)} tensors missing, {len(unknown)} unknown, {len(shapes)} of another shape"
        first = next(iter([*shapes, *(f"missing {name}" for name in missing), *(f"unknown {n}" for n in unknown)]))
        raise UserError(f"{source}: weights of another architecture: {counts}; {first}", "give this scorer's weights")
    bare = any(value.is_meta for value in own.values())
    module.load_state_dict({name: state[published(name)] for name in own}, assign=bare)
