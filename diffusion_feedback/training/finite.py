"""Losses, gradients and weights that are no numbers: which example they come from, and what can be done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..types.training import StepOutput

# Halving 2^16, where a scaler starts, as often as this leaves less than the smallest loss scale that means anything.
MAX_SKIPPED = 24

START_OVER = (
    "`resume` would come to the same place; train again (`overwrite`, or another output_dir) with a lower"
    " training.learning_rate, in bf16 or float32 where it was fp16, or without an example that is named here"
)


@dataclass
class Watch:
    """The losses of each example of one update, kept until it is known that all are numbers.

    ``name_of`` tells where the example of an id stands ("pairs.parquet, row 7").
    """

    name_of: Callable[[str], str]
    _seen: list[tuple[Sequence[str], Tensor]] = field(default_factory=list)

    def note(self, batch: object, output: StepOutput) -> None:
        """Keep the losses of ``batch``; nothing of it is computed, nothing is waited for."""
        ids = getattr(batch, "example_ids", None)  # completions that a policy drew have none
        losses = output.metrics.get("loss")
        if losses is not None:
            self._seen.append(([] if ids is None else ids, losses))

    def culprits(self) -> list[str]:
        """The examples whose loss is no number, each by its name and loss."""
        named = []
        for ids, losses in self._seen:
            values = losses.detach().float().cpu().tolist()
            for row, value in enumerate(values):
                if not abs(value) < float("inf"):
                    name = self.name_of(ids[row]) if len(ids) == len(values) else "a completion of the policy's own"
                    named.append(f"{name} (loss {value})")
        return named


def culprits_named(culprits: Sequence[str]) -> str:
    """A sentence on ``culprits``, the examples of all processes."""
    if not culprits:
        return "; the loss of every example is a number"
    more = f" and {len(culprits) - 3} more" if len(culprits) > 3 else ""
    return f", because of {', '.join(culprits[:3])}{more}"
