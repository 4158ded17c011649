"""What every judge of texts makes sure of: one finite number for each completion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from itertools import islice
from typing import Any

import numpy as np

from ...errors import UserError, first_line

_LARGEST = float(np.finfo(np.float32).max)  # what learns from a score has no more
_SHOWN = 80  # characters of a text that a message quotes


def check_equal_length(prompts: Sequence[Any], completions: Sequence[Any]) -> None:
    """Raise ValueError unless there is one prompt for each completion."""
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts, {len(completions)} completions: give one prompt for each completion")


def finite(values: Iterable[Any], prompts: Sequence[Any], completions: Sequence[Any], judge: str) -> list[float]:
    """``values`` as floats, one for each of ``completions``.

    Raises UserError naming ``judge``, and the prompt and completion where a value is no number or not finite.
    """
    if isinstance(values, (str, bytes, dict)):  # lists of something else: characters, keys
        raise UserError(f"{judge}: returned {shown(values)}", "return a list, one number for each completion")
    try:
        found = list(islice(values, len(completions) + 1))  # what goes on for ever is not read to its end
    except Exception as error:  # what is made while it is read may fail in any way
        problem = f"{judge}: returned {shown(values)}, of which no list can be made: {first_line(error)}"
        raise UserError(problem, "return a list, one number for each completion") from error
    if len(found) != len(completions):
        count = len(values) if isinstance(values, Sized) else len(found)
        more = "or more " if count > len(completions) and not isinstance(values, Sized) else ""
        problem = f"{judge}: {count} {more}scores for {len(completions)} completions"
        raise UserError(problem, "return one number for each completion, in order")
    scores: list[float] = []
    for value, prompt, completion in zip(found, prompts, completions, strict=True):
        try:
            score = float(value)
        except OverflowError:
            score = float("inf")
        except Exception as error:  # a number of a stranger's own kind may fail in any way
            problem = f"{judge}: {shown(value)} for the completion {quote(completion)} of the prompt {quote(prompt)}"
            raise UserError(problem, "return a number for each completion") from error
        if not abs(score) <= _LARGEST:
            problem = (
                f"{judge}: the score of the completion {quote(completion)} of the prompt {quote(prompt)} is {score}"
            )
            raise UserError(problem, "give a judge whose scores are finite numbers in single precision")
        scores.append(score)
    return scores


def shown(value: Any) -> str:
    """The beginning of a value's own words for itself, or its kind where it has none, as a number of 5,000 digits."""
    try:
        text = repr(value)
    except Exception:  # a stranger's object may fail in any way
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def quote(text: Any) -> str:
    """The beginning of a text, or of a conversation's last turn, in quotation marks."""
    if not isinstance(text, str):
        text = str(text[-1].get("content")) if text else ""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
