"""Two models judged against each other: verdicts, and what was measured of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..records import CompletionRecord, Text
from .judging import PositionBias
from .leakage import Leakage
from .statistics import Interval, WinRate


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one judge says of A against B, pair by pair: ``outcomes`` are 1 (A won), 0.5 or 0.

    ``a`` and ``b`` are what it said of each: scores, or preferences for the one shown first. ``means`` are the mean scores
    of A and B; ``bias`` is that of a judge of pairs. ``recipe_id`` names the judge.
    """

    spec: str
    recipe_id: str
    a: Sequence[float]
    b: Sequence[float]
    outcomes: Sequence[float]
    win_rate: WinRate
    means: tuple[Interval, Interval] | None = None
    bias: PositionBias | None = None


@dataclass(frozen=True, slots=True)
class Fluency:
    """How well a model knows held-out texts: ``perplexity`` a token, ``bits_per_byte`` whatever the tokenizer."""

    perplexity: Interval
    bits_per_byte: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Distance:
    """KL(model || reference) in nats a completion: ``kl`` by the divergences along the way, ``log_ratio`` by the tokens
    drawn, each with its standard error; ``exact`` the mean over prompts, where it could be had.
    """

    kl: Interval
    kl_error: float
    log_ratio: float
    log_ratio_error: float
    exact: float | None


@dataclass(frozen=True, slots=True)
class JudgeMeasurements:
    """Everything that was measured; ``names`` of A and B, and their completions side by side.

    ``leakage`` is by name what each has seen of the prompts and the judges; ``num_given`` prompts were given, repetitions
    counted, None where completions were.
    """

    names: tuple[str, str]
    completions: tuple[Sequence[CompletionRecord], Sequence[CompletionRecord]]
    verdicts: Sequence[Verdict] = ()
    fluency: Mapping[str, Fluency] = field(default_factory=dict)
    distance: Mapping[str, Distance] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    leakage: Mapping[str, Leakage] = field(default_factory=dict)
    num_given: int | None = None

    @property
    def prompts(self) -> list[Text]:
        """The different prompts, by their first appearance."""
        return list({repr(record.prompt): record.prompt for record in self.completions[0]}.values())

    def to_json(self) -> dict[str, object]:
        """What stands in results.json, with null where a number is not finite: JSON has no name for it."""
        verdicts = [asdict(verdict) for verdict in self.verdicts]
        keys = {
            "judge": "spec",
            "recipe_id": "recipe_id",
            "win_rate": "win_rate",
            "means": "means",
            "position_bias": "bias",
        }
        content: dict[str, object] = {
            "a": self.names[0],
            "b": self.names[1],
            "judges": [{key: verdict[name] for key, name in keys.items()} for verdict in verdicts],
            "fluency": {name: asdict(value) for name, value in self.fluency.items()},
            "prompts": {"given": self.num_given, "different": len(self.prompts)},
            "divergence": {name: asdict(value) for name, value in self.distance.items()},
            "leakage": {name: each.to_json(self.prompts) for name, each in self.leakage.items()},
            "settings": dict(self.settings),
        }
        return {key: _finite(value) for key, value in content.items()}


def _finite(value: object) -> Any:
    """``value`` with None where a number is not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
