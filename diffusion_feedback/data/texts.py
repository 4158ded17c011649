"""Texts from whatever form they stand in: finds the format by looking, and checks every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from ..errors import UserError, plural, visible
from ..prompts import ENDINGS
from ..prompts.rows import is_list_of_texts
from ..records import Text, TextRecord
from .columns import AS_THEY_ARE, ColumnNames, Columns, column_names, spelt_out
from .folders import find_twins
from .pair_layouts import gives_files, names_two
from .places import HubData, check_dataset, files_of_split, find_place, name_of_data, user_path
from .rankings import holds_rankings
from .read_log import OnBadRow, ReadLog
from .rows import BadRow
from .tabular import find_metadata
from .text_cells import TextCells
from .text_formats import KNOWN_COLUMNS, TextFormat, detect, unknown_columns
from .text_sources import (
    CSV_SUFFIXES,
    KINDS,
    SUFFIXES,
    CsvSource,
    HubTexts,
    JsonSource,
    ParquetTexts,
    PromptRows,
    TextSource,
    file_source,
)
from .votes import VoteColumn

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS_HELP = (
    "give a file of JSON Lines, JSON, CSV, TSV or parquet, a glob of such files, a folder of them or of save_to_disk, or a"
    " hub id such as owner/name"
)
_IMAGE_COLUMNS = frozenset(
    {"jpg_0", "jpg_1", "image_0", "image_1", "image_0_file_name", "image_1_file_name", "file_name"}
    | {"jpg_0_file_name", "jpg_1_file_name"}
)


Record = TypeVar("Record")


class TextReader(Generic[Record]):
    """The usable rows of some sources, as ``make`` makes them of the row and its format, in their order.

    They may be iterated any number of times, and are never all held. After (and during) a pass, ``log`` says what was met.
    Iterating raises UserError at a bad row unless those are skipped, for columns of no known format, for a source of
    prompts alone unless those are wanted (``prompts_alone``), and at the end where no row was usable. ``make`` gives None for
    a row that says nothing by its own account, and raises BadRow. ``passed_over`` says which files were not read.
    """

    def __init__(
        self,
        sources: Sequence[TextSource],
        make: Callable[[TextCells, TextFormat], Record | None],
        log: ReadLog,
        *,
        prompts_alone: bool = False,
        passed_over: Sequence[str] = (),
    ) -> None:
        self.sources, self.log = sources, log
        self._make, self._prompts_alone, self._passed_over = make, prompts_alone, passed_over

    @property
    def format(self) -> str:
        """The format found, in words."""
        number = f", {len(self.sources)} files" if len(self.sources) > 1 else ""
        formats = dict.fromkeys(form.name for source in self.sources if (form := detect(source.columns)) is not None)
        return f"{self.sources[0].storage} with {' and '.join(formats) or 'no known columns'}{number}"

    @property
    def num_rows(self) -> int | None:
        """Number of rows, usable or not; None where that is not known before reading."""
        numbers = [source.num_rows for source in self.sources]
        known = [number for number in numbers if number is not None]
        return sum(known) if len(known) == len(numbers) else None

    def __length_hint__(self) -> int:
        return self.num_rows or 0

    def __iter__(self) -> Iterator[Record]:
        yield from self.scan()
        self.log.require_usable()

    def scan(self) -> Iterator[Record]:
        """One pass over the usable rows; that there is none is no error here."""
        self.log.begin()
        votes = cache(self._votes)
        for source in self.sources:
            form: TextFormat | None = None
            for row in source.rows():
                self.log.counts.rows += 1
                if isinstance(row.cells, BadRow):
                    self.log.leave_out(row.source, row.cells)
                    continue
                form = form or self._format_of(source)
                cells = TextCells(row.source, row.cells, votes=votes)
                try:
                    record = self._make(cells, form)
                except BadRow as error:
                    self.log.leave_out(row.source, error)
                    continue
                if record is None:
                    self.log.counts.silent += 1
                else:
                    self.log.counts.usable += 1
                    self.log.counts.both_bad += isinstance(record, TextRecord) and record.ballot.is_both_bad
                    self.log.counts.unread.update(cells.unread())
                    yield record

    def _votes(self, column: str, sides: tuple[str, str]) -> VoteColumn:
        """How a column of votes is read, by all of its cells in all sources, and by what the table calls both sides."""
        theirs = getattr(self.sources[0], "names", AS_THEY_ARE).theirs

        def values() -> Iterator[object]:
            rows = (row.cells for source in self.sources for row in source.rows())
            return (cells.get(column) for cells in rows if not isinstance(cells, BadRow))

        first, second, name = (theirs.get(each, each) for each in (*sides, column))
        return VoteColumn(name, (first, second), self.log.name, values, may_be_share=False)

    @property
    def notes(self) -> Sequence[str]:
        """What the last pass left aside: columns that are not read, by the rows that hold something there, and files."""
        tables = [source for source in self.sources if isinstance(source, ParquetTexts | HubTexts)]
        pictures = sorted({name for table in tables for name in {*table.schema.names} - table.columns})
        named = [f"{visible(name)} ({plural(count, 'row')})" for name, count in self.log.counts.unread.items()]
        named += [f"{visible(name)} (pictures)" for name in pictures]
        return [*([f"columns not read: {', '.join(named)}"] if named else []), *self._passed_over]

    def _format_of(self, source: TextSource) -> TextFormat:
        columns = source.columns
        form = detect(columns)
        where = str(getattr(source, "file", self.log.name))
        if form is None:
            raise unknown_columns(where, columns)
        if form.is_prompts and not self._prompts_alone:
            problem = f"{where}: holds prompts alone (columns {', '.join(sorted(columns))})"
            raise UserError(problem, "give completions too: prompt and completion, or prompt, chosen and rejected")
        return form


def _example_reader(
    path: str | Path | Dataset, sources: Sequence[TextSource], on_bad_row: OnBadRow, *, prompts_alone: bool = False
) -> TextReader[TextRecord]:
    log = ReadLog(name_of_data(path), on_bad_row, "examples", "give data with preferences")
    left = passed_over(path, sources)
    return TextReader(sources, lambda row, form: form.read(row), log, prompts_alone=prompts_alone, passed_over=left)


def open_texts(
    path: str | Path | Dataset,
    *,
    split: str = "train",
    revision: str | None = None,
    on_bad_row: OnBadRow = "error",
    streaming: bool = False,
    columns: Columns = None,
) -> TextReader[TextRecord]:
    """Find out what ``path`` is, and open its texts: preferences, unpaired feedback, demonstrations, or plain texts.

    A file of JSON Lines, JSON, CSV, TSV (each may be gzipped) or parquet, a glob or folder of such files, a folder of
    save_to_disk, a hub id, or a ``datasets.Dataset``. The format is known by its columns: TRL's (prompt, chosen, rejected; chosen, rejected; prompt, completion, label;
    prompt, completion; messages; text; as texts or as turns), votes on two responses, UltraFeedback's, Anthropic HH's, SHP's and others of
    ``text_formats``. ``split`` picks files whose names begin with it, a folder of that name, or the hub's split;
    ``revision`` and ``streaming`` matter for the hub only. ``columns`` names the columns of tables that have names of their
    own, ours to theirs: {"prompt": "question"}. Raises UserError for a path that is none of these.
    """
    names = column_names(columns, KNOWN_COLUMNS)
    sources = find_texts(path, split=split, revision=revision, streaming=streaming, names=names)
    return _example_reader(path, sources, on_bad_row)


def open_prompts(
    path: str | Path | Dataset,
    *,
    split: str = "train",
    revision: str | None = None,
    on_bad_row: OnBadRow = "error",
    unique: bool = True,
    columns: Columns = None,
    say: Callable[[str], None] | None = None,
) -> list[Text]:
    """The prompts of ``path``, in its order: of any format that has prompts, or a file of prompts alone.

    ``unique`` leaves out a prompt that came before, as each prompt of preferences recurs. ``say`` is handed what was left
    aside. Raises UserError as
    ``open_texts`` does, and where an example has no prompt.
    """
    prompts: list[Text] = []
    known: set[str] = set()
    names = column_names(columns, KNOWN_COLUMNS)
    reader = _example_reader(path, _prompt_sources(path, split, revision, names), on_bad_row, prompts_alone=True)
    for record in reader:
        if not record.prompt:
            problem = f"{record.source}: no prompt to generate from"
            raise UserError(
                problem,
                "give a column prompt: whole texts do not say where their prompts end, so write their first words there",
            )
        if record.template:
            problem = (
                f"{record.source}: the prompt comes with {', '.join(sorted(record.template))} for the chat template"
            )
            raise UserError(problem, "completions are drawn without them: leave these columns out")
        key = repr(record.prompt)
        if not unique or key not in known:
            prompts.append(record.prompt)
        known.add(key)
    if say is not None:
        for line in [
            *(f"{reader.log.name}: {note}" for note in reader.notes),
            *(f"left out: {why}" for _, why in reader.log.skipped),
        ]:
            say(line)
    return prompts


def _prompt_sources(
    given: str | Path | Dataset, split: str, revision: str | None, names: ColumnNames
) -> list[TextSource]:
    if not isinstance(given, str | Path):
        return find_texts(given, split=split, revision=revision, names=names)
    path = user_path(str(given))
    if names.theirs or not path.is_file() or path.suffix.lower() not in ENDINGS:
        return find_texts(str(given), split=split, revision=revision, names=names)
    if path.name.lower().endswith(SUFFIXES) and not is_list_of_texts(path):
        sources = find_texts(str(path), split=split, revision=revision)
        form = detect(sources[0].columns)
        # Tables of prompts may call them texts.
        if form is not None and not (form.needs == ("text",) and path.suffix.lower() in CSV_SUFFIXES):
            return sources
    return [PromptRows(path)]


def find_texts(
    given: str | Path | Dataset,
    *,
    split: str,
    revision: str | None,
    streaming: bool = False,
    names: ColumnNames = AS_THEY_ARE,
) -> list[TextSource]:
    """The sources that ``given`` stands for, by what is on the disk; ``names`` are those of their columns.

    Raises UserError where it is none, and for names that a table does not have.
    """
    place = find_place(given, SUFFIXES, FORMATS_HELP, split=split, revision=revision, streaming=streaming)
    if isinstance(place, HubData):
        if names.theirs:
            names.check(place.schema.names, place.where)
        return [HubTexts(place, names)]
    if isinstance(place, list):
        return [file_source(file, names) for file in place]
    if place.is_dir():
        return [file_source(file, names) for file in _files_in(place, split)]
    if not place.name.lower().endswith(SUFFIXES):
        raise _unknown_ending(place)
    return [file_source(place, names)]


def holds_texts(
    path: str | Path | Dataset,
    *,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    columns: Columns = None,
) -> bool:
    """Whether ``path`` holds texts rather than images, by its columns; False where nothing of texts is found.

    Tables of names of images hold images. ``columns`` as for ``open_texts``. Raises UserError for a file of another ending or that cannot be read, and where the hub cannot be reached.
    """
    if isinstance(path, str | Path):
        place = Path(path).expanduser()
        if place.is_file() and not place.name.lower().endswith(SUFFIXES):
            raise _unknown_ending(place)
        if holds_rankings(place):
            return False
        if place.is_dir() and (find_metadata(place) is not None or find_twins(place) is not None):
            return False
    else:
        check_dataset(path)
    try:
        own = ColumnNames(spelt_out(columns))
        source = find_texts(path, split=split, revision=revision, streaming=streaming, names=own)[0]
    except UserError:
        return False
    named = source.columns
    if names_two(named) or _first_gives_files(source):
        return False
    if isinstance(source, ParquetTexts | HubTexts):
        # Images may stand in chosen and rejected: their prompts are then all that is text.
        names, form = set(source.names.ours(source.schema.names)), detect(named)
        is_known = form is not None and (not form.is_prompts or named == names)
        return is_known and not _IMAGE_COLUMNS & names
    return not _IMAGE_COLUMNS & named


def _first_gives_files(source: TextSource) -> bool:
    """Whether the first usable row of ``source`` names the files of two images."""
    first = next((row.cells for row in source.rows() if not isinstance(row.cells, BadRow)), {})
    return gives_files(first)


def says_texts(path: str | Path) -> bool:
    """Whether the file ``path`` has the columns of a known format of texts, completions among them; no folder has."""
    place = Path(path).expanduser()
    if not place.is_file() or not place.name.lower().endswith(SUFFIXES) or not holds_texts(place):
        return False
    form = detect(file_source(place).columns)
    return form is not None and not form.is_prompts


def _files_in(folder: Path, split: str) -> list[Path]:
    # The split's own folder comes first; "data" is where data sets from the hub keep their files.
    for place in (folder / split, folder, folder / "data"):
        for kind, suffixes in KINDS.items():
            if files := sorted(
                path for path in place.glob("*") if _is_data(path) and path.name.lower().endswith(suffixes)
            ):
                return files if place.name == split else files_of_split(folder, files, split, kind)
    raise UserError(f"{folder}: no texts in this folder", FORMATS_HELP)


def _is_data(path: Path) -> bool:
    # Hidden files are other programs'; what stands under these names describes data and holds none.
    return not path.name.startswith(".") and path.name not in _DESCRIPTIONS and path.is_file()


def passed_over(path: str | Path | Dataset, sources: Sequence[TextSource]) -> list[str]:
    """Which files and folders of the folder ``path`` are not among ``sources``, in plain words."""
    read = [source.file for source in sources if isinstance(source, JsonSource | ParquetTexts | CsvSource)]
    if not read or not Path(path).expanduser().is_dir():
        return []
    place = read[0].parent
    others = sorted(each.name + "/" * each.is_dir() for each in place.iterdir() if each not in read)
    kept = [visible(name) for name in others if not name.startswith(".") and name not in _QUIET]
    more = f", and {len(kept) - _NAMED} more" if len(kept) > _NAMED else ""
    return [f"beside the files that were read: {', '.join(kept[:_NAMED])}{more}"] if kept else []


def _unknown_ending(path: Path) -> UserError:
    remedy = _REMEDIES.get(path.suffix.lower(), FORMATS_HELP)
    return UserError(f"{path}: not a file of texts, nor of pairs of images, by its ending", remedy)


_DESCRIPTIONS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
_QUIET = frozenset({"README.md", "LICENSE", "LICENSE.txt"})
_NAMED = 8
_REMEDIES = {
    ".txt": "write JSON Lines with a column text, prompt and completion, or prompt, chosen and rejected",
    ".arrow": "give the folder that save_to_disk wrote, or write the data as parquet (to_parquet)",
    ".xlsx": "save the table as CSV in UTF-8",
    ".gz": "name it as what it is once unpacked: .jsonl.gz, .json.gz, .csv.gz or .tsv.gz",
    ".zip": "unpack the archive, and give the folder",
    ".tar": "unpack the archive, and give the folder",
}
