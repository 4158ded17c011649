"""Forms of tables of pairs of images, by their columns: votes, vote shares, and chosen beside rejected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from ..errors import UserError
from .columns import AS_THEY_ARE, ColumnForm, ColumnNames, missing_columns
from .image_folders import is_image_name
from .rows import OPTIONAL_FIELDS, SIDES, BadRow, Location, PairRow, Part
from .votes import ANNOTATOR_COLUMNS, BOTH_BAD, VOTE_COLUMNS, VoteColumn

_PROMPTS = ("prompt", "caption")
_LONGEST_NAME = 1024


@dataclass(frozen=True, slots=True)
class PairForm:
    """A form with a prompt, one of these pairs of ``sides``, and one of ``labels``; without those side 0 is the chosen one."""

    name: str
    sides: Sequence[tuple[str, str]]
    labels: Sequence[str]
    example: Sequence[str]
    plain: int = 1
    """How many of ``sides`` belong to this form alone: a table with others of them is rather of another form."""

    @property
    def columns(self) -> ColumnForm:
        """What the form needs, for messages."""
        sides = zip(*self.sides[: self.plain], strict=True)
        label = [self.labels] if self.labels else []
        return ColumnForm(self.name, [_PROMPTS, *sides, *label], self.example)

    def match(self, names: Mapping[str, str], own: ColumnNames) -> dict[str, str] | None:
        """Our fields to the names among ``names`` that stand for them, those of ``own`` first; None where one is missing."""
        sides = [pair for pair in self.sides if set(pair) <= names.keys()]
        prompt, label = (_first(known, names, own) for known in (_PROMPTS, self.labels))
        if not sides or prompt is None or (self.labels and label is None):
            return None
        first, second = max(sides, key=lambda pair: len(own.theirs.keys() & set(pair)))
        fields = {"prompt": prompt, "image_0": first, "image_1": second}
        if label is None:
            return fields
        return fields | {"vote" if label in VOTE_COLUMNS else label: label}


def _first(known: Sequence[str], names: Mapping[str, str], own: ColumnNames) -> str | None:
    there = [name for name in known if name in names]
    return next((name for name in there if name in own.theirs), there[0] if there else None)


_LETTERS = (("image_a", "image_b"), ("image_left", "image_right"), ("left_image", "right_image"), ("left", "right"))
_NUMBERS = (("jpg_0", "jpg_1"), ("image_0", "image_1"), ("image_0_file_name", "image_1_file_name"), ("jpg_0_file_name", "jpg_1_file_name"))  # fmt: skip
_BETTER = (("chosen", "rejected"), ("chosen_file_name", "rejected_file_name"))
_EXAMPLE = ("a red circle", "images/1-a.png", "images/1-b.png")
FORMS = (
    PairForm("votes", (*_LETTERS, *_NUMBERS, ("image_1", "image_2")), VOTE_COLUMNS, (*_EXAMPLE, "a"), len(_LETTERS)),
    PairForm("Pick-a-Pic columns", (*_NUMBERS, *_LETTERS), ("label_0", "label_1"), (*_EXAMPLE, "1"), len(_NUMBERS)),
    PairForm("columns prompt, chosen, rejected", _BETTER, (), _EXAMPLE, len(_BETTER)),
)
KNOWN_COLUMNS = tuple(
    dict.fromkeys(
        (
            *_PROMPTS,
            *(name for form in FORMS for pair in form.sides for name in pair),
            *(*VOTE_COLUMNS, "label_0", *OPTIONAL_FIELDS, *ANNOTATOR_COLUMNS),
        )
    )
)
"""Every name that a column of a table of pairs may have."""


_OF_TEXTS_TOO = (("chosen", "rejected"), ("left", "right"))


def names_two(names: Iterable[str]) -> bool:
    """Whether a table with columns ``names`` gives two images a row, by names that no texts have."""
    there = set(names)
    return any({*pair} <= there for form in FORMS for pair in form.sides if pair not in _OF_TEXTS_TOO)


def gives_files(cells: Mapping[str, object]) -> bool:
    """Whether a row names the files of two images, or more."""
    texts = (cell.strip() for cell in cells.values() if isinstance(cell, str) and len(cell) < _LONGEST_NAME)
    return sum(is_image_name(text) for text in texts) > 1


@dataclass(frozen=True, slots=True)
class TableLayout:
    """Which column of a table holds what, by the table's names; ``labels`` are values that stand for a missing label.

    ``votes`` reads the column of votes, where there is one. ``is_mirrored``: label_1 alone is there. ``are_names``: both
    sides are names of files.
    """

    format: str
    columns: Mapping[str, str]
    labels: Mapping[str, float]
    unused: Sequence[str]
    votes: VoteColumn | None = None
    is_mirrored: bool = False
    are_names: bool = False

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        where: str,
        own: ColumnNames = AS_THEY_ARE,
        *,
        ending: str = ".csv",
        values: Callable[[str], Iterable[object]] | None = None,
    ) -> TableLayout:
        """Recognise the layout of columns ``names``, some of which ``own`` names; ``values`` gives all cells of one.

        Raises UserError naming ``where``, all columns that the nearest form lacks, and two lines that would pass.
        """
        ours = own.check(names, where)
        matches = [(form, fields) for form in FORMS if (fields := form.match(ours, own)) is not None]
        if not matches:
            raise missing_columns(where, names, [form.columns for form in FORMS], ending)
        # Of several the one that reads what the user has named; then labels, which say more than one vote.
        form, fields = max(
            matches, key=lambda match: (len(own.theirs.keys() & set(match[1].values())), "label_0" in match[1])
        )
        fields |= {name: name for name in (*OPTIONAL_FIELDS, BOTH_BAD) if name in ours}
        if (annotator := _first(ANNOTATOR_COLUMNS, ours, own)) is not None:
            fields["user_id"] = annotator
        labels = {} if form.labels else {"label_0": 1.0}
        if "label_0" not in fields and (not form.labels or "vote" in fields):
            fields.pop("label_1", None)  # speaks of label_0, which is not used here
        if unread := [f"{name}={own.theirs[name]}" for name in own.theirs if name not in fields.values()]:
            problem = f"{where}: `columns` {','.join(unread)}: is not read beside {', '.join(ours[x] for x in fields.values())}"
            raise UserError(problem, "leave it out, or name the columns of one form")
        columns = {field: ours[name] for field, name in fields.items()}
        unused = [name for name in names if name not in columns.values()]
        votes = None
        if "vote" in columns:
            column = columns["label_0"] = columns["vote"]
            give = None if values is None else lambda: values(column)
            votes = VoteColumn(column, (columns["image_0"], columns["image_1"]), where, give)
        return cls(form.name, columns, labels, unused, votes, "label_0" not in columns and not labels)

    @classmethod
    def of_schema(
        cls,
        schema: pa.Schema,
        where: str,
        own: ColumnNames = AS_THEY_ARE,
        values: Callable[[str], Iterable[object]] | None = None,
    ) -> TableLayout:
        """``of`` the columns of a ``schema``. Raises UserError for one of a wrong type too."""
        layout = cls.of(schema.names, where, own, values=values)
        for field, column in layout.columns.items():
            if not (layout.votes is not None and column == layout.votes.name):
                _check_type(field, schema.field(column), where)
        return replace(layout, are_names=all(is_text(schema.field(layout.columns[side]).type) for side in SIDES))

    def wanted(self, *, without_images: bool) -> list[str]:
        """Names of the columns to read."""
        left = set(SIDES) if without_images and not self.are_names else set()
        return list(dict.fromkeys(column for field, column in self.columns.items() if field not in left))

    def row(
        self,
        source: str,
        cells: Mapping[str, object],
        location: Location | None,
        folder: Path | None,
        part: Part | None = None,
        position: int = 0,
    ) -> PairRow:
        """The cells of one row under our names."""
        values = {field: cells[column] for field, column in self.columns.items() if column in cells}
        values |= self.labels
        if self.votes is not None:
            values |= _voted(self.votes, values, source)
        elif self.is_mirrored:
            values["label_0"] = _mirrored(values.get("label_1"))
        return PairRow(source, values, self.columns, location, folder, part, position)


def _voted(column: VoteColumn, values: Mapping[str, object], source: str) -> dict[str, object]:
    """The label of a vote; no label where it is none by its own account, a BadRow where it is not valid."""
    try:
        choice = column.read(values.get("vote"), values.get("image_0"), values.get("image_1"))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        return {"label_0": BadRow("label", f"{source}, column {column.name!r}: {error}")}
    return {"has_label": False} if choice is None else {"label_0": choice.share, BOTH_BAD: choice.is_both_bad}


def _mirrored(label_1: object) -> object:
    try:
        return 1 - float(label_1)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return label_1


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def is_image(kind: pa.DataType) -> bool:
    """Whether a column holds images: their bytes, or a struct of bytes and path."""
    if pa.types.is_struct(kind):
        return any(part.name == "bytes" and _is_binary(part.type) for part in kind)
    return _is_binary(kind)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_image_or_name(kind: pa.DataType) -> bool:
    return is_image(kind) or is_text(kind)


_IMAGE = "image bytes (binary, or a struct of bytes and path) or names of files (text)"
_TYPES: Mapping[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "prompt": (is_text, "text"),
    "image_0": (_is_image_or_name, _IMAGE),
    "image_1": (_is_image_or_name, _IMAGE),
    "label_0": (_is_number, "a number"),
    "label_1": (_is_number, "a number"),
    "num_example_per_prompt": (_is_number, "a whole number"),
    "has_label": (lambda kind: bool(pa.types.is_boolean(kind)), "true or false"),
    "are_different": (lambda kind: bool(pa.types.is_boolean(kind)), "true or false"),
    BOTH_BAD: (lambda kind: bool(pa.types.is_boolean(kind)), "true or false"),
}


def _check_type(name: str, column: pa.Field, where: str) -> None:
    fits, wanted = _TYPES.get(name, (None, ""))
    if fits is not None and not fits(column.type):
        problem = f"{where}: column {column.name!r} is of type {column.type}, not {wanted}"
        raise UserError(problem, f"write the column as {wanted}")
