"""Policy gradients on completions that the policy drew: PPO, GRPO and RLOO behind one interface.

Each is made from its settings, which are its recipe schema, and has two halves: ``estimate`` turns the judged
completions of one iteration into advantages, once; ``losses`` compares the policy as it has become with the policy
that drew them, at every update. Tokens are flat, as in ``returns``. Losses are per completion (B,), never their mean:
the caller divides their sum by the sum of ``counts`` over the global mini-batch.

All raise UserError for settings out of range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from .log_ratios import check_positive, check_setting, widen
from .returns import (
    adapted_kl_coef,
    gae,
    group_normalised,
    k1,
    k3,
    leave_one_out,
    per_completion,
    token_rewards,
    whiten,
)

_LARGEST_LOG_RATIO = 20.0  # exp of more is no ratio that anything can be learnt from, and soon infinite
_KL = {"k1": k1, "k3": k3}


@dataclass(frozen=True, slots=True)
class Experience:
    """M judged completions of N tokens: log-probabilities under the policy that drew them and under the reference (N,).

    ``values`` (N,) are the value head's, of the states before each token; ``scores`` (M,); each ``num_generations``
    consecutive completions have one prompt.
    """

    logps: Tensor
    lengths: Tensor
    scores: Tensor
    reference: Tensor | None = None
    values: Tensor | None = None
    num_generations: int = 1


@dataclass(frozen=True, slots=True)
class Estimates:
    """What the updates work with, per token (N,): ``advantages``, and ``returns`` where a value head learns.

    ``non_score`` (M,) is what the KL adds to the reward of each completion.
    """

    advantages: Tensor
    non_score: Tensor
    returns: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Actions:
    """Drawn tokens at an update: ``policy`` (N,) with its gradient, ``old`` (N,) as drawn, of B completions.

    ``values`` (N,) come from the head as it is now, ``old_values`` (N,) as it was when the tokens were drawn.
    """

    policy: Tensor
    old: Tensor
    advantages: Tensor
    lengths: Tensor
    reference: Tensor | None = None
    values: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None


@dataclass(frozen=True, slots=True)
class ActionLosses:
    """Losses (B,) of completions, and metrics, each 1-D and detached: per token (N,), or per completion (B,)."""

    total: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class PolicyGradient(Protocol):
    """What rollouts and updates ask of an algorithm; without more, one of groups of completions, of fixed coefficients."""

    learns_values: ClassVar[bool] = False
    min_generations: ClassVar[int] = 2  # completions of one prompt, at least: a group has two

    @property
    def kl_coef(self) -> float:
        """Weight of the KL to the reference, at the start; 0: no reference is needed."""
        ...

    def estimate(self, experience: Experience, kl_coef: float) -> Estimates: ...
    def next_kl_coef(self, kl_coef: float, kl: float, completions: int) -> float:
        """The coefficient after an iteration whose completions had a KL of ``kl`` on average: the same."""
        return kl_coef

    def losses(self, actions: Actions) -> ActionLosses: ...
    def counts(self, lengths: Tensor) -> Tensor:
        """What each completion adds to the denominator, (B,): one, the loss is a mean over completions."""
        return torch.ones_like(lengths)


def log_ratio(policy: Tensor, old: Tensor) -> Tensor:
    """log(policy / old), within +-20 so that its exponential is finite."""
    return (widen(policy) - widen(old)).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, cliprange_value: float) -> Tensor:
    """Half the larger of two squared errors: of the value, and of the value within +-``cliprange_value`` of the old.

    As in the code of arXiv:1707.06347 and of arXiv:1909.08593.
    """
    near = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def clipped_policy_loss(
    policy: Tensor, old: Tensor, advantages: Tensor, *, low: float, high: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """- min(ratio A, clip(ratio, 1 - low, 1 + high) A), elementwise, where ratio = policy / old. Eq. 7, arXiv:1707.06347.

    With it, how far the policy is from the one that drew, under the names that TRL's PPO used.
    """
    log = log_ratio(policy, old)
    ratio = log.exp()
    losses = -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    is_clipped = ((ratio > 1 + high) & (advantages > 0)) | ((ratio < 1 - low) & (advantages < 0))
    return losses, {
        "loss/policy_avg": losses.detach(),
        "policy/approxkl_avg": 0.5 * log.detach().square(),
        "policy/clipfrac_avg": is_clipped.to(ratio),
        "val/ratio": ratio.detach(),
        "val/ratio_var": (ratio.detach() - 1).square(),
    }


def _check_common(kl: tuple[str, float], clips: Mapping[str, float | None]) -> None:
    check_setting(*kl, 0 <= kl[1] < math.inf, "a finite number, 0 or more (0: no reference)")
    for name, value in clips.items():
        if value is not None:
            check_positive(name, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class PPO(PolicyGradient):
    """Proximal policy optimisation with a value head and the KL to the reference in the reward.

    The reward of a completion is Eq. 2 of arXiv:2203.02155: its score, on the last token, less ``kl_coef`` times
    log(pi / pi_ref) at every token (``kl_estimator`` k1; k3 is the estimate that is never negative). Advantages are
    GAE's (``gamma``, ``lam``), whitened over the tokens of the iteration. The loss per token is Eq. 7 of
    arXiv:1707.06347 plus ``vf_coef`` times the clipped value loss; both are means over the tokens of the mini-batch.
    With ``target_kl`` (nats a completion) the coefficient adapts, over ``horizon`` completions (arXiv:1909.08593).
    """

    learns_values: ClassVar[bool] = True
    min_generations: ClassVar[int] = 1  # one completion of a prompt is enough

    kl_coef: float = 0.05
    kl_estimator: Literal["k1", "k3"] = "k1"
    target_kl: float | None = None
    horizon: float = 10000.0
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1

    def __post_init__(self) -> None:
        clips = {"cliprange": self.cliprange, "cliprange_value": self.cliprange_value, "vf_coef": self.vf_coef}
        _check_common(("kl_coef", self.kl_coef), {**clips, "target_kl": self.target_kl, "horizon": self.horizon})
        check_setting("cliprange", self.cliprange, self.cliprange < 1, "below 1")
        for name, value in (("gamma", self.gamma), ("lam", self.lam)):
            check_setting(name, value, 0 <= value <= 1, "0 to 1")
        check_setting("kl_estimator", self.kl_estimator, self.kl_estimator in _KL, ", ".join(_KL))
        check_setting("kl_coef", self.kl_coef, self.target_kl is None or self.kl_coef > 0, "above 0 with target_kl")

    def estimate(self, experience: Experience, kl_coef: float) -> Estimates:
        """Whitened GAE, and the returns that the value head learns: advantages before whitening, plus values."""
        logps, values = widen(experience.logps), experience.values
        if values is None:
            raise ValueError("PPO needs the values of the drawn tokens")
        kl = torch.zeros_like(logps)
        if experience.reference is not None:
            kl = _KL[self.kl_estimator](logps, experience.reference)
        rewards = token_rewards(experience.scores, kl, experience.lengths, kl_coef=kl_coef)
        advantages = gae(rewards, widen(values), experience.lengths, gamma=self.gamma, lam=self.lam)
        non_score = -kl_coef * per_completion(kl, experience.lengths)
        return Estimates(whiten(advantages), non_score, advantages + widen(values))

    def next_kl_coef(self, kl_coef: float, kl: float, completions: int) -> float:
        """The same without ``target_kl``; else moved against the error."""
        if self.target_kl is None:
            return kl_coef
        return adapted_kl_coef(kl_coef, kl, target=self.target_kl, horizon=self.horizon, completions=completions)

    def losses(self, actions: Actions) -> ActionLosses:
        """Sums over each completion's tokens (B,) of policy loss and ``vf_coef`` times value loss."""
        if actions.values is None or actions.old_values is None or actions.returns is None:
            raise ValueError("PPO needs values, old values and returns")
        policy, metrics = clipped_policy_loss(
            actions.policy, actions.old, actions.advantages, low=self.cliprange, high=self.cliprange
        )
        values, reach = widen(actions.values), self.cliprange_value
        value = clipped_value_loss(values, actions.old_values, actions.returns, cliprange_value=reach)
        moved = (values.detach() - actions.old_values).abs() > reach
        metrics |= {"loss/value_avg": value.detach(), "val/clipfrac_avg": moved.to(value)}
        return ActionLosses(per_completion(policy + self.vf_coef * value, actions.lengths), metrics)

    def counts(self, lengths: Tensor) -> Tensor:
        """Tokens: the loss is a mean over tokens."""
        return lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class GRPO(PolicyGradient):
    """Group relative policy optimisation: the other completions of the prompt are the baseline, no value head.

    Every token of a completion has the group-normalised score as its advantage; the loss is the mean over the
    completion's tokens of the clipped loss plus ``beta`` times k3, then the mean over completions: Eq. 3 of
    arXiv:2402.03300. ``epsilon_high``, where given, is the upper clip (clip-higher, arXiv:2503.14476).
    """

    beta: float = 0.04
    epsilon: float = 0.2
    epsilon_high: float | None = None

    def __post_init__(self) -> None:
        _check_common(("beta", self.beta), {"epsilon": self.epsilon, "epsilon_high": self.epsilon_high})
        check_setting("epsilon", self.epsilon, self.epsilon < 1, "below 1")

    @property
    def kl_coef(self) -> float:
        """``beta``."""
        return self.beta

    def estimate(self, experience: Experience, kl_coef: float) -> Estimates:
        """The group-normalised score at every token; the KL is in the loss."""
        advantages = group_normalised(experience.scores, experience.num_generations)
        return Estimates(advantages.repeat_interleave(experience.lengths), torch.zeros_like(advantages))

    def losses(self, actions: Actions) -> ActionLosses:
        """Means over each completion's tokens (B,)."""
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        policy, metrics = clipped_policy_loss(
            actions.policy, actions.old, actions.advantages, low=self.epsilon, high=high
        )
        if actions.reference is not None:
            policy = policy + self.beta * k3(actions.policy, actions.reference)
        return ActionLosses(per_completion(policy, actions.lengths) / actions.lengths, metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class RLOO(PolicyGradient):
    """REINFORCE with a leave-one-out baseline, clipped so that rollouts serve several updates; no value head.

    The reward of a completion is its score less ``beta`` times the sum of log(pi / pi_ref) over its tokens; its
    advantage is that less the mean reward of the prompt's other completions. The ratio is that of whole completions.
    RLOO of arXiv:2402.14740.
    """

    beta: float = 0.05
    epsilon: float = 0.2

    def __post_init__(self) -> None:
        _check_common(("beta", self.beta), {"epsilon": self.epsilon})
        check_setting("epsilon", self.epsilon, self.epsilon < 1, "below 1")

    @property
    def kl_coef(self) -> float:
        """``beta``."""
        return self.beta

    def estimate(self, experience: Experience, kl_coef: float) -> Estimates:
        """The completion's advantage at each of its tokens."""
        scores = widen(experience.scores)
        non_score = torch.zeros_like(scores)
        if experience.reference is not None:
            kl = k1(experience.logps, experience.reference)
            non_score = -kl_coef * per_completion(kl, experience.lengths).to(scores)
        advantages = leave_one_out(scores + non_score, experience.num_generations)
        return Estimates(advantages.repeat_interleave(experience.lengths), non_score)

    def losses(self, actions: Actions) -> ActionLosses:
        """Clipped losses of whole completions (B,)."""
        policy, old = (per_completion(widen(flat), actions.lengths) for flat in (actions.policy, actions.old))
        advantages = actions.advantages[actions.lengths.cumsum(0) - 1]
        return ActionLosses(*clipped_policy_loss(policy, old, advantages, low=self.epsilon, high=self.epsilon))
