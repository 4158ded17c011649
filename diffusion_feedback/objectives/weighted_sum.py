"""Several objectives on the same pairs at once: mixed preference optimisation (MPO, arXiv:2411.10442) and its like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..types.training import PairLogps
from .log_ratios import chosen_nll, policy_logps


def weighted_sum(
    logps: PairLogps,
    chosen_probability: Tensor | None = None,
    margin: Tensor | None = None,
    mean_log_ratio: Tensor | None = None,
    *,
    terms: Sequence[Mapping[str, Any]],
) -> Tensor:
    """Sum over ``terms`` of weight * loss, (B,), in float32 or wider.

    A term is {name, weight, and the settings of that objective}: one on pairs with a reference, one without, bco, or sft,
    which is -s_w / n_w of the chosen sample here. ``chosen_probability``, ``margin`` and ``mean_log_ratio`` go to the terms
    that know them. Names and settings are checked where the recipe is read (``catalog.check_terms``).

    Raises UserError for a weight that is not a finite number above 0, for soft labels with a term on pairs that takes hard
    ones only, and as the terms do.
    """
    from ..catalog import objective_row  # whose rows name this very function

    total = torch.zeros_like(policy_logps(logps)[0])
    given = {"chosen_probability": chosen_probability, "margin": margin, "mean_log_ratio": mean_log_ratio}
    for number, term in enumerate(terms):
        name, weight = term["name"], term["weight"]
        if not (isinstance(weight, (int, float)) and 0 < weight < math.inf):
            problem = f"objective.terms: term {number + 1} ({name}) has the weight {weight!r}"
            raise UserError(problem, "allowed: a finite number above 0")
        settings = {key: value for key, value in term.items() if key not in ("name", "weight")}
        row = objective_row(name)
        if row.learns_from == "chosen":
            losses = chosen_nll(logps)
        else:
            if chosen_probability is not None and "chosen_probability" not in row.inputs:
                problem = f"data.soft_labels: term {number + 1} ({name}) takes hard labels only"
                raise UserError(problem, "leave that term out, or use soft_labels: false")
            handed = {key: value for key, value in given.items() if value is not None and key in row.inputs}
            losses = row(logps, **handed, **settings)
        total = total + weight * losses
    return total
