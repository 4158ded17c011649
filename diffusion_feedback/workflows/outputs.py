"""Files that are written: that they are not there yet, and that nothing is read from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.image_handles import files_of_pairs
from ..errors import UserError
from ..types.images import ImageItem


def check_output(output: Path, endings: Sequence[str], *, overwrite: bool) -> None:
    """Raise UserError unless ``output`` ends in one of ``endings`` and is not there yet, or may be replaced."""
    if output.suffix not in endings:
        kind = "a parquet file" if list(endings) == [".parquet"] else f"a {' or '.join(endings)} file"
        raise UserError(f"{output}: the output is {kind}", f"give a name that ends in {' or '.join(endings)}")
    if output.exists() and not overwrite:
        raise UserError(f"{output}: exists already", "give another name, or `overwrite` to replace it")


def check_empty(folder: Path, *, overwrite: bool) -> None:
    """Raise UserError unless ``folder`` is a folder without files, or its files may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file", "choose another `output_dir`")
    if folder.is_dir() and any(folder.glob("[!.]*")) and not overwrite:
        raise UserError(f"{folder}: holds files already", "choose another `output_dir`, or give `overwrite`")


def check_not_input(output: Path, items: Sequence[ImageItem], *others: str | None) -> None:
    """Raise UserError where ``output`` would replace a file that ``items`` are read from, or one of the ``others``."""
    read = files_of_pairs(items) | {Path(name).resolve() for name in others if name}
    if output.resolve() in read:
        raise UserError(f"{output}: is an input, and would be lost", "give another name for the output")
