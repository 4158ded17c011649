"""Cells of a row of texts, checked: texts, turns, numbers, and what goes to the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..records import Message, Text, parse_json
from .rows import BadRow, Problem

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
# ShareGPT's names of the speakers.
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row by column; every reading checks what it reads, and raises BadRow naming file, row, column and value."""

    source: str
    cells: Mapping[str, Any]

    def bad(self, kind: Problem, column: str, says: str) -> BadRow:
        """The error of this row at ``column``."""
        return BadRow(kind, f"{self.source}, column {column!r}: {says}")

    def raw(self, column: str) -> Any:
        """The cell as it stands; a missing column or an empty cell is a bad row."""
        if column not in self.cells:
            raise self.bad("missing", column, f"no such column; found: {', '.join(self.cells)}")
        value = self.cells[column]
        if value is None:
            raise self.bad("missing", column, "empty (null)")
        return value

    def string(self, column: str, *, blank: bool = False) -> str:
        """A text; ``blank`` allows one without a visible character."""
        value = self.raw(column)
        if not isinstance(value, str):
            raise self.bad("text", column, f"found {_shown(value)}, not a text")
        if not blank and not value.strip():
            raise self.bad("empty", column, f"found {value!r}, an empty text")
        return value

    def text(self, column: str, *, blank: bool = False) -> Text:
        """A text, or turns; ``blank`` allows an empty text, or no turns."""
        value = self.raw(column)
        if not isinstance(value, list | tuple):
            return self.string(column, blank=blank)
        return self.turns(column) if value or not blank else ()

    def turns(self, column: str) -> tuple[Message, ...]:
        """Turns of a conversation, at least one: {role, content}, or ShareGPT's {from, value}."""
        value = self.raw(column)
        if not isinstance(value, list | tuple):
            raise self.bad("turns", column, f'found {_shown(value)}, not a list of {{"role": ..., "content": ...}}')
        if not value:
            raise self.bad("empty", column, "found [], no turns")
        return tuple(self._turn(column, number, turn) for number, turn in enumerate(value))

    def _turn(self, column: str, number: int, turn: Any) -> Message:
        if not isinstance(turn, Mapping):
            raise self.bad("turns", column, f'turn {number}: found {_shown(turn)}, not {{"role": ..., "content": ...}}')
        if "role" not in turn and "from" in turn:
            rest = {key: part for key, part in turn.items() if key not in ("from", "value")}
            turn = {"role": _SPEAKERS.get(turn["from"], turn["from"]), "content": turn.get("value"), **rest}
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES:
            known = ", ".join(ROLES)
            raise self.bad("turns", column, f"turn {number}: found role {role!r}; known roles: {known}")
        if not isinstance(content, str) and not (content is None and turn.get("tool_calls")):
            raise self.bad("turns", column, f"turn {number}: found content {_shown(content)}, not a text")
        return dict(turn)

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
        value = self.cells.get(column)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
            raise self.bad("score", column, f"found {_shown(value)}, not a finite number in single precision")
        return float(value)

    def strength(self, *better_worse: str) -> dict[str, Any]:
        """The columns margin, chosen_probability and weight; the difference of two score columns is a margin too."""
        found: dict[str, Any] = {}
        for column, allowed, is_allowed in _STRENGTHS:
            value = self.number(column)
            if value is not None:
                if not is_allowed(value):
                    raise self.bad("score", column, f"found {value!r}; allowed: {allowed}")
                found[column] = value
        if better_worse and "margin" not in found:
            better, worse = (self.number(column) for column in better_worse)
            if better is not None and worse is not None:
                if better < worse:
                    beside = f"found {better!r} beside {better_worse[1]} {worse!r}: the rejected text scored higher"
                    raise self.bad("score", better_worse[0], beside)
                found["margin"] = better - worse
        return found

    def template(self) -> dict[str, Any]:
        """What goes to the chat template: ``tools`` and ``chat_template_kwargs``; either may be JSON text."""
        found: dict[str, Any] = {}
        for column, kind in (("chat_template_kwargs", dict), ("tools", list)):
            value = self.cells.get(column)
            if isinstance(value, str):
                try:
                    value = parse_json(value, f"{self.source}, column {column!r}", "") if value.strip() else None
                except UserError as error:
                    raise BadRow("json", error.problem) from error
            if value is not None and not isinstance(value, kind):
                raise self.bad("turns", column, f"found {_shown(value)}, not a {kind.__name__}")
            if value:
                found |= value if isinstance(value, dict) else {column: value}
        return found


_LARGEST = (2 - 2**-23) * 2.0**127  # what is learnt from it is float32
_STRENGTHS = (
    ("margin", "0 or more", lambda value: value >= 0),
    ("chosen_probability", "0.5 to 1", lambda value: 0.5 <= value <= 1),
    ("weight", "above 0", lambda value: value > 0),
)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
