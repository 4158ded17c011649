"""The card of an export: how it is loaded in the tool that it is for, and how exact it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from ...catalog.formats import ExportFormat
from ...records import write_text
from ..rendering import load_template
from .writer import CODE


def write_export_card(
    folder: Path, facts: Mapping[str, object], row: ExportFormat, *, title: str, place: Path, is_text: bool
) -> None:
    """Write README.md into ``folder``, which becomes ``place``: ``facts`` are those of export.json."""
    template = load_template("cards/export.md.j2", CODE)
    files = cast(Mapping[str, int], facts["files"])
    weights = [name for name in files if name.endswith(".safetensors")]
    card = template.render(
        facts=facts, row=row, title=title, place=str(place), is_text=is_text, weights=weights, parts=_parts(weights)
    )
    write_text(folder / "README.md", card)


def _parts(weights: list[str]) -> list[str]:
    """The subfolders that weights lie in: the adapted parts, where there are several."""
    return sorted({name.rpartition("/")[0] for name in weights} - {""})
