"""What every judge of texts makes sure of: one finite number for each completion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...records import Text
from ..checking import numbers

_SHOWN = 80  # characters of a text that a message quotes


def check_equal_length(prompts: Sequence[Text], completions: Sequence[Text]) -> None:
    """Raise ValueError unless there is one prompt for each completion."""
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts, {len(completions)} completions: give one prompt for each completion")


def finite(values: Iterable[Any], prompts: Sequence[Text], completions: Sequence[Text], judge: str) -> list[float]:
    """``values`` as floats, one for each of ``completions``.

    Raises UserError naming ``judge``, and the prompt and completion where a value is no number or not finite.
    """

    def describe(place: int) -> str:
        return f"the completion {quote(completions[place])} of the prompt {quote(prompts[place])}"

    return numbers(values, len(completions), judge, "completion", describe)


def quote(text: Text) -> str:
    """The beginning of a text, or of a conversation's last turn, in quotation marks."""
    if not isinstance(text, str):
        text = str(text[-1].get("content")) if text else ""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
