"""Output folders: that they can be written, and that no input of a command lies in what it is about to replace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .errors import UserError

ROUNDS = "identity.json"  # stands in a folder of rounds, and in no other


def make_folder(folder: Path) -> None:
    """Make ``folder`` and its parents. Raises UserError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}", "choose another output_dir") from error


def check_outside(folder: Path, inputs: Mapping[str, str | None]) -> None:
    """Raise UserError where one of ``inputs`` (paths by their flags or keys) is ``folder`` or lies in it.

    What is no path on this disk, as hub ids, lies nowhere.
    """
    place = folder.expanduser().resolve()
    for name, given in inputs.items():
        path = Path(given).expanduser().resolve() if given else None
        if path is not None and path.exists() and (path == place or place in path.parents):
            raise UserError(f"{name}: {given} lies in {folder}, which this command writes", "choose another output_dir")
