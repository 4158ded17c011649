"""Cells of a row of texts, checked: texts, turns, numbers, and what goes to the chat template."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError, shown
from ..records import Message, Text, parse_json
from .rows import BadRow, Problem
from .votes import Choice, VoteColumn

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
# ShareGPT's names of the speakers, and LLaMA-Factory's of tools.
_SPEAKERS = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "observation": "tool",
}  # fmt: skip
_CALL = "function_call"  # LLaMA-Factory's turn of the assistant that calls a function, as JSON text
# Turns that a table or a script wrote out: JSON text, or Python's way of printing a list.
_WRITTEN_OUT = re.compile(r"""\s*\[?\s*\{\s*['"](role|from|content|value)['"]\s*:""")
_TRUTHS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


@dataclass(frozen=True, slots=True)
class TextCells:
    """One row by column; every reading checks what it reads, and raises BadRow naming file, row, column and value.

    ``seen`` gathers the columns that were read, so that the others can be reported. ``votes`` gives the reader of a column
    of votes on two others.
    """

    source: str
    cells: Mapping[str, Any]
    seen: set[str] = field(default_factory=set)
    votes: Callable[[str, tuple[str, str]], VoteColumn] | None = None

    def get(self, column: str) -> Any:
        """The cell as it stands; None where there is none."""
        self.seen.add(column)
        return self.cells.get(column)

    def unread(self) -> list[str]:
        """The columns that hold something and were not read so far."""
        return [name for name, value in self.cells.items() if name not in self.seen and not is_blank(value)]

    def bad(self, kind: Problem, column: str, says: str) -> BadRow:
        """The error of this row at ``column``."""
        return BadRow(kind, f"{self.source}, column {column!r}: {says}")

    def raw(self, column: str) -> object:
        """The cell as it stands; a missing column or an empty cell is a bad row."""
        value = self.get(column)
        if column not in self.cells:
            raise self.bad("missing", column, f"no such column; found: {', '.join(self.cells)}")
        if value is None:
            raise self.bad("missing", column, "empty (null)")
        return value

    def string(self, column: str, *, blank: bool = False) -> str:
        """A text; ``blank`` allows one without a visible character."""
        value = self.raw(column)
        if not isinstance(value, str):
            raise self.bad("text", column, f"found {shown(value)}, not a text")
        if not blank and not value.strip():
            raise self.bad("empty", column, f"found {value!r}, an empty text")
        return value

    def text(self, column: str, *, blank: bool = False) -> Text:
        """A text, or turns (one may stand without its list); ``blank`` allows an empty text, or no turns."""
        value = self.raw(column)
        if not isinstance(value, list | tuple | Mapping):
            text = self.string(column, blank=blank)
            if _WRITTEN_OUT.match(text):
                says = f"found {shown(text)}, turns that were written out as a text"
                raise self.bad("turns", column, f"{says}; JSON Lines and parquet hold the list itself")
            return text
        return self.turns(column) if value or not blank else ()

    def turns(self, column: str) -> tuple[Message, ...]:
        """Turns of a conversation, at least one: {role, content}, or ShareGPT's {from, value}."""
        value = self.raw(column)
        value = [value] if isinstance(value, Mapping) else value
        if not isinstance(value, list | tuple):
            raise self.bad("turns", column, f'found {shown(value)}, not a list of {{"role": ..., "content": ...}}')
        if not value:
            raise self.bad("empty", column, "found [], no turns")
        return tuple(self._turn(column, number, turn) for number, turn in enumerate(value))

    def _turn(self, column: str, number: int, turn: object) -> Message:
        if not isinstance(turn, Mapping):
            raise self.bad("turns", column, f'turn {number}: found {shown(turn)}, not {{"role": ..., "content": ...}}')
        if "role" not in turn and "from" in turn:
            rest = {key: part for key, part in turn.items() if key not in ("from", "value")}
            turn = {"role": turn["from"], "content": turn.get("value"), **rest}
        own = dict(turn)
        try:
            _take_role(own)
            _take_calls(own)
            _take_content(own)
        except ValueError as error:
            raise self.bad("turns", column, f"turn {number}: {error}") from error
        return own

    def reply(self, column: str) -> Text:
        """A completion: a text that says something, or turns of which the first is the assistant's."""
        value = self.text(column)
        return value if isinstance(value, str) else self.checked_reply(column, value)

    def checked_reply(self, column: str, turns: Sequence[Message]) -> tuple[Message, ...]:
        """``turns`` as a completion, at least one; the assistant speaks first, and says something."""
        if not turns:
            raise self.bad("empty", column, "holds no turn besides the prompt")
        if turns[0]["role"] != "assistant":
            says = f"the completion begins with a turn of role {turns[0]['role']!r}, not 'assistant'"
            raise self.bad("turns", column, says)
        if not any((turn.get("content") or "").strip() or turn.get("tool_calls") for turn in turns):
            raise self.bad("empty", column, "the assistant's turns are empty")
        return tuple(turns)

    def number(self, column: str) -> float | None:
        """A finite number; None where there is none."""
        value = self.get(column)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
            raise self.bad("score", column, f"found {shown(value)}, not a finite number in single precision")
        return float(value)

    def truth(self, column: str) -> bool:
        """True or false; also 1 or 0, as tables hold them."""
        value = self.raw(column)
        answer = _TRUTHS.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None
        if answer is None:
            raise self.bad("label", column, f"found {shown(value)}; allowed: true, false, 1, 0")
        return answer

    def choice(self, column: str, sides: tuple[str, str]) -> Choice | None:
        """The vote in ``column`` for one of two ``sides``; None where it is none by its own account."""
        votes = VoteColumn(column, sides, self.source) if self.votes is None else self.votes(column, sides)
        try:
            return votes.read(self.raw(column))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise self.bad("label", column, str(error)) from error

    def token_ids(self, *columns: str) -> tuple[tuple[int, ...], ...] | None:
        """Lists of token ids, one for each of ``columns``; None where a column is not there or empty."""
        cells = [self.get(column) for column in columns]
        if any(is_blank(cell) for cell in cells):
            return None
        for column, cell in zip(columns, cells, strict=True):
            if not isinstance(cell, list | tuple) or not all(type(token) is int and token >= 0 for token in cell):
                raise self.bad("text", column, f"found {shown(cell)}, not a list of token ids")
        return tuple(map(tuple, cells))

    def strength(self, *better_worse: str) -> dict[str, Any]:
        """The columns margin, chosen_probability and weight; the difference of two score columns is a margin too."""
        numbers: dict[str, Any] = {}
        for column, allowed, is_allowed in _STRENGTHS:
            value = self.number(column)
            if value is not None:
                if not is_allowed(value):
                    raise self.bad("score", column, f"found {value!r}; allowed: {allowed}")
                numbers[column] = value
        if better_worse and "margin" not in numbers:
            better, worse = (self.number(column) for column in better_worse)
            if better is not None and worse is not None:
                if better < worse:
                    beside = f"found {better!r} beside {better_worse[1]} {worse!r}: the rejected text scored higher"
                    raise self.bad("score", better_worse[0], beside)
                numbers["margin"] = better - worse
        return numbers

    def template(self) -> dict[str, Any]:
        """What goes to the chat template: ``tools`` and ``chat_template_kwargs``; either may be JSON text."""
        settings: dict[str, Any] = {}
        for column, kind in (("chat_template_kwargs", dict), ("tools", list)):
            value = self.get(column)
            if isinstance(value, str):
                try:
                    value = parse_json(value, f"{self.source}, column {column!r}", "") if value.strip() else None
                except UserError as error:
                    raise BadRow("json", error.problem) from error
            if value is not None and not isinstance(value, kind):
                raise self.bad("turns", column, f"found {shown(value)}, not a {kind.__name__}")
            if value:
                settings |= value if isinstance(value, dict) else {column: value}
        return settings


_LARGEST = (2 - 2**-23) * 2.0**127  # what is learnt from it is float32
_STRENGTHS = (
    ("margin", "0 or more", lambda value: value >= 0),
    ("chosen_probability", "0.5 to 1", lambda value: 0.5 <= value <= 1),
    ("weight", "above 0", lambda value: value > 0),
)


def is_blank(value: object) -> bool:
    """Whether a cell holds nothing."""
    return value is None or (
        isinstance(value, str | list | tuple | Mapping) and not (value.strip() if isinstance(value, str) else value)
    )


# --- one turn: each raises ValueError for what it cannot take ----------------------------------------------------------


def _take_role(turn: dict[str, object]) -> None:
    role = turn.get("role")
    if not isinstance(role, str) or _SPEAKERS.get(role, role) not in (*ROLES, _CALL):
        raise ValueError(f"found role {shown(role)}; known roles: {', '.join(ROLES)}")
    turn["role"] = _SPEAKERS.get(role, role)
    if role == _CALL:
        function = _json_object(turn.pop("content", None), "a call of a function")
        turn |= {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}


def _take_calls(turn: dict[str, object]) -> None:
    """Calls of tools as templates read them: arguments as an object (OpenAI writes JSON text), no empty list."""
    calls = turn.get("tool_calls")
    if "tool_calls" in turn and is_blank(calls):
        del turn["tool_calls"]
        return
    if not isinstance(calls, list | tuple):
        return
    taken = []
    for call in calls:
        if not isinstance(call, Mapping):
            raise ValueError(f"found {shown(call)} among tool_calls, not an object")
        function = call["function"] if isinstance(call.get("function"), Mapping) else call
        if isinstance(arguments := function.get("arguments"), str):
            read = _json_object(arguments, "arguments of a tool") if arguments.strip() else {}
            function = {**function, "arguments": read}
        taken.append({**call, "function": function} if "function" in call else function)
    turn["tool_calls"] = taken


def _take_content(turn: dict[str, object]) -> None:
    content = turn.get("content")
    if isinstance(content, list | tuple) and content:
        # OpenAI's parts. A model of texts reads no others than texts.
        for part in content:
            if (
                not isinstance(part, Mapping)
                or part.get("type", "text") != "text"
                or not isinstance(part.get("text"), str)
            ):
                raise ValueError(f"found the part {shown(part)}; only parts of the type text are read")
        turn["content"] = content = "".join(part["text"] for part in content)
    if not isinstance(content, str) and not (content is None and turn.get("tool_calls")):
        raise ValueError(f"found content {shown(content)}, not a text")


def _json_object(text: object, what: str) -> dict[str, object]:
    try:
        content = parse_json(text, what, "") if isinstance(text, str) else text
    except UserError as error:
        raise ValueError(f"found {shown(text)}; {error.problem}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"found {shown(text)}, not {what} as an object of JSON")
    return dict(content)
