"""Pairs of a data set on one page, side by side, those first that may be wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.findings import lost_area
from ..data.image_statistics import image_statistics
from ..data.index import IndexedPair, PairIndex
from ..data.readers import open_pairs
from ..data.text_pairs import TextPair, TextPairs
from ..data.texts import holds_texts
from ..errors import UserError, plural
from ..folders import at_home
from ..progress import progress
from ..reports.pages.sheet import Sheet, write_sheet
from ..reports.shown_pairs import ShownPair
from .data_settings import ViewSettings
from .outputs import output_file
from .settings import made_of_keywords, refuse, shows
from .showing import show_images, show_texts

if TYPE_CHECKING:
    from ..data.places import Dataset

_KINDS = (ViewSettings,)
_FIRST = {
    "random": "in a fixed random order",
    "size": "the smallest first",
    "crop": "those first of which a square leaves out most",
    "sharpness": "the least sharp first",
    "contradiction": "those first on which votes disagree most",
    "prompt": "by prompt",
}


@dataclass(frozen=True, slots=True)
class View:
    """``sheet`` is what stands on the page in the file ``output``."""

    sheet: Sheet
    output: Path

    def __str__(self) -> str:
        """What is shown, in plain text."""
        return "\n".join([*(f"note: {note}" for note in self.sheet.notes), f"{self.output}: {self.sheet.scope}"])


@shows(*_KINDS)
def view(path: str | Path | Dataset, output: str | Path, *, overwrite: bool = False, **settings: object) -> View:
    """Write a page of pairs of ``path``, of images or of texts, side by side to the file ``output`` (.html).

    ``path``: pairs in any form: a file, glob, folder or hub id, or a ``datasets.Dataset``. ``settings`` are the fields of
    ViewSettings. Only the pairs that are shown are held; of images, the others are read as far as their headers. Raises
    UserError for data that cannot be read, no pair that is meant, and an output that is there unless it may be replaced.
    """
    (given,) = made_of_keywords(settings, *_KINDS)
    path = at_home(path)
    where: dict[str, Any] = {"split": given.split, "revision": given.revision, "columns": given.columns}
    with output_file(output, [".html"], "view", overwrite=overwrite) as page:
        assert page is not None  # as ``output`` is needed
        if holds_texts(path, **where):
            if given.sort in ("crop", "sharpness") or given.only in ("cropped", "enlarged"):
                raise UserError(f"`sort` {given.sort}, `only` {given.only}: means nothing for texts", "choose another")
            refuse(settings, ["resolution"], "for texts")
            sheet = _texts(TextPairs(path, **where), given)
        else:
            reader = open_pairs(path, on_bad_row="skip", ties="soft", decode=False, **where)
            index = PairIndex.build(reader)
            left = (
                [f"{plural(len(reader.log.skipped), 'bad row is', 'bad rows are')} left out"]
                if reader.log.skipped
                else []
            )
            sheet = _images(index, given, reader.log.name, [*index.notes, *left])
        write_sheet(sheet, page)
    return View(sheet, page)


def _images(index: PairIndex, given: ViewSettings, source: str, notes: list[str]) -> Sheet:
    meant = [pair for pair in index.pairs if _is_meant(pair.prompt, _kinds_of_images(pair, given.resolution), given)]
    order, note = _image_order(index, meant, given, notes)
    rows = order[given.first : given.first + given.count]
    shown: list[ShownPair] = []
    for pair in progress(rows, desc="pictures", unit="pair", mininterval=0.5):
        kinds = tuple(_kinds_of_images(pair, given.resolution))
        try:
            shown.append(show_images(index, pair, note(pair), kinds))
        except UserError as error:
            notes.append(f"not shown: {error.problem}")
    return _sheet(shown, len(rows), len(order), len(meant), len(index), given, source, "image", notes)


def _image_order(
    index: PairIndex, meant: Sequence[IndexedPair], given: ViewSettings, notes: list[str]
) -> tuple[Sequence[IndexedPair], Callable[[IndexedPair], str]]:
    """The pairs that can be shown, in order, and what is said of each; ``notes`` gets what was left out."""
    if given.sort == "size":
        return sorted(meant, key=_smallest), lambda pair: f"shorter side {_smallest(pair)} px"
    if given.sort == "crop":
        return sorted(meant, key=lambda pair: -_cut(pair)), lambda pair: f"{_cut(pair):.0%} of the area is left out"
    if given.sort == "contradiction":
        return sorted(meant, key=lambda pair: (not pair.is_contested, abs(pair.label_0 - 0.5))), lambda pair: ""
    if given.sort == "prompt":
        return sorted(meant, key=lambda pair: pair.prompt.casefold()), lambda pair: ""
    if given.sort == "random":
        return meant, lambda pair: ""
    sharpness: dict[str, float] = {}
    sample = sorted(meant[: given.max_pairs], key=lambda pair: pair.location or ())
    for pair in progress(sample, desc="measuring", unit="pair", mininterval=0.5):
        try:
            sides = [image_statistics(image.read(), image.source) for image in index.images(pair)]
        except UserError as error:
            notes.append(f"not shown: {error.problem}")
            continue
        sharpness[pair.example_id] = min(side["sharpness"] for side in sides)
    known = [pair for pair in sample if pair.example_id in sharpness]
    return sorted(known, key=lambda pair: sharpness[pair.example_id]), lambda pair: ""


def _texts(pairs: TextPairs, given: ViewSettings) -> Sheet:
    keys: dict[str, Callable[[TextPair], tuple[float | str, ...]]] = {
        "random": lambda pair: (pair.key,),
        "size": lambda pair: (min(len(pair.chosen), len(pair.rejected)), pair.key),
        "contradiction": lambda pair: (not pair.is_contested, pair.chosen_probability, pair.key),
        "prompt": lambda pair: (pair.prompt.casefold(), pair.key),
    }
    end = given.first + given.count
    rows, num = pairs.first(
        end,
        keys[given.sort],
        lambda pair: _is_meant(pair.prompt, _kinds_of_label(pair, pair.chosen_probability), given),
    )
    rows = rows[given.first :]
    shown = [show_texts(pair, kinds=tuple(_kinds_of_label(pair, pair.chosen_probability))) for pair in rows]
    return _sheet(shown, len(rows), num, num, len(pairs), given, pairs.log.name, "text", pairs.notes)


def _sheet(
    shown: Sequence[ShownPair],
    num_rows: int,
    num_ordered: int,
    num_meant: int,
    num_pairs: int,
    given: ViewSettings,
    source: str,
    medium: str,
    notes: Sequence[str],
) -> Sheet:
    if not num_rows:
        problem = f"{source}: no pair to show ({num_meant:,} of {num_pairs:,} are meant)"
        raise UserError(problem, "choose an earlier `page`, or another `search` or `only`")
    if given.sort == "contradiction" and not any("contested" in pair.kinds for pair in shown):
        notes = [*notes, "votes disagree on none of these pairs"]
    selection = [f"with {given.search!r} in the prompt"] * bool(given.search)
    selection += [f"{given.only} ones"] * (given.only != "all")
    meant = (
        f"{num_meant:,} of {plural(num_pairs, 'pair')} ({', '.join(selection)})"
        if selection
        else plural(num_pairs, "pair")
    )
    if num_ordered < num_meant:
        meant = f"{plural(num_ordered, 'pair')} that could be measured, of {meant}"
    scope = f"pairs {given.first + 1:,} to {given.first + num_rows:,} of {meant}, {_FIRST[given.sort]}"
    pages = -(-num_ordered // given.count)
    if pages > 1:
        scope += f"; page {given.page:,} of {pages:,}"
    return Sheet(source, medium, shown, scope, num_pairs, notes)


def _is_meant(prompt: str, kinds: Sequence[str], given: ViewSettings) -> bool:
    wanted = given.search.casefold() if given.search else ""
    return wanted in prompt.casefold() and (given.only == "all" or given.only in kinds)


def _kinds_of_label(pair: IndexedPair | TextPair, share: float) -> list[str]:
    """Of a ``pair`` with a vote ``share`` for the preferred side, or for either."""
    return ["tied" if share == 0.5 else "decided", *["contested"] * pair.is_contested]


def _kinds_of_images(pair: IndexedPair, resolution: int) -> list[str]:
    kinds = _kinds_of_label(pair, pair.label_0)
    kinds += ["cropped"] * (_cut(pair) > 0)
    return kinds + ["enlarged"] * (_smallest(pair) < resolution)


def _smallest(pair: IndexedPair) -> int:
    return min(min(size) for size in pair.sizes)


def _cut(pair: IndexedPair) -> float:
    return max(map(lost_area, pair.sizes))
