"""Columns by the names that formats know: a user's own names for them, and what to say where some are missing."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import UserError, nearest
from ..prompts.tabular import check_columns

# Words of names that people give to the columns of pairs, by the names that formats have.
_SYNONYMS: Mapping[str, frozenset[str]] = {
    "prompt": frozenset({"prompt", "caption", "text", "description", "instruction", "question", "query", "title"}),
    "first": frozenset({"a", "left", "first", "0"}),
    "second": frozenset({"b", "right", "second"}),
    "vote": frozenset(
        {"vote", "winner", "preference", "choice", "preferred", "label", "better", "annotation", "answer"}
    ),
    "chosen": frozenset({"chosen", "win", "winner", "won", "better", "good", "best", "preferred", "positive"}),
    "rejected": frozenset({"rejected", "lose", "loser", "lost", "worse", "bad", "worst", "negative"}),
    "file_name": frozenset({"file", "name", "filename", "image", "path"}),
}
_ROLES = {
    "image_a": "first", "image_0": "first", "jpg_0": "first", "image_0_file_name": "first", "response_a": "first",
    "image_b": "second", "image_1": "second", "jpg_1": "second", "image_1_file_name": "second", "response_b": "second",
    "caption": "prompt", "label_0": "vote", "chosen_file_name": "chosen", "rejected_file_name": "rejected",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """A user's names for columns: ``theirs`` by ours. A column of the table that has one of our names gives way to it.

    Messages go on naming columns as the table does.
    """

    theirs: Mapping[str, str]

    def ours(self, names: Iterable[str]) -> dict[str, str]:
        """The columns ``names`` of a table by our names. Those that are named otherwise keep their own."""
        renamed = {column: name for name, column in self.theirs.items()}
        return {renamed.get(name, name): name for name in names if name in renamed or name not in self.theirs}

    def cells(self, cells: Mapping[str, object]) -> Mapping[str, object]:
        """A row's ``cells`` by our names."""
        return {name: cells[column] for name, column in self.ours(cells).items()} if self.theirs else cells

    def check(self, names: Sequence[str], where: str) -> dict[str, str]:
        """``ours`` of a whole table. Raises UserError for all of ``theirs`` that are not among its ``names``, at once."""
        check_columns(names, where)
        if absent := [f"{ours}={theirs}" for ours, theirs in self.theirs.items() if theirs not in names]:
            hints = [nearest(each.partition("=")[2], list(names)).partition("known:")[0].strip() for each in absent]
            hint = " ".join(dict.fromkeys(filter(None, hints)))
            problem = f"{where}: `columns` {','.join(absent)}: the table has no such column"
            raise UserError(problem, f"{hint}{' ' * bool(hint)}columns: {', '.join(names) or 'none'}")
        return self.ours(names)


AS_THEY_ARE = ColumnNames({})


Columns = Mapping[str, str] | str | None
"""A caller's names for columns, ours to theirs: a mapping, or as ``OURS=THEIRS,OURS=THEIRS``; none where not given."""


def spelt_out(given: Columns) -> dict[str, str]:
    """``given`` as a mapping. Raises UserError for a text that is none."""
    if not isinstance(given, str):
        return dict(given or {})
    theirs: dict[str, str] = {}
    for part in given.split(","):
        ours, equals, name = (word.strip() for word in part.partition("="))
        if not (ours and equals and name) or ours in theirs:
            problem = f"`columns`: {part!r}: {'stands twice' if ours in theirs else 'is not OURS=THEIRS'}"
            raise UserError(problem, "write it as image_a=left_path,image_b=right_path,vote=winner")
        theirs[ours] = name
    return theirs


def column_names(given: Columns, known: Sequence[str]) -> ColumnNames:
    """``given`` names of columns, as a caller says them.

    Raises UserError for all of ours that are not ``known``, at once, and for a column that is to stand for two.
    """
    theirs = spelt_out(given)
    if unknown := [name for name in theirs if name not in known]:
        hints = [match[0] for name in unknown if (match := difflib.get_close_matches(name, known, n=1, cutoff=0.5))]
        hint = f"did you mean {', '.join(map(repr, hints))}? " if hints else ""
        problem = f"`columns`: {', '.join(map(repr, unknown))}: no column that any form has"
        raise UserError(problem, f"{hint}OURS=THEIRS; ours may be {', '.join(known)}")
    if twice := [column for column in theirs.values() if list(theirs.values()).count(column) > 1]:
        raise UserError(f"`columns`: {twice[0]!r} stands for two columns", "give every column one name")
    return ColumnNames(theirs)


@dataclass(frozen=True, slots=True)
class ColumnForm:
    """A form of tables called ``name``: the names that each column which it ``needs`` may have, the plainest first, and
    an ``example`` of one cell each.
    """

    name: str
    needs: Sequence[Sequence[str]]
    example: Sequence[object]

    def lacks(self, names: Iterable[str]) -> list[str]:
        """The plainest names of the columns that a table with ``names`` does not have."""
        there = set(names)
        return [known[0] for known in self.needs if there.isdisjoint(known)]

    def lines(self, ending: str) -> list[str]:
        """Two lines of a table that would pass, as a file of such an ``ending`` has them."""
        columns = [known[0] for known in self.needs]
        if "json" in ending or "ndjson" in ending:
            return [json.dumps(dict(zip(columns, self.example, strict=True)), ensure_ascii=False)] * 2
        cells = [each if isinstance(each, str) else json.dumps(each) for each in self.example]
        file = io.StringIO()
        csv.writer(file, delimiter="\t" if "tsv" in ending else ",").writerows([columns, cells])
        return file.getvalue().splitlines()


def missing_columns(where: str, names: Sequence[str], forms: Sequence[ColumnForm], ending: str) -> UserError:
    """The error of a table ``where`` with columns ``names``, which has those of none of ``forms``.

    It names all that the nearest form lacks, the columns that may be meant, and two lines that would pass.
    """

    def likeness(form: ColumnForm) -> float:
        lacks = form.lacks(names)
        return len(form.needs) - len(lacks) + 0.75 * len(_guesses(lacks, form, names)) - 0.1 * len(lacks)

    form = max(forms, key=likeness)
    lacks = form.lacks(names)
    guesses = _guesses(lacks, form, names)
    has = ", ".join(names) or "none"
    if lacks:
        problem = f"{where}: no column{'s' * (len(lacks) > 1)} {', '.join(map(repr, lacks))}, as {form.name} have"
    else:
        problem = f"{where}: columns of several forms, and of none all"
    problem += f" (columns: {has})"
    renamed = f"did you mean `columns` {','.join(f'{ours}={theirs}' for ours, theirs in guesses.items())} ? "
    lines = "\n       ".join(form.lines(ending))
    return UserError(problem, f"{renamed if guesses else ''}Two lines that would pass:\n       {lines}")


def _guesses(lacks: Sequence[str], form: ColumnForm, names: Sequence[str]) -> dict[str, str]:
    """For columns that ``form`` lacks, those among ``names`` that are probably meant, by their letters and words."""
    used = {name for known in form.needs for name in known}
    free = [name for name in names if name not in used]
    guesses: dict[str, str] = {}
    for known in form.needs:
        likeness = {name: _likeness(name, known) for name in free if known[0] in lacks}
        best = max(likeness, key=lambda name: likeness[name], default=None)
        if best is not None and likeness[best] > 0:
            guesses[known[0]] = best
            free.remove(best)
    return guesses


def _likeness(name: str, known: Sequence[str]) -> float:
    """How well ``name`` fits the ``known`` ones, 0 to 1: by letters where it is misspelt, by the share of its words."""
    letters = max(difflib.SequenceMatcher(None, name.lower(), each).ratio() for each in known)
    words, meant = _words(name), _SYNONYMS.get(_ROLES.get(known[0], known[0]), frozenset())
    return max(letters if letters > 0.75 else 0, sum(word in meant for word in words) / max(1, len(words)))


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z0-9])", name) if word]
