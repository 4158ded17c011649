"""Whose an output folder is: empty it is claimed, under the same settings it is continued, and replaced on request alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .documents import read_object
from .errors import UserError, shown
from .records import write_text

Key = tuple[str, ...]  # of a setting, through all mappings that it lies in
_LONGEST = 200  # characters of a setting that a message holds


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputKind:
    """How one kind of work knows its own folders.

    The file ``mark`` says that a folder is of this kind. ``own`` are patterns of what the work writes besides, in the order
    in which it is removed. Settings whose keys begin with one of ``free`` may change while the work stays the same.
    Messages: ``foreign`` is said of a folder that holds other things, and ``changed`` of one with another setting (of its
    ``{key}``, ``{old}`` and ``{new}`` value); each ends in its remedy.
    """

    mark: str
    own: Sequence[str]
    free: Collection[Key] = ()
    foreign: str
    foreign_remedy: str = "choose another output_dir"
    changed: str
    changed_remedy: str = "choose another output_dir, or `overwrite` to start over"

    def is_marked(self, folder: Path) -> bool:
        """Whether ``folder`` is of this kind, finished or not."""
        return (folder / self.mark).exists()

    def check_own(self, folder: Path) -> None:
        """Raise UserError where ``folder`` is a file, or holds anything (but hidden files) and not the mark."""
        if not self.is_marked(folder) and folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*"))):
            raise UserError(f"{folder}: {self.foreign}", self.foreign_remedy)

    def check_same(self, folder: Path, before: Mapping[str, object], now: Mapping[str, object]) -> None:
        """Raise UserError for the first setting, by key, that ``before`` and ``now`` differ in and that is not free."""
        old, new = flat(before), flat(now)
        for key in sorted({*old, *new}):
            is_free = any(key[: len(free)] == free for free in self.free)
            if not is_free and old.get(key) != new.get(key):
                values = {"old": shown(old.get(key), _LONGEST), "new": shown(new.get(key), _LONGEST)}
                raise UserError(f"{folder}: {self.changed.format(key='.'.join(key), **values)}", self.changed_remedy)

    def check(self, folder: Path, settings: Mapping[str, object], *, overwrite: bool) -> None:
        """Raise UserError where ``folder`` holds other things, or, unless ``overwrite``, work under other ``settings``.

        The mark holds these as JSON; what an older version did not record is no difference.
        """
        self.check_own(folder)  # not even overwriting replaces what this work has not written
        if self.is_marked(folder) and not overwrite:
            before = read_object(folder / self.mark, self.changed_remedy)
            self.check_same(folder, before, {name: value for name, value in settings.items() if name in before})

    def open(self, folder: Path, settings: Mapping[str, object], *, overwrite: bool) -> None:
        """Make ``folder`` that of work under ``settings``: what is there is kept where they are the same, else cleared.

        Raises UserError as ``check`` and ``claim`` do.
        """
        self.check(folder, settings, overwrite=overwrite)
        if overwrite or not self.is_marked(folder):
            self.claim(folder, json.dumps(settings, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def claim(self, folder: Path, mark: str) -> None:
        """Remove what earlier work left, then write the text ``mark``: the folder belongs to new work.

        The old mark stays to the last, so that a folder whose clearing was killed is still of this kind. Raises UserError
        where the folder cannot be written.
        """
        try:
            for pattern in self.own:
                for path in folder.glob(pattern):
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink()
            self.write_mark(folder, mark)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}", self.foreign_remedy) from error

    def write_mark(self, folder: Path, mark: str) -> None:
        """Write the text ``mark``, whole or not at all."""
        write_text(folder / self.mark, mark)


def check_writable(folder: Path) -> None:
    """Raise UserError where ``folder``, or the first of its parents that exists, cannot be written."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not os.access(existing, os.W_OK):
        raise UserError(f"{folder}: {existing} cannot be written", "choose another output_dir")


def flat(settings: object, key: Key = ()) -> dict[Key, Any]:
    """The values in nested ``settings`` by their keys; an empty mapping holds none."""
    if isinstance(settings, Mapping):
        return {
            inner: value for name, part in settings.items() for inner, value in flat(part, (*key, str(name))).items()
        }
    return {key: settings}
