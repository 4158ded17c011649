"""Losses that learn values of tokens from trajectories with rewards: (N,) losses, one an action, never their mean.

An action is a token of a completion, its state all the tokens before it. Notation: Q_1, Q_2 and V are heads of the
model, bar Q_1 and bar Q_2 their slowly following targets, Q' = min(bar Q_1, bar Q_2), pi the policy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .log_ratios import check_not_negative, check_setting, widen

# Where rewards are large, exp would make one action outweigh all others, or overflow; the same bound as in IQL's code.
_LARGEST_WEIGHT = 100.0


@dataclass(frozen=True, slots=True)
class ActionValues:
    """What the heads say of N actions, the actions of a trajectory following each other; ``q`` and ``q_logsumexp`` (2, N),
    all else (N,).

    ``logps`` is log pi(a | s); ``q`` Q_i(s, a), and ``q_logsumexp`` the logsumexp of Q_i(s, .) over the vocabulary; ``v``
    V(s), and ``next_v`` V of the state of the trajectory's next action, 0 after its last; ``target_q`` Q'(s, a);
    ``rewards`` what came with the action.
    """

    logps: Tensor
    q: Tensor
    q_logsumexp: Tensor
    v: Tensor
    next_v: Tensor
    target_q: Tensor
    rewards: Tensor


def q_losses(values: ActionValues, *, gamma: float) -> Tensor:
    """Sum over both heads of (r + gamma V(s') - Q_i(s, a))^2; no gradient reaches V.

    (Eq. 6 of implicit Q-learning, arXiv:2110.06169, which arXiv:2206.11871 takes to tokens; two heads as in trlX.)
    """
    target = (widen(values.rewards) + gamma * widen(values.next_v)).detach()
    return (widen(values.q) - target).square().sum(0)


def v_losses(values: ActionValues, *, tau: float) -> Tensor:
    """Expectile regression of V(s) on Q'(s, a): |tau - 1[u < 0]| u^2 with u = Q' - V.

    Its minimum over the actions of a state is the mean of their Q' at tau 1/2, and goes to the largest of them as tau goes
    to 1 (Eq. 5, arXiv:2110.06169).
    """
    difference = widen(values.target_q).detach() - widen(values.v)
    return (tau - (difference < 0).to(difference)).abs() * difference.square()


def cql_losses(values: ActionValues) -> Tensor:
    """Sum over both heads of the cross entropy of softmax(Q_i(s, .)) and the action: what the data never shows is not
    overrated (arXiv:2206.11871, after conservative Q-learning, Eq. 4 of arXiv:2006.04779).
    """
    return (widen(values.q_logsumexp) - widen(values.q)).sum(0)


def awac_losses(values: ActionValues, *, beta: float) -> Tensor:
    """-exp(beta (Q' - V)) log pi(a | s), the weight without gradient and at most 100; behaviour cloning at beta 0.

    (Eq. 7, arXiv:2110.06169, whose code has the same bound.)
    """
    advantage = (widen(values.target_q) - widen(values.v)).detach()
    return -(beta * advantage).clamp(max=math.log(_LARGEST_WEIGHT)).exp() * widen(values.logps)


def ilql(
    values: ActionValues,
    *,
    gamma: float = 0.99,
    tau: float = 0.7,
    cql_scale: float = 0.1,
    awac_scale: float = 1.0,
    beta: float = 0.0,
    target_alpha: float = 0.001,
    target_sync_steps: int = 5,
    value_gradient: float = 1.0,
) -> Tensor:
    """Implicit language Q-learning: L_Q + L_V + cql_scale L_CQL + awac_scale L_AWAC, (N,), in float32 or wider.

    ``gamma`` in [0, 1] discounts; ``tau`` in (0, 1) is V's expectile; the scales are >= 0; ``beta`` >= 0 sharpens the
    policy's imitation by advantage (the beta of decoding is another one). The last three make the step around this
    loss, and are only checked here: every ``target_sync_steps`` updates the targets move by ``target_alpha`` in (0, 1]
    towards the Q heads, and ``value_gradient`` in [0, 1] is the part of the values' gradient that reaches the trunk below
    the heads: at 0 the policy learns as by behaviour cloning alone. Raises UserError for a setting out of range.
    (arXiv:2206.11871; scales and targets as in github.com/CarperAI/trlx.)
    """
    check_setting("gamma", gamma, 0 <= gamma <= 1, "0 to 1")
    check_setting("tau", tau, 0 < tau < 1, "between 0 and 1")
    for name, value in (("cql_scale", cql_scale), ("awac_scale", awac_scale), ("beta", beta)):
        check_not_negative(name, value)
    check_setting("target_alpha", target_alpha, 0 < target_alpha <= 1, "above 0, to 1")
    check_setting("target_sync_steps", target_sync_steps, target_sync_steps >= 1, "1 or more")
    check_setting("value_gradient", value_gradient, 0 <= value_gradient <= 1, "0 to 1")
    return (
        q_losses(values, gamma=gamma)
        + v_losses(values, tau=tau)
        + cql_scale * cql_losses(values)
        + awac_scale * awac_losses(values, beta=beta)
    )


def next_values(v: Tensor, rows: Tensor) -> Tensor:
    """V of each action's successor, (N,): that of the next action of the same trajectory, 0 after the last.

    ``rows`` (N,) numbers the trajectories, in rising order.
    """
    follows = torch.cat([rows[1:] == rows[:-1], rows.new_zeros(1, dtype=torch.bool)])
    return torch.where(follows, v.roll(-1), 0.0)
