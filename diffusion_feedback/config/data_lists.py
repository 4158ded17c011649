"""Several data sets in the place of one: ``[{path: a, weight: 2}, {path: b, repeats: 3}, c]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ..errors import UserError, nearest, shown
from ..folders import at_home
from ..values import Range

_REPEATS, _WEIGHT = Range(1, 1_000_000), Range(1e-6, 1_000_000)
_KEYS = ("path", "repeats", "weight")


@dataclass(frozen=True, slots=True)
class DataPart:
    """One data set of a run: a path, a hub id, or a ``datasets.Dataset``.

    Each of its examples is drawn ``repeats`` times an epoch, and ``weight`` times as often as that, on average.
    """

    place: Any
    repeats: int = 1
    weight: float = 1.0

    @property
    def times(self) -> float:
        """How often each example is drawn in an epoch."""
        return self.repeats * self.weight


def data_parts(given: object, key: str, *, weighted: bool) -> list[DataPart]:
    """The data sets that the value of ``key`` names: one, or a list of them, as themselves or as {path, repeats, weight}.

    ``weighted``: repeats and weights mean something there. Raises UserError naming the key and the item.
    """
    if not isinstance(given, list | tuple):
        return [_part(given, key, weighted=weighted)]
    if not given:
        raise UserError(f"{key}: an empty list", "name at least one data set")
    parts = [_part(each, f"{key}, item {number}", weighted=weighted) for number, each in enumerate(given, 1)]
    places = [part.place for part in parts if isinstance(part.place, str)]
    if twice := [place for place in places if places.count(place) > 1]:
        raise UserError(f"{key}: {twice[0]} stands in the list twice", "give it once, with repeats: 2")
    return parts


def _part(given: object, where: str, *, weighted: bool) -> DataPart:
    if not isinstance(given, Mapping):
        if given is None or given == "" or isinstance(given, bool | int | float | list):
            raise UserError(f"{where}: got {shown(given)}", "name a data set, or give {path: ..., repeats: 3}")
        return DataPart(at_home(given))
    if unknown := [name for name in given if name not in _KEYS]:
        raise UserError(f"{where}: unknown key {unknown[0]!r}", nearest(str(unknown[0]), list(_KEYS)))
    if not given.get("path"):
        raise UserError(f"{where}: no path", "give {path: ..., repeats: 3}")
    rest = {name: value for name, value in given.items() if name != "path" and value is not None}
    if rest and not weighted:
        raise UserError(f"{where}: {' and '.join(rest)}: means nothing here", "give the path alone")
    repeats, weight = rest.get("repeats", 1), rest.get("weight", 1.0)
    if isinstance(repeats, bool) or not isinstance(repeats, int):
        raise UserError(f"{where}: repeats: got {shown(repeats)}", "give a whole number; weight may be a fraction")
    if isinstance(weight, bool) or not isinstance(weight, Real):
        raise UserError(f"{where}: weight: got {shown(weight)}", "give a number above 0")
    _REPEATS.check(f"{where}: repeats", repeats)
    _WEIGHT.check(f"{where}: weight", float(weight))
    return DataPart(at_home(given["path"]), repeats, float(weight))


def named(parts: Sequence[object] | object) -> str:
    """The data sets of a recipe's value in a line, with their repeats and weights."""
    if not isinstance(parts, list | tuple):
        return str(parts)
    return ", ".join(_named(each) if isinstance(each, Mapping) else str(each) for each in parts)


def _named(part: Mapping[str, object]) -> str:
    extra = [f"{name} {part[name]}" for name in ("repeats", "weight") if part.get(name) is not None]
    return f"{part['path']}" + (f" ({', '.join(extra)})" if extra else "")
