"""Calls every objective on samples in one way, whatever its kind, with a value of each of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffusion_feedback.catalog import resolve
from diffusion_feedback.catalog.objectives import OBJECTIVES
from diffusion_feedback.catalog.rows import settings_of
from diffusion_feedback.types.training import PairLogps, UnpairedLogps

ON_PAIRS = [name for name, row in OBJECTIVES.items() if row.sees_both]
COUPLED = [name for name in ON_PAIRS if OBJECTIVES[name].looks_ahead]
WITH_REFERENCE = [name for name in ON_PAIRS if OBJECTIVES[name].needs_reference]
FREE = [name for name in ON_PAIRS if name not in (*WITH_REFERENCE, "weighted_sum")]
UNPAIRED = [name for name, row in OBJECTIVES.items() if row.learns_from == "labels"]
ON_SAMPLES = [name for name, row in OBJECTIVES.items() if row.kind in ("pairwise", "unpaired", "pointwise")]

# Settings under which every objective is called; where a setting has a default, what stands here is used all the same. What
# stands neither here nor has a default is one half.
COMMON: Mapping[str, Any] = {
    "beta": 0.1,
    "label_smoothing": 0.1,
    "gamma": 0.3,
    "delta": 1.0,
    "tau": 0.05,
    "dpop_lambda": 5.0,
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": None,
    "desirable_weight": 1.2,
    "undesirable_weight": 0.7,
    "terms": [
        {"name": "dpo", "weight": 0.8, "beta": 0.1},
        {"name": "bco", "weight": 0.2, "beta": 0.2},
        {"name": "simpo", "weight": 0.4, "beta": 2.0, "gamma": 0.5},
        {"name": "sft", "weight": 1.0},
    ],
}
ALPHA: Mapping[str, float] = {"odpo": 1.5, "rdpo": 0.05, "cpo": 0.5, "alphapo": 0.25, "slic": 0.5}


def settings_for(name: str) -> dict[str, Any]:
    """A value of each setting of ``name``."""
    known = {**COMMON, "alpha": ALPHA.get(name, 0.5)}
    schema = settings_of(resolve("objective", name))
    return {
        key: known.get(key, each.default if each.default is not each.empty else 0.5) for key, each in schema.items()
    }


def call(name: str, logps: Any, *handed: Any, **changes: Any) -> Tensor:
    """Losses of ``name`` under the settings above and ``changes``; ``handed`` and names that are no settings go along."""
    losses: Tensor = resolve("objective", name)(logps, *handed, **(settings_for(name) | changes))
    return losses


def pairs(
    *columns: list[float], dtype: torch.dtype = torch.float64, lengths: tuple[list[float], list[float]] | None = None
) -> PairLogps:
    """Pairs from four (or two) columns of numbers, and the lengths of both sides."""
    both = [torch.tensor(column, dtype=dtype) for column in lengths or ()]
    logps = [torch.tensor(column, dtype=dtype) for column in columns]
    return PairLogps(*logps, *([None] * (4 - len(logps))), *both)


def random_pairs(number: int, seed: int = 0, longest: int = 7) -> PairLogps:
    """Pairs of texts: sums of negative log-probabilities over 1 to ``longest`` tokens, policy near reference."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (2, number), generator=generator).double()
    reference = -lengths * (0.3 + torch.rand(2, number, generator=generator, dtype=torch.float64))
    policy = reference + torch.randn(2, number, generator=generator, dtype=torch.float64)
    policy = policy.clamp(max=-0.01)
    return PairLogps(*policy, *reference, *lengths)


def unpaired(
    policy: list[float], reference: list[float], desirable: list[bool], dtype: torch.dtype = torch.float64
) -> UnpairedLogps:
    """Single samples from columns of numbers."""
    return UnpairedLogps(
        torch.tensor(policy, dtype=dtype), torch.tensor(reference, dtype=dtype), torch.tensor(desirable)
    )
