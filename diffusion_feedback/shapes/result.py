"""What the demo finds out: images of every model, what the exact verifier says of them, and the models compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config.recipe import Recipe
from ..evaluation.comparison import Comparison
from ..evaluation.statistics import WinRate
from ..reports.console import summarize


@dataclass(frozen=True, slots=True)
class VerifiedImages:
    """What the exact verifier says of one set of images, one value a prompt."""

    images: Sequence[Path]
    scores: Sequence[float]
    attributes: Sequence[float]
    cleanliness: Sequence[float]


@dataclass(frozen=True, slots=True)
class Demo:
    """A demo that came to its end in ``folder``, after ``seconds``; as text, its metrics.

    ``recipes`` and ``comparisons`` with the base are by method: "dpo", "sft", and "ai" where it was requested; ``images``
    are those of "base" besides.
    """

    folder: Path
    recipes: Mapping[str, Recipe]
    images: Mapping[str, VerifiedImages]
    comparisons: Mapping[str, Comparison]
    seconds: float

    @property
    def metrics(self) -> dict[str, float]:
        """What results.json holds: DPO against the base in full, the other methods beside it."""
        won = self.comparisons["dpo"].win_rate
        metrics = _rate("", won) | {"wins": won.wins, "ties": won.ties, "losses": won.losses}
        metrics |= {"p_value": won.p_value, "num_prompts": won.num}
        for name, field in (("attribute_accuracy", "attributes"), ("cleanliness", "cleanliness"), ("score", "scores")):
            metrics[f"{name}_before"] = average(getattr(self.images["base"], field))
            metrics[f"{name}_after"] = average(getattr(self.images["dpo"], field))
        for method, comparison in self.comparisons.items():
            if method != "dpo":
                metrics |= _rate(f"{method}_", comparison.win_rate)
                metrics[f"{method}_attribute_accuracy"] = average(self.images[method].attributes)
                metrics[f"{method}_cleanliness"] = average(self.images[method].cleanliness)
        return {**metrics, "seconds": self.seconds}

    def __str__(self) -> str:
        return summarize("demo", page=self.folder / "report.html", **self.metrics)


def _rate(prefix: str, won: WinRate) -> dict[str, float]:
    return {f"{prefix}win_rate": won.win_rate, f"{prefix}win_rate_low": won.low, f"{prefix}win_rate_high": won.high}


def average(values: Sequence[float]) -> float:
    """The average of ``values``, of which there is one at least."""
    return sum(values) / len(values)
