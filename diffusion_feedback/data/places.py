"""Where data lies: files of one split in a folder, files under a glob, or a data set on the hub."""

from __future__ import annotations

import glob
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from ..errors import UserError, first_line, is_out_of_memory
from ..folders import check_no_address
from ..foreign import reading

if TYPE_CHECKING:
    from datasets import Dataset as Dataset

_SPLITS = ("train", "validation", "valid", "val", "dev", "test", "validation_unique", "test_unique")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_PREFIX = "hf://datasets/"
_DAY = 24 * 3600.0
_GLOB = re.compile(r"[*?\[]")

GIVEN = "data set in memory"
"""The name of a data set that is given as such."""


def name_of_data(given: str | Path | Dataset) -> str:
    """What messages call the data set ``given``."""
    return str(given) if isinstance(given, str | Path) else GIVEN


def stamp_of(file: Path) -> tuple[int, int]:
    """Size, bytes, and time of the last change, ns: whoever has seen the file so need not read it again.

    Raises UserError where the file is gone.
    """
    try:
        status = file.stat()
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({reason(error)})", "put the file in its place") from error
    return status.st_size, status.st_mtime_ns


def check_regular(file: Path) -> os.stat_result:
    """The status of ``file``, followed through links. Raises OSError for a folder, device or pipe: no end of it is sure.

    ValueError for a name that cannot be one, as with a NUL in it.
    """
    status = os.stat(file)
    mode = status.st_mode
    if stat.S_ISREG(mode):
        return status
    kinds = [(stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket")]
    kind = next((name for is_kind, name in kinds if is_kind(mode)), "a device")
    raise OSError(None, f"is {kind}, not a file", str(file))


def read_regular(file: Path) -> bytes:
    """The bytes of ``file``. Raises OSError and ValueError as ``check_regular``, and where it cannot be read."""
    check_regular(file)
    return file.read_bytes()


def reason(error: OSError | ValueError) -> str:
    """Why a file could not be read, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)


def sweep_old(folder: Path) -> None:
    """Remove what killed processes left half-written; young files may belong to one that is still writing."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - _DAY:
                path.unlink()


def user_path(name: str) -> Path:
    """``name`` as a path, ~ being the home. Raises UserError for what can be none on this machine."""
    check_no_address(name)
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, no such user
        raise UserError(f"{name!r}: cannot be a path ({first_line(error)})", "check the path") from error
    return path


def check_not_inside(output: Path, folders: Iterable[str]) -> None:
    """Raise UserError where ``output`` would lie in one of the ``folders`` of pairs: it would be read with them next time."""
    for name in folders:
        folder = Path(name).expanduser()
        if folder.is_dir() and output.expanduser().resolve().is_relative_to(folder.resolve()):
            problem = f"{output}: lies in {name}, whose files are read: the next reading would take it for one of them"
            raise UserError(problem, "write it elsewhere")


def check_is_one(name: str) -> None:
    """Raise UserError where ``name`` lists several data sets."""
    parts = [part.strip() for part in re.split(r"[,;]", name)]
    if len(parts) > 1 and any(part and user_path(part).exists() for part in parts):
        remedy = f"a recipe takes a list of them: data.train: [{', '.join(part for part in parts if part)}]"
        raise UserError(f"{name}: {len(parts)} data sets, where one is read", remedy)


def is_saved(folder: Path) -> bool:
    """Whether ``folder`` was written by datasets' save_to_disk: a data set (state.json) or a dictionary of splits."""
    names = ("dataset_dict.json", "state.json")
    return any((folder / name).is_file() for name in names) and (
        (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file()
    )


def is_glob(name: str) -> bool:
    """Whether ``name`` stands for all files of like names."""
    return bool(_GLOB.search(name))


def glob_files(name: str, suffixes: Sequence[str]) -> list[Path]:
    """The files that the glob ``name`` stands for and that end in one of ``suffixes``, sorted."""
    if "\0" in name:  # which no file's name holds, and the disk is not read for
        return []
    names = glob.glob(str(Path(name).expanduser()), recursive=True)
    return sorted(Path(file) for file in names if file.lower().endswith(tuple(suffixes)))


def hub_id(name: str, suffixes: Sequence[str]) -> str | None:
    """The hub's id for ``name`` where it is one: owner/name, or hf://datasets/owner/name."""
    path = Path(name).expanduser()
    if name.startswith(_HUB_PREFIX):
        return name.removeprefix(_HUB_PREFIX)
    # Where the folder exists, a file in it was meant: better to say so at once than to ask the hub for it.
    is_id = bool(_HUB_ID.fullmatch(name)) and not name.endswith(tuple(suffixes)) and not path.parent.is_dir()
    return name if is_id else None


def split_of(file: Path, split: str) -> str:
    """The split that a file's name begins with, ``split`` or one of the usual names; "" where it names none."""
    prefix = re.split(r"[-.]", file.name)[0]
    is_split = prefix == split or prefix in _SPLITS or prefix.split("_")[0] in _SPLITS
    return prefix if is_split else ""


def files_of_split(folder: Path, files: Sequence[Path], split: str, kind: str) -> list[Path]:
    """The ``files`` whose names begin with ``split``; where none does, those that no other split claims.

    A split may have parts of its own (train_prefs, train_sft): where there is one alone, it is the split. Raises
    UserError naming ``folder``, the ``kind`` of file and the splits found, where all belong to other splits.
    """
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(split_of(file, split), []).append(file)
    parts = [name for name in by_split if name.startswith(f"{split}_")]
    chosen = by_split.get(split) or (by_split[parts[0]] if len(parts) == 1 else by_split.get("", []))
    if not chosen or (len(parts) > 1 and split not in by_split):
        raise UserError(f"{folder}: no {kind} files of split {split!r}", f"found splits: {', '.join(by_split)}")
    return chosen


def find_place(
    given: str | Path | Dataset,
    suffixes: Sequence[str],
    remedy: str,
    *,
    split: str,
    revision: str | None,
    streaming: bool,
) -> HubData | Path | list[Path]:
    """What ``given`` stands for: a data set of ``datasets``, the file or folder that is there, or the files of a glob.

    Raises UserError, ending in ``remedy``, for what is none of these, and for a glob without files of ``suffixes``.
    """
    if not isinstance(given, str | Path):
        check_dataset(given)
        return HubData(GIVEN, split, given=given)
    name, path = str(given), user_path(str(given))
    if is_saved(path):
        return HubData(str(path), split)
    if path.is_dir() or path.is_file():
        return path
    if is_glob(name):
        files = glob_files(name, suffixes)
        if not files:
            raise UserError(f"{name}: no file of {', '.join(suffixes)} has such a name", remedy)
        return files
    if (hub := hub_id(name, suffixes)) is not None:
        return HubData(hub, split, revision, streaming)
    check_is_one(name)
    what = "is neither a file nor a folder" if path.exists() else "no such file or folder"
    raise UserError(f"{path if path.exists() else name}: {what}", remedy)


@dataclass(frozen=True)
class HubData:
    """A split of a data set on the hub or of a folder that ``datasets`` reads, or one that is ``given``, loaded already.

    ``streaming`` reads without downloading the whole set first. Whatever needs the data raises UserError where it is not to
    be had, or does not say its columns.
    """

    name: str
    split: str
    revision: str | None = None
    streaming: bool = False
    given: Dataset | None = field(default=None, compare=False, repr=False)

    @property
    def where(self) -> str:
        """The data set and its split, for messages."""
        return f"{self.name}, split {self.split!r}"

    @property
    def is_local(self) -> bool:
        """Whether the data set lies on this disk, or in memory, and is no stranger's."""
        return self.given is not None or is_saved(user_path(self.name))

    @property
    def num_rows(self) -> int | None:
        """Rows of the split; None for a stream."""
        return None if self.streaming else len(self.data)

    @property
    def schema(self) -> pa.Schema:
        """Columns and types."""
        schema: pa.Schema = self.data.features.arrow_schema
        return schema

    @cached_property
    def data(self) -> Dataset:
        """The split as ``datasets`` gives it, pictures not decoded. Scripts of data sets never run."""
        import datasets

        if self.given is not None:
            return undecoded(self.given)
        if is_saved(user_path(self.name)):
            data = _load_saved(user_path(self.name), self.split)
        else:
            try:
                data = datasets.load_dataset(
                    self.name, split=self.split, revision=self.revision, streaming=self.streaming
                )
            except (
                Exception
            ) as error:  # whatever a stranger's files and a network may raise; a script is a RuntimeError
                if is_out_of_memory(error):  # no fault of the data
                    raise
                problem = f"{self.name}: no such file or folder, and not to be had from the hub ({first_line(error)})"
                raise UserError(problem, "check the path or the hub id, the split and the revision") from error
        if data.features is None:
            raise UserError(f"{self.name}: does not say its columns before it is read", "set data.streaming: false")
        return undecoded(data)

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[str, int, dict[str, object]]]:
        """Place, number and ``columns`` of every row."""
        rows = enumerate(self.data.select_columns(list(columns)))
        while True:
            with reading(self.where, "rows of a data set", "download or write it again"):
                number, cells = next(rows, (-1, None))
            if cells is None:
                return
            yield f"{self.where}, row {number}", number, cells


def undecoded(data: Dataset) -> Dataset:
    """``data``, a data set of ``datasets``, so that its pictures are given as they are encoded."""
    import datasets

    for column, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
    return data


def is_dataset(given: object) -> bool:
    """Whether ``given`` is a ``datasets.Dataset``, in memory or mapped from a disk."""
    import datasets

    return isinstance(given, datasets.Dataset)


def check_dataset(given: object, name: str = "the data") -> None:
    """Raise UserError, in which it has ``name``, unless ``given`` is a ``datasets.Dataset``."""
    if not is_dataset(given):
        remedy = "give a datasets.Dataset (Dataset.from_list makes one of rows, from_pandas of a frame), or a path"
        raise UserError(f"{name}: is a {type(given).__name__}", remedy)


def _load_saved(folder: Path, split: str) -> Dataset:
    """The data set of a folder that save_to_disk wrote; a single one has no splits, and is given for any."""
    import datasets

    with reading(folder, "a folder of datasets' save_to_disk", "save it again, or write parquet with to_parquet"):
        data = datasets.load_from_disk(str(folder))
    if not isinstance(data, datasets.DatasetDict):
        return data
    if split not in data:
        raise UserError(f"{folder}: no split {split!r}", f"found splits: {', '.join(map(str, data))}")
    return data[split]
