"""The line that says how a run goes: smoothed metrics, the learning rate, and the rate in the word for its examples."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from ..progress import progress

_KEPT = 0.9  # of what the line showed, from one step to the next
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class ProgressLine:
    """The bar of ``total`` steps from ``start`` on, each of ``num_examples`` examples that ``unit`` names in the plural."""

    def __init__(self, start: int, total: int, num_examples: int, unit: str, *, is_hidden: bool) -> None:
        self.bar = progress(total=total, initial=start, desc="train", unit="step", disable=is_hidden, bar_format=_BAR)
        self._num_examples, self._unit = num_examples, unit
        self.smoothed: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.close()

    def step(self, metrics: Mapping[str, float]) -> None:
        """Count a step with its ``metrics``."""
        for name, value in metrics.items():
            # The mean of the steps so far, of which older ones count less; unlike one that starts at 0 it has no bias.
            weight = self._weights[name] = 1 + _KEPT * self._weights.get(name, 0.0)
            before = self.smoothed.get(name, value)
            self.smoothed[name] = before + (value - before) / weight
        parts = describe_progress({**self.smoothed, "lr": metrics.get("lr", 0.0)})
        if rate := self.bar.format_dict["rate"]:
            parts.insert(2, f"{rate * self._num_examples:.3g} {self._unit}/s")
        self.bar.set_postfix_str(", ".join(parts), refresh=False)
        self.bar.update()


def describe_progress(metrics: Mapping[str, float]) -> list[str]:
    """What the line shows of ``metrics``: loss, accuracy or reward, chosen and rejected apart, learning rate."""
    parts = [f"loss {metrics['loss']:.4f}"] if "loss" in metrics else []
    for name, word in (("rewards/accuracies", "accuracy"), ("objective/scores", "reward"), ("objective/kl", "KL")):
        if name in metrics:
            parts.append(f"{word} {metrics[name]:.2f}")
    for side in ("chosen", "rejected"):
        error, change = metrics.get(f"error/{side}"), metrics.get(f"error/{side}_change")
        if error is not None and change is not None and error != change:
            parts.append(f"{side} {100 * change / (error - change):+.1f} %")
        elif (gained := metrics.get(f"logps/{side}_change")) is not None:
            parts.append(f"{side} {gained:+.2f} nats")
    return [*parts, f"lr {metrics['lr']:.3g}"] if "lr" in metrics else parts
