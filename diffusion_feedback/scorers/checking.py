"""What every judge makes sure of: one finite number for each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from itertools import islice
from typing import Any, cast

import numpy as np

from ..errors import UserError, first_line

_LARGEST = float(np.finfo(np.float32).max)  # what learns from a score has no more
_SHOWN = 80  # characters of a text that a message quotes


def numbers(values: object, number: int, judge: str, sample: str, describe: Callable[[int], str]) -> list[float]:
    """``values`` as floats, one for each of ``number`` samples; ``sample`` is what one is called, "image" say.

    Raises UserError naming ``judge``, and by ``describe(i)`` the sample whose value is no number or not finite.
    """
    remedy = f"return a list, one number for each {sample}"
    if isinstance(values, (str, bytes, dict)):  # lists of something else: characters, keys
        raise UserError(f"{judge}: returned {_shown(values)}", remedy)
    try:
        rows = list(islice(cast(Iterable[object], values), number + 1))  # what goes on for ever is not read to its end
    except Exception as error:  # what is made while it is read may fail in any way
        problem = f"{judge}: returned {_shown(values)}, of which no list can be made: {first_line(error)}"
        raise UserError(problem, remedy) from error
    if len(rows) != number:
        count = len(values) if isinstance(values, Sized) else len(rows)
        more = "or more " if count > number and not isinstance(values, Sized) else ""
        problem = f"{judge}: {count} {more}scores for {number} {sample}s"
        raise UserError(problem, f"return one number for each {sample}, in order")
    return [_number(value, judge, sample, index, describe) for index, value in enumerate(rows)]


def _number(value: Any, judge: str, sample: str, index: int, describe: Callable[[int], str]) -> float:
    try:
        score = float(value)
    except OverflowError:
        score = float("inf")
    except Exception as error:  # a number of a stranger's own kind may fail in any way
        problem = f"{judge}: {_shown(value)} for {describe(index)}"
        raise UserError(problem, f"return a number for each {sample}") from error
    if not abs(score) <= _LARGEST:
        problem = f"{judge}: the score of {describe(index)} is {score}"
        raise UserError(problem, "give a judge whose scores are finite numbers in single precision")
    return score


def _shown(value: Any) -> str:
    """The beginning of a value's own words for itself, or its kind where it has none, as a number of 5,000 digits."""
    try:
        text = repr(value)
    except Exception:  # a stranger's object may fail in any way
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
