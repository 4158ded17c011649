"""Preference pairs from whatever form they stand in: finds the format by looking, and checks every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from ..errors import UserError, plural
from ..records import NO_BALLOT, Ballot, PairRecord
from .columns import AS_THEY_ARE, ColumnNames, Columns, column_names
from .folders import ImageFolderSource, TwinFolderSource, find_twins
from .image_folders import METADATA_NAMES
from .image_index import ImageFacts, ImageIndex
from .pair_layouts import KNOWN_COLUMNS, names_two
from .places import HubData, files_of_split, find_place, glob_files, name_of_data, split_of, user_path
from .rankings import RankingSource, holds_rankings
from .read_log import OnBadRow, ReadLog
from .rows import (
    SIDES,
    BadRow,
    Location,
    PairRow,
    PairSource,
    ballot_of,
    check_different,
    check_labels,
    image_file,
    is_outside,
    listed,
    models_of,
    to_record,
    unlabelled,
)
from .tables import HubSource, ParquetSource
from .tabular import columns_of, find_metadata, find_votes, is_table
from .votes import BOTH_BAD

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, slots=True)
class KnownPair:
    """One usable pair without its images' bytes; otherwise as PairRecord."""

    prompt: str
    images: tuple[ImageFacts, ImageFacts]
    label_0: float
    weight: float
    source: str
    ballot: Ballot = NO_BALLOT
    models: tuple[str, str] = ("", "")
    """Names of the models that the images come from, "" where the data does not say."""


Pair = TypeVar("Pair", PairRecord, KnownPair)
Ties = Literal["drop", "soft", "first"]

FORMATS_HELP = (
    "give a table of votes or pairs (.csv, .tsv, .jsonl, .parquet), a glob of parquet files, a folder (votes.csv or"
    " metadata.csv beside images, or the like as .jsonl; parquet files; chosen/ and rejected/; or what datasets' save_to_disk"
    " wrote), rankings in .json as HPDv2, HPDv3 and ImageReward have them, or a hub id such as owner/name"
)


class PairReader:
    """The usable pairs of a source, in its order; may be iterated any number of times, never holds them all.

    After (and during) a pass, ``log`` says what was met. Iterating raises UserError at a bad row unless ``on_bad_row`` is
    "skip", and at the end where no pair was usable.
    """

    def __init__(
        self,
        source: PairSource,
        name: str,
        *,
        on_bad_row: OnBadRow = "error",
        ties: Ties = "drop",
        decode: bool = True,
        split: str = "",
    ) -> None:
        self.source, self.split = source, split
        self.ties, self.decode = ties, decode
        self.log = ReadLog(name, on_bad_row, "pairs", "give data with labelled pairs")

    @property
    def format(self) -> str:
        """The format found, in words."""
        return self.source.format

    @property
    def identity(self) -> str:
        """Which data this is, wherever the command was started."""
        return f"{user_path(self.log.name).absolute()} {self.split}"

    @property
    def has_ballots(self) -> bool:
        """Whether rows say who voted, or give votes."""
        return not {"user_id", "vote", BOTH_BAD}.isdisjoint(self.source.fields)

    @property
    def num_rows(self) -> int | None:
        """Number of rows, usable or not; None where that is not known before reading."""
        return self.source.num_rows

    def __length_hint__(self) -> int:
        return self.num_rows or 0

    def __iter__(self) -> Iterator[PairRecord]:
        for record, _ in self.scan():
            yield record
        self.require_usable()

    def scan(self) -> Iterator[tuple[PairRecord, Location | None]]:
        """One pass over the usable pairs and where their images are found again; no pair at all is no error here."""
        return (passed for passed in self.scan_votes() if self.keeps(passed[0]))

    def scan_votes(self) -> Iterator[tuple[PairRecord, Location | None]]:
        """``scan`` with all ties, which count among the votes of a pair that other rows repeat."""
        yield from self._pass(self.source.rows(), lambda row: to_record(row, decode=self.decode))

    def scan_facts(self, index: ImageIndex) -> Iterator[tuple[KnownPair, Location | None]]:
        """``scan_votes`` without the images: what ``index`` knows of them is not read again."""
        yield from self._pass(self.source.rows(index.is_known), lambda row: _known(row, index, self.source))

    def keeps(self, pair: PairRecord | KnownPair) -> bool:
        """Whether ``pair`` counts by itself: a tie that is to be dropped does not."""
        return self.ties != "drop" or pair.label_0 != 0.5

    def _pass(self, rows: Iterator[PairRow], make: Callable[[PairRow], Pair]) -> Iterator[tuple[Pair, Location | None]]:
        self.log.begin()
        for row in rows:
            self.log.counts.rows += 1
            pair = self._usable(row, make)
            if pair is not None:
                self.log.counts.usable += self.keeps(pair)
                yield pair, row.location

    @property
    def notes(self) -> Sequence[str]:
        """What one should know of the data as it was read: what was passed over, and what lies elsewhere."""
        outside = self.log.counts.outside
        where = (
            f"{self.log.name}: {plural(len(outside), 'image lies', 'images lie')} outside its folder (full paths or links): "
            f"{listed(outside)}"
        )
        return [*self.source.notes, *([where] if outside else [])]

    def require_usable(self) -> None:
        """Raise UserError where the last pass found no usable pair, saying why."""
        counts = self.log.counts
        if not counts.usable and counts.ties and self.ties == "drop":
            ties = "all labelled pairs" if not counts.bad else plural(counts.ties, "pair")
            problem = f"{self.log.name}: 0 usable pairs ({counts}): {ties} are ties"
            raise UserError(problem, "keep ties as soft labels with ties: soft, or label more pairs")
        self.log.require_usable()

    def _usable(self, row: PairRow, make: Callable[[PairRow], Pair]) -> Pair | None:
        match unlabelled(row):
            case "unlabelled":
                self.log.counts.unlabelled += 1
                return None
            case "not_different":
                self.log.counts.not_different += 1
                return None
        try:
            pair = make(row)
        except BadRow as error:
            self.log.leave_out(row.source, error)
            return None
        self.log.counts.outside += _files_outside(row, pair)
        if pair.label_0 != 0.5:
            return pair
        self.log.counts.ties += 1
        self.log.counts.both_bad += pair.ballot.is_both_bad
        return replace(pair, label_0=1.0) if self.ties == "first" else pair


def _known(row: PairRow, index: ImageIndex, source: PairSource) -> KnownPair:
    prompt, label_0, weight = check_labels(row)
    first, second = (index.facts(row, side, source) for side in (0, 1))
    check_different(row, first.key == second.key)
    return KnownPair(prompt, (first, second), label_0, weight, row.source, ballot_of(row), models_of(row))


def _files_outside(row: PairRow, pair: PairRecord | KnownPair) -> list[str]:
    """Files of the images of ``row`` that do not lie in its folder; a data set that has none lies nowhere."""
    if row.folder is None:
        return []
    if isinstance(pair, KnownPair):
        files = [Path(image.file) for image in pair.images if image.file]
    else:
        images = [image_file(row.values[field], row.folder, row.where(field)) for field in SIDES]
        files = [file for file in images if file is not None]
    return [str(file) for file in files if is_outside(file, row.folder)]


def open_pairs(
    path: str | Path | Dataset,
    *,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    on_bad_row: OnBadRow = "error",
    ties: Ties = "drop",
    decode: bool = True,
    columns: Columns = None,
) -> PairReader:
    """Find out what ``path`` is, and open its pairs.

    A table of votes, of vote shares (Pick-a-Pic columns), or of prompt, chosen, rejected: CSV, TSV, JSON Lines or parquet
    with names of files, parquet with the images too; a glob or folder of parquet files; an image folder with
    metadata.jsonl, metadata.csv or metadata.parquet, twin folders chosen/ and rejected/ (win/ and lose/, w/ and l/), a
    folder that datasets' save_to_disk wrote, a hub id, or a ``datasets.Dataset``. ``columns`` names the columns of a table
    that has names of its own, ours to theirs: {"image_a": "left_path"}.
    ``split`` picks files whose names begin with it, a folder of that name, or the hub's split; ``revision`` and
    ``streaming`` matter for the hub only. ``ties``: drop leaves them out, soft keeps them at 0.5, first takes image 0
    as chosen. ``decode``: decode every image as a check. Raises UserError for a path that is none of these.
    """
    names = column_names(columns, KNOWN_COLUMNS)
    source = find_source(path, split=split, revision=revision, streaming=streaming, names=names)
    if not isinstance(path, str | Path):
        # A part of a data set lies in the same files as the whole: its fingerprint says what it holds.
        split = f"{split} {path._fingerprint}"
    return PairReader(source, name_of_data(path), on_bad_row=on_bad_row, ties=ties, decode=decode, split=split)


def find_source(
    given: str | Path | Dataset,
    *,
    split: str,
    revision: str | None,
    streaming: bool,
    names: ColumnNames = AS_THEY_ARE,
) -> PairSource:
    """The source that ``given`` stands for, by what is on the disk; ``names`` are those of its columns.

    Raises UserError where it is none, and for names that are given to what has no columns.
    """
    place = find_place(given, [".parquet"], FORMATS_HELP, split=split, revision=revision, streaming=streaming)
    source = _source_at(place, given, split, names)
    if names.theirs and not isinstance(source, HubSource | ParquetSource | ImageFolderSource):
        raise UserError(f"{given}: `columns`: {source.format} have no columns to name", "leave it out")
    return source


def _source_at(
    place: HubData | Path | list[Path], given: str | Path | Dataset, split: str, names: ColumnNames
) -> PairSource:
    if isinstance(place, HubData):
        return HubSource(place, names=names)
    if isinstance(place, list):
        others = [str(file) for file in glob_files(str(given), [""]) if file not in place]
        note = f"{given}: passed over {len(others)} that are no .parquet files: {listed(others)}"
        return ParquetSource(place, [note] if others else [], names)
    if place.is_dir():
        return _folder_source(place, split, names)
    if holds_rankings(place):
        return RankingSource(place)
    if is_table(place) or (place.name in METADATA_NAMES and names_two(names.ours(columns_of(place)))):
        return ImageFolderSource(place, names)
    if place.suffix.lower() == ".parquet":
        return ParquetSource([place], names=names)
    raise UserError(f"{place}: not a file of pairs", FORMATS_HELP)


def _folder_source(folder: Path, split: str, names: ColumnNames) -> PairSource:
    # The split's own folder comes first; "data" is where data sets from the hub keep their parquet files.
    for place in (folder / split, folder, folder / "data"):
        if not place.is_dir():
            continue
        metadata, twins = find_metadata(place), find_twins(place)
        if metadata is not None and (twins is None or names_two(names.ours(columns_of(metadata)))):
            return ImageFolderSource(metadata, names)
        if twins is not None:
            return TwinFolderSource(*twins)
        files = sorted(file for file in place.iterdir() if file.suffix.lower() == ".parquet" and file.is_file())
        if seen := [file for file in files if not file.name.startswith(".")]:
            chosen = seen if place.name == split else files_of_split(folder, seen, split, "parquet")
            return ParquetSource(chosen, _left_out(place, files, chosen, split), names)
        if (votes := find_votes(place)) is not None:
            return ImageFolderSource(votes, names)
    raise UserError(f"{folder}: no pairs in this folder", FORMATS_HELP)


def _left_out(place: Path, files: Sequence[Path], chosen: Sequence[Path], split: str) -> list[str]:
    """Lines on the parquet files of ``place`` that are not read, nor of another split: other names, hidden, below it."""
    others = [file.name for file in files if file not in chosen and not split_of(file, split)]
    below = [f"{file.parent.name}/{file.name}" for file in sorted(place.glob("*/*.parquet"))]
    passed_over = [(others, "parquet files whose names begin with no split"), (below, "parquet files in subfolders")]
    return [f"{place}: passed over {len(names)} {what}: {listed(names)}" for names, what in passed_over if names]
