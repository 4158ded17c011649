"""Losses on pairs that compare *distributions*: each example's loss depends on the ranks within the whole batch.

A batch is often worked through in parts, on several processes. So each function takes the part's log-probabilities with
their gradients, ``population``, those of the whole batch (N,) without, and ``positions`` (B,), where the part stands in it;
without them the part is the whole. Over all parts, sums of losses and of gradients are then those of one large batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types.training import PairLogps
from .labels import preference_loss
from .log_ratios import check_beta, log_ratios, policy_logps, widen


def _ranks(values: Tensor) -> Tensor:
    """The place of each of ``values`` (N,) in their sorted order; equal ones in the order in which they stand."""
    ranks = torch.empty_like(values, dtype=torch.long)
    ranks[torch.argsort(values, stable=True)] = torch.arange(len(values), device=values.device)
    return ranks


def _partners(values: Tensor, others: Tensor, positions: Tensor) -> Tensor:
    """For the ``positions`` in ``values`` (N,): that of ``others`` (N,) which has the same rank; no gradient."""
    ordered, _ = torch.sort(others)
    partners: Tensor = ordered[_ranks(values)[positions]].detach()
    return partners


def _whole(logps: PairLogps, population: PairLogps | None, positions: Tensor | None) -> tuple[PairLogps, Tensor]:
    if population is None or positions is None:
        return logps, torch.arange(len(logps.policy_chosen), device=logps.policy_chosen.device)
    return population, positions


def _margins(logps: PairLogps) -> tuple[Tensor, Tensor]:
    """s_w - s_l of policy and of reference, each (B,)."""
    log_ratios(logps)  # checks reference and shapes
    assert logps.reference_chosen is not None
    assert logps.reference_rejected is not None
    chosen, rejected = policy_logps(logps)
    return chosen - rejected, (widen(logps.reference_chosen) - widen(logps.reference_rejected)).detach()


def aot(
    logps: PairLogps,
    population: PairLogps | None = None,
    positions: Tensor | None = None,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Alignment by optimal transport: the policy's margins are to dominate the reference's as a distribution, (B,).

    With g = s_w - s_l, and g' that of the reference: dpo's loss with z = beta (g_(k) - g'_(k)), where (k) is the k-th
    smallest of the batch; a loss belongs to the example whose g has that rank. ``beta`` > 0, ``label_smoothing`` in
    [0, 0.5) as in ``pairwise.dpo``. Gradients jump where ranks change, as the loss itself demands.

    AOT on pairs, arXiv:2406.05882. Raises UserError for settings out of range and for a missing reference.
    """
    check_beta(beta)
    whole, positions = _whole(logps, population, positions)
    partners = _partners(*_margins(whole), positions)
    margin, _ = _margins(logps)
    return preference_loss(beta * (margin - partners.to(margin)), None, label_smoothing)


def aot_unpaired(
    logps: PairLogps,
    population: PairLogps | None = None,
    positions: Tensor | None = None,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Alignment by optimal transport between samples: log-ratios of chosen ones are to dominate those of rejected ones, (B,).

    dpo's loss with z = beta (h_w(k) - h_l(k)), where (k) is the k-th smallest of the batch: who was paired with whom does
    not matter. The loss of rank k is counted with the chosen sample of that rank, its gradient in both samples. ``beta`` >
    0, ``label_smoothing`` in [0, 0.5) as in ``pairwise.dpo``. Weights of examples weigh the gradients of their own two
    samples.

    AOT on unpaired samples, arXiv:2406.05882. Raises UserError for settings out of range and for a missing reference.
    """
    check_beta(beta)
    whole, positions = _whole(logps, population, positions)
    all_chosen, all_rejected = log_ratios(whole)
    chosen, rejected = log_ratios(logps)
    against_chosen = _partners(all_chosen, all_rejected, positions).to(chosen)
    against_rejected = _partners(all_rejected, all_chosen, positions).to(rejected)
    losses = preference_loss(beta * (chosen - against_chosen), None, label_smoothing)
    # The same loss seen from the rejected sample: its value is counted above, its gradient only here.
    mirrored = preference_loss(beta * (against_rejected - rejected), None, label_smoothing)
    return losses + (mirrored - mirrored.detach())
