"""Captions of twin folders: from texts beside the images and from tables of captions, matched by path, never by order."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import UserError
from .columns import ColumnForm, missing_columns
from .image_folders import METADATA_NAMES, is_image_name
from .places import read_regular, reason
from .rows import BadRow
from .tabular import columns_of, place_in, read_table

CAPTION_FILES = ("captions.jsonl", "captions.csv", "captions.parquet", *METADATA_NAMES)
_FORM = ColumnForm(
    "tables of captions", [("file_name",), ("caption", "prompt", "text")], ("chosen/0001.png", "a red circle")
)
_SHOWN = 60


def stem_of(name: str) -> str:
    """A relative path without the ending of an image, its letters in one form: what the two images of a pair share.

    One system writes an umlaut as a letter of its own, another as a letter and a mark.
    """
    path = PurePosixPath(name)
    plain = path.with_suffix("") if is_image_name(path) else path
    return unicodedata.normalize("NFC", plain.as_posix())


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption as it was found; ``text`` is whatever the cell holds."""

    text: Any
    where: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row of a table of captions: ``folders`` and ``side`` (None where the row names no side) lead to ``stem``."""

    caption: Caption
    folders: tuple[str, ...]
    side: str | None
    stem: str


class TwinCaptions:
    """Captions of the pairs of ``chosen`` and ``rejected``, by the stem that both images share.

    ``<stem>.txt`` beside either image or beside the two folders, and ``captions`` or ``metadata`` tables (.jsonl, .csv, .parquet) beside the two
    folders or in them, whose ``file_name`` names an image: with its folder, or without where it means both images.
    """

    def __init__(self, chosen: Path, rejected: Path) -> None:
        self._sides = (chosen, rejected)
        places = [folder / name for folder in (chosen.parent, chosen, rejected) for name in CAPTION_FILES]
        self.files: Sequence[Path] = [place for place in places if place.is_file()]
        entries = [entry for file in self.files for entry in self._entries(file)]
        here = _prefixes_here({entry.folders for entry in entries if entry.side is not None}, chosen.parent)
        self._by_stem: dict[tuple[str | None, str], list[Caption]] = {}
        self._elsewhere: list[Caption] = []
        for entry in entries:
            if entry.side is None or entry.folders in here:
                self._by_stem.setdefault((entry.side, entry.stem), []).append(entry.caption)
            else:
                self._elsewhere.append(entry.caption)

    def _entries(self, file: Path) -> Iterator[_Entry]:
        names = columns_of(file)
        if _FORM.lacks(names):
            raise missing_columns(str(file), names, [_FORM], file.name)
        of_file, of_prompt = (next(name for name in known if name in names) for known in _FORM.needs)
        inside = () if file.parent == self._sides[0].parent else (file.parent.name,)
        names = [side.name for side in self._sides]
        for number, cells in read_table(file):
            caption = Caption(cells.get(of_prompt), place_in(file, number))
            name = str(cells.get(of_file) or "")
            parts = (*inside, *PurePosixPath(name if "/" in name else name.replace("\\", "/")).parts)
            at = max((i for i, part in enumerate(parts[:-1]) if part in names), default=None)
            if at is None:
                yield _Entry(caption, (), None, stem_of("/".join(parts)))
            else:
                yield _Entry(caption, parts[:at], parts[at], stem_of("/".join(parts[at + 1 :])))

    def unused(self, stems: Sequence[str]) -> list[str]:
        """Where the captions stand that name none of the images."""
        known = set(stems)
        lost = [each.where for (_, stem), captions in self._by_stem.items() if stem not in known for each in captions]
        return lost + [caption.where for caption in self._elsewhere]

    def of(self, stem: str, images: tuple[Path | None, Path | None]) -> object:
        """The caption of the pair of ``images``: None where there is none, a BadRow where it is not certain.

        Whatever stands for the chosen image, or for both, has to agree, and with what stands for the rejected one: a
        pair has one prompt. The rejected image's caption alone is none.
        """
        captions = [
            [*_beside(image or side / f"{stem}.png"), *self._by_stem.get((side.name, stem), [])]
            for image, side in zip(images, self._sides, strict=True)
        ]
        own = [*captions[0], *self._by_stem.get((None, stem), []), *_beside(self._sides[0].parent / f"{stem}.png")]
        stated = [each for each in [*own, *captions[1]] if each.text is not None and each.text != ""]
        unread = next((each.text for each in stated if isinstance(each.text, BadRow)), None)
        if unread is not None:
            return unread
        first = next((each for each in stated), None)
        other = next((each for each in stated if first is not None and each.text != first.text), None)
        where = images[0] or self._sides[0] / stem
        if first is not None and other is not None:
            both = f"{str(first.text)[:_SHOWN]!r} ({first.where}) and {str(other.text)[:_SHOWN]!r} ({other.where})"
            return BadRow("caption", f"{where}: two captions for one pair: {both}; keep one of them")
        if first is not None and first not in own:
            return BadRow("caption", f"{where}: no caption; the one in {first.where} is of the rejected image alone")
        if first is None and not own:
            place = f"{self._sides[0].name}/{stem}.txt"
            return BadRow("caption", f"{where}: no caption; write it into {place}, or as a row of captions.csv")
        return first.text if first is not None else own[0].text


def caption_beside(image: Path) -> str | None:
    """The text of the .txt file beside ``image``, None where there is none. Raises UserError for one that is no text."""
    file = image.with_suffix(".txt")
    try:
        return read_regular(file).decode("utf-8-sig").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start})", "save the file as UTF-8") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: the caption cannot be read ({reason(error)})", "write the prompt into a file of text"
        ) from error


def _beside(image: Path) -> list[Caption]:
    """The caption beside ``image``, if it is there."""
    where = str(image.with_suffix(".txt"))
    try:
        text = caption_beside(image)
    except UserError as error:
        return [Caption(BadRow("caption", f"{error.problem}; {error.remedy}"), where)]
    return [] if text is None else [Caption(text, where)]


def _prefixes_here(prefixes: set[tuple[str, ...]], parent: Path) -> set[tuple[str, ...]]:
    """Those folders before chosen/ and rejected/ in a table that mean ``parent``.

    What ends as ``parent`` does. Where none does, the table was written in another place: the folder then is the one
    that all of its rows name.
    """
    full = parent.resolve().parts
    here = {prefix for prefix in prefixes if prefix == full[len(full) - len(prefix) :]}
    return here or (prefixes if len(prefixes) == 1 else set())
