"""Files and folders that a call writes: not there yet, kept from others meanwhile, and nothing that is read from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

from ..data.image_handles import files_of_pairs
from ..errors import UserError
from ..folders import expand, hold_file, hold_folder
from ..types.images import ImageItem


@contextmanager
def output_file(
    output: str | Path | None, endings: Sequence[str], work: str, *, overwrite: bool
) -> Iterator[Path | None]:
    """The file that ``work`` writes, kept from others meanwhile; None where it writes none.

    Raises UserError unless it ends in one of ``endings`` and is not there yet, or may be replaced.
    """
    if output is None:
        _refuse_overwrite("output", overwrite)
        yield None
        return
    path = expand(output)
    if path.suffix not in endings:
        kind = "a parquet file" if list(endings) == [".parquet"] else f"a {' or '.join(endings)} file"
        raise UserError(f"{path}: the output is {kind}", f"give a name that ends in {' or '.join(endings)}")
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists already", "give another name, or `overwrite` to replace it")
    with hold_file(path, work):
        yield path


@contextmanager
def output_folder(folder: str | Path | None, work: str, *, overwrite: bool) -> Iterator[Path | None]:
    """``output_file`` for a folder. Raises UserError unless it is one without files, or its files may be replaced."""
    if folder is None:
        _refuse_overwrite("output_dir", overwrite)
        yield None
        return
    path = expand(folder)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file", "choose another `output_dir`")
    if path.is_dir() and any(path.glob("[!.]*")) and not overwrite:
        raise UserError(f"{path}: holds files already", "choose another `output_dir`, or give `overwrite`")
    with hold_folder(path, work):
        yield path


def _refuse_overwrite(output: str, overwrite: bool) -> None:
    if overwrite:
        raise UserError(f"`overwrite`: nothing is written without `{output}`", f"leave it out, or give `{output}`")


def check_not_input(output: Path, items: Sequence[ImageItem], *others: object) -> None:
    """Raise UserError where ``output`` would replace a file that ``items`` are read from, or a path among the ``others``."""
    named = {expand(other).resolve() for other in others if isinstance(other, str | Path)}
    if output.resolve() in files_of_pairs(items) | named:
        raise UserError(f"{output}: is an input, and would be lost", "give another name for the output")


@contextmanager
def hold_output(output_dir: str | Path | None, command: str) -> Iterator[Path]:
    """The folder that ``command`` writes, kept from others. Where none is named, one that goes if the work fails."""
    if output_dir is not None:
        with hold_folder(expand(output_dir), command):
            yield expand(output_dir)
        return
    folder = Path(mkdtemp(prefix=f"{command}-"))
    try:
        yield folder
    except BaseException:
        rmtree(folder, ignore_errors=True)
        raise
