"""Pairs as pages show them: two small pictures or two texts side by side, with what is known of each."""

from __future__ import annotations

import base64
import difflib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape
from PIL import Image, ImageOps

from ..errors import visible
from ..records import write_text
from .html import count, p_value, percent
from .rendering import TEMPLATES, load_template

THUMBNAIL_BYTES = 24_000
"""No picture of a sheet takes more, as it is encoded."""

_LARGEST_SIDE, _SMALL_SIDE = 320, 96
_LONGEST_TEXT = 1500  # characters; what is longer is cut
_MOST_WORDS = 600  # words of each text that are compared, as the time grows with their product


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small picture as a data URI; ``width`` and ``height``, px; ``is_small`` says that its pixels are to be seen."""

    uri: str
    width: int
    height: int
    is_small: bool


@dataclass(frozen=True, slots=True)
class ShownSide:
    """One side: a ``picture`` or a ``text``; ``detail`` is a few words on it ("768 x 768, JPEG, 143 kB")."""

    picture: Thumbnail | None = None
    text: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ShownPair:
    """One pair, the preferred side first; ``label`` says how far it is preferred, ``source`` where the row stands.

    ``kinds`` are the filters of the page that it belongs to, ``note`` a few words more.
    """

    example_id: str
    prompt: str
    sides: tuple[ShownSide, ShownSide]
    label: str
    source: str
    is_tie: bool = False
    kinds: Sequence[str] = ()
    note: str = ""


def thumbnail(image: Image.Image) -> Thumbnail:
    """``image`` scaled down to at most 320 px and THUMBNAIL_BYTES."""
    if max(image.size) > _LARGEST_SIDE:
        image = ImageOps.contain(image, (_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    while True:
        # Small pictures without loss, where that fits: their pixels are seen.
        for quality in ([100] if max(image.size) <= _SMALL_SIDE else []) + [80, 60, 40, 20]:
            file = io.BytesIO()
            image.save(file, format="WEBP", lossless=quality == 100, quality=quality, method=4)
            if file.tell() <= THUMBNAIL_BYTES:
                uri = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
                return Thumbnail(uri, *image.size, max(image.size) <= _SMALL_SIDE)
        image = image.resize((max(1, image.width * 3 // 4), max(1, image.height * 3 // 4)))


def marked_differences(chosen: str, rejected: str) -> tuple[Markup, Markup]:
    """Both texts as HTML, cut to a length that one reads, with the words that the other one does not have marked."""
    words = [re.findall(r"\s+|[^\s]+", text[:_LONGEST_TEXT]) for text in (chosen, rejected)]
    matcher = difflib.SequenceMatcher(None, words[0][:_MOST_WORDS], words[1][:_MOST_WORDS], autojunk=False)
    marked = []
    for side, text in enumerate((chosen, rejected)):
        parts, end = [], 0
        for operation, *bounds in matcher.get_opcodes():
            start, end = bounds[2 * side], bounds[2 * side + 1]
            piece = escape("".join(words[side][start:end]))
            is_common = operation == "equal" or not piece.strip()
            parts.append(piece if is_common else Markup("<mark>{}</mark>").format(piece))
        parts.append(escape("".join(words[side][end:])))
        if len(text) > _LONGEST_TEXT:
            parts.append(Markup(" <em>... {:,} more characters</em>").format(len(text) - _LONGEST_TEXT))
        marked.append(Markup("").join(parts))
    return marked[0], marked[1]


def write_pair_page(template: str, file: Path, **values: object) -> None:
    """Write the page ``template`` over ``values`` to ``file``, whole or not at all; control characters are written out."""
    style = Markup("\n").join(
        Markup(TEMPLATES.joinpath(name).read_text("utf-8")) for name in ("report.css", "pairs.css")
    )
    filters: dict[str, Callable[..., str]] = {
        "percent": percent,
        "p_value": p_value,
        "count": count,
        "shortened": _shortened,
    }
    page = load_template(template, filters)
    write_text(file, visible(page.render(values, style=style, differences=marked_differences)))


def _shortened(text: str) -> str:
    return (
        text
        if len(text) <= _LONGEST_TEXT
        else f"{text[:_LONGEST_TEXT]} ... {len(text) - _LONGEST_TEXT:,} more characters"
    )
