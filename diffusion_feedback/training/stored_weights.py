"""Weights of a checkpoint that plain libraries load, used once more by what the run goes on from: nothing is written twice.

A state names the files and keys that hold its tensors bit for bit; only what none of them holds has a file of its own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import UserError
from ..foreign import reading

PLACES = "weights.json"
Place = tuple[str, str]
"""A file, relative to the checkpoint, and the key of a tensor in it."""
Places = Mapping[str, Mapping[str, Place]]
"""By state and by the name of a tensor in it."""

_HEAD = 16  # values by which tensors of one shape differ before all are compared


class StoredTensors:
    """The tensors in all safetensors files of a ``folder``, by what they hold."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[object, list[Place]] = defaultdict(list)
        self._files: dict[str, Any] = {}
        for file in sorted(folder.rglob("*.safetensors")):
            name = file.relative_to(folder).as_posix()
            opened = self._files[name] = safe_open(file, "pt")
            for key in opened.keys():  # noqa: SIM118
                self._known[_mark(opened.get_tensor(key))].append((name, key))

    def place_of(self, value: Tensor) -> Place | None:
        """Where ``value`` (on the CPU) is stored bit for bit; None where it is not."""
        for name, key in self._known.get(_mark(value), ()):
            if torch.equal(self._files[name].get_tensor(key), value):
                return name, key
        return None


def _mark(value: Tensor) -> object:
    head = value.flatten()[:_HEAD].contiguous().view(torch.uint8)
    return value.dtype, tuple(value.shape), bytes(head.numpy())


def split_stored(
    folder: Path, states: Mapping[str, Mapping[str, Tensor]]
) -> tuple[Places, dict[str, dict[str, Tensor]]]:
    """What of the tensors of ``states`` stands in files of ``folder``, and what does not, on the CPU."""
    stored = StoredTensors(folder)
    places: dict[str, dict[str, Place]] = {}
    rest: dict[str, dict[str, Tensor]] = {}
    for state, tensors in states.items():
        places[state], rest[state] = {}, {}
        for name, tensor in tensors.items():
            value = tensor.detach().cpu().contiguous()
            place = stored.place_of(value)
            if place is None:
                rest[state][name] = value
            else:
                places[state][name] = place
    return places, rest


def read_places(path: Path, remedy: str) -> Places:
    """What the file ``path`` says of where tensors stand. Raises UserError, which ends in ``remedy``, for a damaged one."""
    with reading(path, "the places of a checkpoint's weights", remedy):
        content = json.loads(path.read_text("utf-8"))
        return {
            state: {name: (checked_name(file, path, remedy), str(key)) for name, (file, key) in tensors.items()}
            for state, tensors in content.items()
        }


def checked_name(name: object, where: Path, remedy: str) -> str:
    """``name``, which must be that of a file below the checkpoint. Raises UserError for any other place on the disk."""
    if not isinstance(name, str) or name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise UserError(f"{where}: the checkpoint cannot be read: {name!r} is no file of it", remedy)
    return name


def load_stored(checkpoint: Path, places: Iterable[tuple[str, Place]]) -> dict[str, Tensor]:
    """The tensors that stand at ``places`` in ``checkpoint``, by their names; what a file lacks is left out."""
    by_file: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, (file, key) in places:
        by_file[file].append((name, key))
    tensors: dict[str, Tensor] = {}
    for file, keys in by_file.items():
        with safe_open(checkpoint / file, "pt") as opened:
            there = set(opened.keys())
            tensors |= {name: opened.get_tensor(key) for name, key in keys if key in there}
    return tensors
