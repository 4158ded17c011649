"""Which values settings may have, as the types of their fields say: ``Annotated[int, COUNT]`` is a number of things."""

from __future__ import annotations

import math
import os
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypeVar

from .errors import UserError, nearest, shown

Settings = TypeVar("Settings")


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from ``low`` to ``high``; ``above`` and ``below`` leave the ends out.

    ``multiples_of`` 1 or more takes its multiples alone. Of several numbers each must be in it; where they are to be
    ``distinct`` there must be one, and none twice. ``note`` is said with it.
    """

    low: float = 0
    high: float = math.inf
    above: bool = False
    below: bool = False
    multiples_of: int = 0
    distinct: bool = False
    note: str = ""

    def __contains__(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        under = (value < self.high if self.below else value <= self.high) and abs(value) <= sys.float_info.max
        return over and under and not (self.multiples_of and value % self.multiples_of)

    def __str__(self) -> str:
        return f"{'distinct numbers, ' * self.distinct}{self._ends()}{self.note and f'; {self.note}'}"

    def _ends(self) -> str:
        if self.multiples_of:
            return f"multiples of {self.multiples_of}, from {self.low:g} to {_short(self.high)}"
        if self.high <= 1:
            return f"{'above ' * self.above}{self.low:g} to {'below ' * self.below}{self.high:g}"
        least = f"above {self.low:g}" if self.above else f"{self.low:g} or more"
        if self.high < math.inf:
            return f"{least}, {'below' if self.below else 'at most'} {_short(self.high)}"
        return f"{least}, and finite"

    def check(self, key: str, value: object) -> None:
        """Raise UserError naming ``key`` unless ``value``, a number or several of them, is in here; None passes."""
        given = list(value) if isinstance(value, Sequence) else value
        numbers: list[Any] = given if isinstance(given, list) else [given]
        repeated = self.distinct and not 0 < len(numbers) == len(set(numbers))
        if repeated or not all(number is None or number in self for number in numbers):
            raise UserError(f"{key}: got {shown(given)}", f"allowed: {self}")


def _short(number: float) -> str:
    return "2^63" if number == 2.0**63 else f"{number:,.0f}"


# So much fits into what the libraries count with; and far more than anyone can use.
_SIZE = 1_000_000
COUNT, SOME = Range(1, _SIZE), Range(0, _SIZE)
SEVERAL = Range(2, _SIZE)
POSITIVE, NOT_NEGATIVE = Range(above=True), Range()
SHARE, DECAY = Range(0, 1), Range(0, 1, below=True)
SEED = Range(0, 2.0**63, below=True)
SEEDS = Range(0, 2.0**63, below=True, distinct=True)
TOKENS = Range(1, 2**31 - 1)
GUIDANCE = Range(0, 1000, note="1 and less is no guidance, 7.5 is usual")  # beyond, all pictures are noise
SIDE = Range(8, 16_384, multiples_of=8)  # px
STRENGTH = Range(-100, 100, note="1 is as it was trained, 0 is the base")
MARGIN = Range(note="in the unit of the scores")


def hints_of(kind: type[object]) -> dict[str, object]:
    """The types of the fields of ``kind``."""
    return typing.get_type_hints(kind)


def notes_of(kind: type[object]) -> dict[str, tuple[object, ...]]:
    """What stands beside the types of the fields of ``kind``: ranges, and whom a field is for."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}


_PLAIN: Mapping[object, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def described(hint: object) -> str:
    """What values a type takes, such as "lora or full"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(["null" if part is type(None) else described(part) for part in arguments])
    if origin is Literal:
        return one_of(arguments)
    if origin is list and arguments == (Any,):
        return "a list of data sets, such as [a, {path: b, repeats: 3}]"
    if origin in (list, Sequence):
        return "a list of texts, such as [one, other]" if arguments == (str,) else "a list of numbers, such as [0, 1]"
    if origin is tuple:
        return f"{len(arguments)} numbers, such as [0.2, 0.8]"
    if origin is Mapping:
        return "a mapping"
    if origin is dict:
        return "settings with their names, such as {name: adamw}"
    return _PLAIN.get(hint, "settings with their names, each in a line of its own")


def one_of(names: Sequence[object]) -> str:
    """``names`` as a sentence lists them: "a, b or c"."""
    *some, last = map(str, names)
    return f"{', '.join(some)} or {last}" if some else last


def checked_by_type(kind: type[Settings]) -> type[Settings]:
    """Let the dataclass that ``kind`` becomes refuse values of another type than its fields have, and out of range.

    Paths become texts, and numbers floats where they are recorded as such. UserError names the parameter.
    """
    hints, notes, further = hints_of(kind), notes_of(kind), vars(kind).get("__post_init__")

    def check(settings: Settings) -> None:
        for name, hint in hints.items():
            value = getattr(settings, name)
            if not _fits(value, hint):
                raise UserError(f"`{name}`: got {shown(value)}", _allowed(value, hint))
            plain = os.fspath(value) if isinstance(value, os.PathLike) else float(value) if hint is float else value
            for note in notes[name]:
                if isinstance(note, Range):
                    note.check(f"`{name}`", plain)
                elif callable(note):  # which makes what is kept
                    plain = note(plain)
            object.__setattr__(settings, name, plain)
        if further is not None:
            further(settings)

    kind.__post_init__ = check  # type: ignore[attr-defined]
    return kind


def _allowed(value: object, hint: object) -> str:
    """What may stand in the place of ``value``; the nearest name where names are meant."""
    parts = [hint, *typing.get_args(hint)]
    choices = [choice for part in parts if typing.get_origin(part) is Literal for choice in typing.get_args(part)]
    return nearest(str(value), choices) if choices else f"allowed: {described(hint).replace('null', 'None')}"


def _fits(value: object, hint: object) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is Sequence:
        several = value if isinstance(value, Sequence) and not isinstance(value, str) else None
        return several is not None and all(_fits(each, parts[0]) for each in several)
    if isinstance(value, bool):
        return hint is bool
    kinds: dict[Any, Any] = {int: Integral, float: Real, str: (str, os.PathLike)}
    return isinstance(value, kinds.get(hint, origin or hint))
