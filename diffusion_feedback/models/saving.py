"""Weights on their way to the disk: written beside and moved into place, so that no file stands half-written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import UserError, first_line
from ..records import permit, sync

_BESIDE = ".saving.tmp"
# What makes a folder one that can be loaded comes last.
_INDEXES = ("model_index.json", "config.json", "adapter_config.json")

# Patterns of what ``save_pretrained`` writes: for a tokenizer, for a transformers model, and for an adapter of one.
TOKENIZER_FILES = (
    "tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
TRANSFORMER_FILES = ("config.json", "model*.safetensors*", "generation_config.json")
ADAPTER_FILES = ("adapter_*",)


@contextmanager
def saving(folder: Path) -> Iterator[Path]:
    """Yield an empty folder within ``folder``; at the end what it holds replaces what ``folder`` has of these names.

    Each file or subfolder stands under its name only when it is whole and on the disk. Raises UserError where it cannot
    be written, whatever a library calls a full disk.
    """
    beside = folder / _BESIDE
    try:
        shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
        beside.mkdir(parents=True)
        yield beside
        for entry in sorted(beside.iterdir(), key=lambda entry: (entry.name in _INDEXES, entry.name)):
            _move(entry, folder / entry.name)
    except Exception as error:
        # The writer of tokenizers raises a bare Exception that quotes the system's error.
        if not isinstance(error, (OSError, SafetensorError)) and "os error" not in str(error):
            raise
        problem = f"{folder}: the weights could not be written: {first_line(error)}"
        raise UserError(problem, "make room, or correct what it says, and run it again") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _move(entry: Path, place: Path) -> None:
    """Bring ``entry`` down to the disk, readable for whom the user's mask says, and put it in the place of ``place``."""
    for path in [entry, *entry.rglob("*")]:
        permit(path)
        sync(path)
    if place.is_dir() and entry.is_dir():
        shutil.rmtree(place)
    os.replace(entry, place)
    sync(place.parent)
