"""The one rule of image folders: which files are images, in which order they stand, and what is passed over."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from natsort import natsort_keygen, ns

from ..errors import UserError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Names of the tables that say of a folder what its images are."""

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff",
)  # fmt: skip
"""Endings of what ``decode_image`` opens, in small letters."""

_NOT_MINE = ("__MACOSX", "@eaDir")  # what macOS and Synology put beside the images: copies of no use
_SHOWN = 3
_by_parts = natsort_keygen(alg=ns.PATH)


def is_image_name(name: str | PurePath) -> bool:
    """Whether a file of this ``name`` is taken for an image."""
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def natural_order(names: Iterable[str]) -> list[str]:
    """``names`` (paths with slashes) with their numbers in the order of counting: 2.png comes before 10.png.

    Folder by folder; names of the same numbers (1.png and 01.png) in the order of their letters.
    """
    return sorted(names, key=lambda name: (_by_parts(name), name))


@dataclass(slots=True)
class FolderImages:
    """The images of ``folder``: ``names`` are relative to it, with slashes, in natural order.

    What was passed over: files of ``other`` endings, ``hidden`` files and folders, and ``subfolders`` where only the
    folder itself is read; names relative to the folder.
    """

    folder: Path
    names: Sequence[str] = ()
    other: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    subfolders: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[Path]:
        """The files themselves."""
        return [self.folder / name for name in self.names]

    @property
    def note(self) -> str:
        """What was passed over, counted and named, in one line; empty where it is nothing."""
        endings = Counter(PurePath(name).suffix.lower() or "no ending" for name in self.other)
        kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
        left = [
            (self.other, f"of no image ending ({kinds})"),
            (self.hidden, "hidden"),
            (self.subfolders, "in folders that are not read"),
        ]
        parts = [f"{len(names)} {what}: {_first(names)}" for names, what in left if names]
        return f"{self.folder}: passed over {'; '.join(parts)}" if parts else ""


def list_images(folder: Path, *, recursive: bool = True, tables: Sequence[str] = METADATA_NAMES) -> FolderImages:
    """The images of ``folder`` by their endings, in natural order, and what was passed over; nothing is opened.

    ``recursive`` goes into subfolders, through links too. Links that lead nowhere are among the images, as leaving one
    out would change every mean. Files in ``<stem>.txt`` beside an image, and ``tables``, which the caller reads, are
    not counted as passed over. Raises UserError for a folder that cannot be read and a name that is not UTF-8.
    """
    contents = FolderImages(folder)
    names: list[str] = []
    for path, is_folder in _entries(folder, recursive):
        name = path.relative_to(folder).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{str(path)!a}: the name is not UTF-8", "rename the file") from error
        if path.name.startswith(".") or path.name in _NOT_MINE:
            if is_folder or is_image_name(path):
                contents.hidden.append(name)
        elif is_folder:
            contents.subfolders.append(name)
        elif is_image_name(path):
            names.append(name)
        else:
            contents.other.append(name)
    contents.names = natural_order(names)
    captions = {str(PurePath(name).with_suffix(".txt")) for name in names}
    kept = [name for name in contents.other if name not in captions and name not in tables]
    contents.other = natural_order(kept)
    contents.hidden, contents.subfolders = natural_order(contents.hidden), natural_order(contents.subfolders)
    return contents


def _entries(folder: Path, recursive: bool) -> Iterable[tuple[Path, bool]]:
    """Every file below ``folder``, and the folders that are not gone into; whether it is a folder."""
    waiting, seen = [folder], set[tuple[int, int]]()
    while waiting:
        place = waiting.pop()
        try:
            status = place.stat()
            entries = list(os.scandir(place))
        except OSError as error:
            raise UserError(f"{place}: cannot be read ({error.strerror})", "give a folder that can be read") from error
        if (status.st_dev, status.st_ino) in seen:  # a link back to where we have been
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            path = place / entry.name
            is_folder = _is_folder(entry)
            if is_folder and recursive and not (entry.name.startswith(".") or entry.name in _NOT_MINE):
                waiting.append(path)
            else:
                yield path, is_folder


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it will say so
        return False


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
