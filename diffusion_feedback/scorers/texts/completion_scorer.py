"""What every judge of completions is, and makes sure of: one finite number for each completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...records import Text
from ..checking import numbers

_SHOWN = 80  # characters of a text that a message quotes


@dataclass(frozen=True, slots=True)
class CompletionScorer:
    """A ``types.texts.TextScorer`` by ``values``, which is called with prompts, completions, and which of them are finished.

    ``label`` begins the messages about what it returns. ``logit_scale`` * score is a Bradley-Terry logit; None where the
    scorer has none. ``network`` is the model that judges, where one does.
    """

    name: str
    recipe_id: str
    label: str
    values: Callable[[Sequence[Text], Sequence[Text], Sequence[bool] | None], object]
    logit_scale: float | None = None
    network: Any = None

    def score(
        self, prompts: Sequence[Text], completions: Sequence[Text], finished: Sequence[bool] | None = None
    ) -> list[float]:
        """One number for each completion; ``finished`` says which came to their end, None: all did.

        Raises UserError naming prompt and completion where it is no finite number, and for another count of them.
        """
        check_equal_length(prompts, completions)
        if not completions:
            return []
        return finite(self.values(prompts, completions, finished), prompts, completions, self.label)


def check_equal_length(prompts: Sequence[Text], completions: Sequence[Text]) -> None:
    """Raise ValueError unless there is one prompt for each completion."""
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts, {len(completions)} completions: give one prompt for each completion")


def finite(values: object, prompts: Sequence[Text], completions: Sequence[Text], judge: str) -> list[float]:
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
