"""What is known of every image of a data set, kept on disk: no start decodes or hashes an image a second time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa

from ..errors import UserError, is_out_of_memory
from ..records import atomic_write, content_hash
from .images import FORMATS, ImageHeader, image_header
from .places import check_regular, reason, stamp_of, sweep_old
from .rows import SIDES, BadRow, PairRow, PairSource, Part, image_file, read_image, read_path

VERSION = 1
"""To be raised whenever the same bytes would give other facts."""

_SEGMENT = 2048
_SAVED_EVERY = 60.0  # s, of what images in files of their own have given
_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("file_size", pa.int64()),
        ("file_mtime_ns", pa.int64()),
        ("key", pa.string()),
        ("format", pa.string()),
        ("mode", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("is_animated", pa.bool_()),
        ("problem", pa.string()),
    ]
)
_NOTHING: dict[str, Any] = dict.fromkeys(_SCHEMA.names)
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """One image without its pixels: content hash of its bytes, and what its header says; or why it cannot be used.

    ``file`` is the image's own file, "" where it stands in a table.
    """

    key: str
    header: ImageHeader
    problem: str = ""
    file: str = ""


def inspect(data: bytes, where: str, *, decode: bool = True) -> ImageFacts:
    """The facts of an encoded image; all pixels are decoded unless ``decode`` is false. Never fails: see ``problem``."""
    try:
        header = image_header(data, where, decode=decode)
    except UserError as error:
        return _unusable(error.problem, where)
    return ImageFacts(content_hash(data), header)


def _unusable(problem: str, where: str) -> ImageFacts:
    return ImageFacts("", ImageHeader("", "", (0, 0)), problem.removeprefix(f"{where}: "))


class ImageIndex:
    """The facts of the images of one source called ``name``, in ``folder``; kept nowhere where that is None.

    Facts of an image in a file of its own hold while the file's size and time of change are the same; those of images
    in a table while the table's are. They lie in files of a few thousand images, written whole or not at all; what is
    damaged, or from another version, is read again. ``notes`` says so.
    """

    def __init__(self, folder: Path | None, name: str, *, decode: bool = True) -> None:
        self._folder, self._decode = folder, decode
        self.notes: list[str] = []
        self._here: tuple[Part, int] | None = None  # the segment of a part that is being read
        self._known: list[dict[str, Any]] = []  # its rows, two images each, from the disk
        self._new: dict[int, dict[str, Any]] = {}  # what was read of it again
        self._own = f"files-{content_hash(name)}"
        files = self._read(self._own, {})
        self._files: dict[str, dict[str, Any]] = (
            {} if files is None else {row["file"]: row for row in files.to_pylist()}
        )
        self._met: dict[str, dict[str, Any]] = {}
        self._unknown: list[Part] = []
        self._stamps: dict[Part, dict[str, list[int]]] = {}
        self._is_changed = False
        self._saved = time.monotonic()
        if folder is not None:
            sweep_old(folder)

    def is_known(self, part: Part) -> bool:
        """Whether nothing of ``part`` needs to be read for its images' facts."""
        is_known = all(self._segment(part, number) is not None for number in _segments(part))
        if not is_known:
            self._unknown.append(part)
        return is_known

    def facts(self, row: PairRow, side: int, source: PairSource) -> ImageFacts:
        """The facts of an image of a ``row`` of ``source``. Raises BadRow where it is not there, or cannot be used."""
        where = row.where(SIDES[side])
        if row.part is not None:
            facts = self._of_part(row, row.part, side, source)
        elif (file := image_file(row.values.get(SIDES[side]), row.folder, where)) is not None:
            facts = self._of_file(file, where)
        else:
            data = read_image(row.values.get(SIDES[side]), row.folder, where)
            facts = inspect(data, where, decode=self._decode)
        if facts.problem:
            raise BadRow("image", f"{where}: {facts.problem}")
        return facts

    def close(self, *, is_whole: bool) -> None:
        """Write what is new. ``is_whole``: all rows have passed, so that what was not met is of no more use."""
        if is_whole:
            self._finish_segment()
            for part in self._unknown:  # where no row of a segment needed its images
                for number in _segments(part):
                    if self._segment(part, number) is None:
                        self._write(_segment_name(part, number), self._stamp(part), [_NOTHING] * _length(part, number))
        kept = self._met if is_whole else self._files | self._met
        if self._is_changed or (is_whole and len(kept) != len(self._files)):
            self._save_files(kept)

    def _save_files(self, files: Mapping[str, Mapping[str, object]]) -> None:
        self._write(self._own, {}, list(files.values()))
        self._is_changed, self._saved = False, time.monotonic()

    def _of_file(self, file: Path, where: str) -> ImageFacts:
        name = str(file.absolute())
        try:
            status = check_regular(file)
        except (OSError, ValueError) as error:
            raise BadRow("image", f"{where}: cannot read {file} ({reason(error)})") from error
        size, mtime_ns = status.st_size, status.st_mtime_ns
        known = self._met.get(name) or self._files.get(name)
        if known is None or (known["file_size"], known["file_mtime_ns"]) != (size, mtime_ns):
            facts = inspect(read_path(file, where), where, decode=self._decode)
            known = _to_row(facts) | {"file": name, "file_size": size, "file_mtime_ns": mtime_ns}
            self._is_changed = True
        self._met[name] = known
        if self._is_changed and time.monotonic() - self._saved > _SAVED_EVERY:
            self._save_files(self._files | self._met)
        return _from_row(known)

    def _of_part(self, row: PairRow, part: Part, side: int, source: PairSource) -> ImageFacts:
        self._go_to(part, row.position // _SEGMENT)
        place = 2 * (row.position % _SEGMENT) + side
        known = self._new.get(place) or (self._known[place] if place < len(self._known) else None)
        if known is None or (known["key"] is None and known["file"] is None):
            known = self._new[place] = self._read_facts(row, side, source)
        return _from_row(known) if known["file"] is None else self._of_file(Path(known["file"]), row.where(SIDES[side]))

    def _read_facts(self, row: PairRow, side: int, source: PairSource) -> dict[str, Any]:
        """What stands in a table for an image: its facts, or the file that it lies in."""
        where, cell = row.where(SIDES[side]), row.values.get(SIDES[side])
        try:
            if SIDES[side] not in row.values and row.location is not None:  # the cells were left out as known
                cell = source.images(row.location)[side]
            file = image_file(cell, row.folder, where)
            if file is not None:
                return _NOTHING | {"file": str(file.absolute())}
            return _to_row(inspect(read_image(cell, row.folder, where), where, decode=self._decode))
        except BadRow as error:
            return _to_row(_unusable(error.problem, where))

    # --- segments of parts -------------------------------------------------------------------------------------------

    def _go_to(self, part: Part, number: int) -> None:
        if self._here == (part, number):
            return
        self._finish_segment()
        known = self._segment(part, number)
        self._here, self._known, self._new = (part, number), [] if known is None else known.to_pylist(), {}

    def _finish_segment(self) -> None:
        if self._here is None or not self._new:
            return
        part, number = self._here
        length = _length(part, number)
        before = [*self._known, *[_NOTHING] * (length - len(self._known))]
        rows = [self._new.get(place, before[place]) for place in range(length)]
        self._write(_segment_name(part, number), self._stamp(part), rows)
        self._known, self._new = rows, {}

    def _segment(self, part: Part, number: int) -> pa.Table | None:
        rows = self._read(_segment_name(part, number), self._stamp(part))
        return rows if rows is not None and len(rows) == _length(part, number) else None

    def _stamp(self, part: Part) -> dict[str, list[int]]:
        """Size and time of change of the files of ``part`` as they were before the first of its rows was read.

        A file that is replaced while it is read is so read again the next time.
        """
        if part not in self._stamps:
            self._stamps[part] = {str(file.absolute()): list(stamp_of(file)) for file in part.files}
        return self._stamps[part]

    # --- files -------------------------------------------------------------------------------------------------------

    def _read(self, name: str, stamps: Mapping[str, object]) -> pa.Table | None:
        """The rows of one file of the index; None where it is not there, of another state of its source, or damaged."""
        if self._folder is None:
            return None
        file = self._folder / f"{name}.arrow"
        try:
            data = file.read_bytes()
        except OSError:
            return None
        try:
            if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
                raise ValueError("its contents do not have the hash that they were written with")
            table = pa.ipc.open_stream(data[_DIGEST:]).read_all()
            return table if json.loads(table.schema.metadata[b"state"]) == _state(stamps) else None
        except Exception as error:  # whatever damage makes of it; the images themselves are still there
            if is_out_of_memory(error):
                raise
            note = f"{file}: the index of images is damaged ({error}); these images are read again"
            if note not in self.notes:
                self.notes.append(note)
            return None

    def _write(self, name: str, stamps: Mapping[str, object], rows: Sequence[Mapping[str, object]]) -> None:
        if self._folder is None:
            return
        schema = _SCHEMA.with_metadata({"state": json.dumps(_state(stamps))})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(pa.Table.from_pylist(list(rows), schema=schema))
        data = sink.getvalue().to_pybytes()
        try:
            with atomic_write(self._folder / f"{name}.arrow") as temporary:
                temporary.write_bytes(hashlib.sha256(data).digest() + data)
        except OSError as error:
            self.notes.append(f"{self._folder}: cannot be written ({reason(error)}), so every start reads all images")
            self._folder = None


@contextlib.contextmanager
def image_index(folder: Path | None, name: str, *, decode: bool = True) -> Iterator[ImageIndex]:
    """The index of a source for one pass over its rows; what is new is kept, however the pass ends."""
    index, is_whole = ImageIndex(folder, name, decode=decode), False
    try:
        yield index
        is_whole = True
    finally:
        index.close(is_whole=is_whole)


def _segments(part: Part) -> range:
    return range(-(-part.num_rows // _SEGMENT))


def _length(part: Part, number: int) -> int:
    """Images of a segment: two a row."""
    return 2 * min(_SEGMENT, part.num_rows - number * _SEGMENT)


def _segment_name(part: Part, number: int) -> str:
    return f"rows-{content_hash(*(str(file.absolute()) for file in part.files))}-{number:05d}"


def _state(stamps: Mapping[str, object]) -> dict[str, object]:
    """All that facts depend on besides the bytes of an image."""
    return {"version": VERSION, "pillow": PIL.__version__, "formats": list(FORMATS), "files": dict(stamps)}


def _to_row(facts: ImageFacts) -> dict[str, object]:
    header = facts.header
    return {
        "file": None,
        "file_size": None,
        "file_mtime_ns": None,
        "key": facts.key,
        "format": header.format,
        "mode": header.mode,
        "width": header.size[0],
        "height": header.size[1],
        "is_animated": header.is_animated,
        "problem": facts.problem,
    }


def _from_row(row: Mapping[str, Any]) -> ImageFacts:
    header = ImageHeader(row["format"], row["mode"], (row["width"], row["height"]), row["is_animated"])
    return ImageFacts(row["key"], header, row["problem"], row["file"] or "")
