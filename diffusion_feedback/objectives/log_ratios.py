"""What every objective starts from: log-ratios of policy to reference, in float32 or wider, and checked settings.

Notation: s = log p_policy of one sample, r = log p_reference, n its number of scored tokens; h = s - r; d = h_chosen -
h_rejected; z = beta * d. Indices: w for the chosen sample, l for the rejected one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import UserError
from ..types.training import PairLogps

# exp of more than this leaves float32 when it is squared in a gradient.
LARGEST_EXPONENT = 80.0


def widen(values: Tensor) -> Tensor:
    """Half precision to float32, wider types as they are: beta * d has more digits than half precision holds."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def log_ratios(logps: PairLogps) -> tuple[Tensor, Tensor]:
    """h of the chosen and of the rejected samples, each (B,); no gradient reaches the reference.

    Raises UserError when there is no reference, ValueError when the four are not all of one shape (B,).
    """
    if logps.reference_chosen is None or logps.reference_rejected is None:
        raise UserError("this objective compares the policy with a reference, and none was given", "use a reference")
    chosen, rejected = logps.policy_chosen, logps.policy_rejected
    shapes = [tuple(t.shape) for t in (chosen, rejected, logps.reference_chosen, logps.reference_rejected)]
    if len(shapes[0]) != 1 or len(set(shapes)) != 1:
        raise ValueError(f"log-probabilities must all have one shape (B,), got {shapes}")
    # Policy minus reference first: the two are close, so this subtraction loses nothing where the sums are large.
    return (
        widen(chosen) - widen(logps.reference_chosen).detach(),
        widen(rejected) - widen(logps.reference_rejected).detach(),
    )


def log_ratio_margin(logps: PairLogps) -> Tensor:
    """d = h_chosen - h_rejected, (B,); zero where policy and reference agree. Raises as ``log_ratios`` does."""
    chosen, rejected = log_ratios(logps)
    return chosen - rejected


def policy_logps(logps: PairLogps) -> tuple[Tensor, Tensor]:
    """s of the chosen and of the rejected samples, each (B,). Raises ValueError when they are not of one shape (B,)."""
    chosen, rejected = widen(logps.policy_chosen), widen(logps.policy_rejected)
    if chosen.ndim != 1 or chosen.shape != rejected.shape:
        shapes = [tuple(chosen.shape), tuple(rejected.shape)]
        raise ValueError(f"log-probabilities must all have one shape (B,), got {shapes}")
    return chosen, rejected


def lengths(logps: PairLogps) -> tuple[Tensor, Tensor]:
    """n of the chosen and of the rejected samples, each (B,) >= 1; ones where samples have no length.

    Raises ValueError for lengths of another shape.
    """
    like = widen(logps.policy_chosen).detach()
    given = (logps.chosen_length, logps.rejected_length)
    lengths_like = [torch.ones_like(like) if length is None else length.to(like) for length in given]
    if any(length.shape != like.shape for length in lengths_like):
        shapes = [tuple(length.shape) for length in lengths_like]
        raise ValueError(f"lengths must have shape {tuple(like.shape)}, got {shapes}")
    # A completion that was cut away whole has no tokens: its log-probability 0 is its mean too.
    chosen, rejected = (length.clamp(min=1) for length in lengths_like)
    return chosen, rejected


def token_means(logps: PairLogps) -> tuple[Tensor, Tensor]:
    """s / n of the chosen and of the rejected samples, each (B,): mean log-probabilities of tokens."""
    (chosen, rejected), (n_chosen, n_rejected) = policy_logps(logps), lengths(logps)
    return chosen / n_chosen, rejected / n_rejected


def chosen_nll(logps: PairLogps) -> Tensor:
    """-s_w / n_w, (B,): mean negative log-likelihood of the chosen sample's tokens; the SFT term of a pair."""
    return -token_means(logps)[0]


def check_setting(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    """Raise UserError unless ``value`` of the setting ``name`` is allowed; ``allowed`` says what is, in words."""
    if not is_allowed:
        raise UserError(f"objective.{name}: got {value!r}", f"allowed: {allowed}")


def check_beta(beta: float) -> None:
    """Raise UserError unless ``beta`` is finite and above 0."""
    check_positive("beta", beta)


def check_label_smoothing(label_smoothing: float) -> None:
    """Raise UserError unless ``label_smoothing`` lies in [0, 0.5); at 0.5 a label says nothing, beyond it lies."""
    check_setting("label_smoothing", label_smoothing, 0 <= label_smoothing < 0.5, "0 to below 0.5")


def check_not_negative(name: str, value: float) -> None:
    """Raise UserError unless ``value`` of the setting ``name`` is finite and 0 or more."""
    check_setting(name, value, 0 <= value < math.inf, "a finite number, 0 or more")


def check_positive(name: str, value: float) -> None:
    """Raise UserError unless ``value`` of the setting ``name`` is finite and above 0."""
    check_setting(name, value, 0 < value < math.inf, "a finite number above 0")
