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

from ..errors import UserError
from .log_ratios import widen
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
    """What rollouts and updates ask of an algorithm."""

    @property
    def kl_coef(self) -> float:
        """Weight of the KL to the reference, at the start; 0: no reference is needed."""
        ...

    @property
    def learns_values(self) -> bool: ...
    @property
    def min_generations(self) -> int:
        """Completions of one prompt, at least."""
        ...

    def estimate(self, experience: Experience, kl_coef: float) -> Estimates: ...
    def next_kl_coef(self, kl_coef: float, kl: float, completions: int) -> float:
        """The coefficient after an iteration whose completions had a KL of ``kl`` on average."""
        ...

    def losses(self, actions: Actions) -> ActionLosses: ...
    def counts(self, lengths: Tensor) -> Tensor:
        """What each completion adds to the denominator, (B,)."""
        ...


def log_ratio(policy: Tensor, old: Tensor) -> Tensor:
    """log(policy / old), within +-20 so that its exponential is finite."""
    return (widen(policy) - widen(old)).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)


def clipped_policy_loss(ratio: Tensor, advantages: Tensor, *, low: float, high: float) -> Tensor:
    """- min(ratio A, clip(ratio, 1 - low, 1 + high) A), elementwise. Eq. 7, arXiv:1707.06347."""
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, cliprange_value: float) -> Tensor:
    """Half the larger of two squared errors: of the value, and of the value within +-``cliprange_value`` of the old.

    As in the code of arXiv:1707.06347 and of arXiv:1909.08593.
    """
    near = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def _ratio_metrics(ratio: Tensor, advantages: Tensor, log: Tensor, *, low: float, high: float) -> dict[str, Tensor]:
    """How far the policy is from the one that drew, under the names that TRL's PPO used."""
    is_clipped = ((ratio > 1 + high) & (advantages > 0)) | ((ratio < 1 - low) & (advantages < 0))
    return {
        "policy/approxkl_avg": 0.5 * log.detach().square(),
        "policy/clipfrac_avg": is_clipped.to(ratio),
        "val/ratio": ratio.detach(),
        "val/ratio_var": (ratio.detach() - 1).square(),
    }


def _check(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise UserError(f"objective.{name}: got {value!r}", f"allowed: {allowed}")


def _check_common(kl: tuple[str, float], clips: Mapping[str, float | None]) -> None:
    _check(0 <= kl[1] < math.inf, *kl, "a finite number, 0 or more (0: no reference)")
    for name, value in clips.items():
        _check(value is None or 0 < value < math.inf, name, value, "a finite number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class PPO:
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
        _check(self.cliprange < 1, "cliprange", self.cliprange, "below 1")
        for name, value in (("gamma", self.gamma), ("lam", self.lam)):
            _check(0 <= value <= 1, name, value, "0 to 1")
        _check(self.kl_estimator in _KL, "kl_estimator", self.kl_estimator, ", ".join(_KL))
        _check(self.target_kl is None or self.kl_coef > 0, "kl_coef", self.kl_coef, "above 0 with target_kl")

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
        log = log_ratio(actions.policy, actions.old)
        ratio = log.exp()
        policy = clipped_policy_loss(ratio, actions.advantages, low=self.cliprange, high=self.cliprange)
        values, reach = widen(actions.values), self.cliprange_value
        value = clipped_value_loss(values, actions.old_values, actions.returns, cliprange_value=reach)
        moved = (values.detach() - actions.old_values).abs() > reach
        metrics = {
            "loss/policy_avg": policy.detach(),
            "loss/value_avg": value.detach(),
            "val/clipfrac_avg": moved.to(value),
            **_ratio_metrics(ratio, actions.advantages, log, low=self.cliprange, high=self.cliprange),
        }
        return ActionLosses(per_completion(policy + self.vf_coef * value, actions.lengths), metrics)

    def counts(self, lengths: Tensor) -> Tensor:
        """Tokens: the loss is a mean over tokens."""
        return lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class GRPO:
    """Group relative policy optimisation: the other completions of the prompt are the baseline, no value head.

    Every token of a completion has the group-normalised score as its advantage; the loss is the mean over the
    completion's tokens of the clipped loss plus ``beta`` times k3, then the mean over completions: Eq. 3 of
    arXiv:2402.03300. ``epsilon_high``, where given, is the upper clip (clip-higher, arXiv:2503.14476).
    """

    learns_values: ClassVar[bool] = False
    min_generations: ClassVar[int] = 2  # a group has two completions at least

    beta: float = 0.04
    epsilon: float = 0.2
    epsilon_high: float | None = None

    def __post_init__(self) -> None:
        _check_common(("beta", self.beta), {"epsilon": self.epsilon, "epsilon_high": self.epsilon_high})
        _check(self.epsilon < 1, "epsilon", self.epsilon, "below 1")

    @property
    def kl_coef(self) -> float:
        """``beta``."""
        return self.beta

    def estimate(self, experience: Experience, kl_coef: float) -> Estimates:
        """The group-normalised score at every token; the KL is in the loss."""
        advantages = group_normalised(experience.scores, experience.num_generations)
        return Estimates(advantages.repeat_interleave(experience.lengths), torch.zeros_like(advantages))

    def next_kl_coef(self, kl_coef: float, kl: float, completions: int) -> float:
        """The same."""
        return kl_coef

    def losses(self, actions: Actions) -> ActionLosses:
        """Means over each completion's tokens (B,)."""
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        log = log_ratio(actions.policy, actions.old)
        ratio = log.exp()
        policy = clipped_policy_loss(ratio, actions.advantages, low=self.epsilon, high=high)
        metrics = {
            "loss/policy_avg": policy.detach(),
            **_ratio_metrics(ratio, actions.advantages, log, low=self.epsilon, high=high),
        }
        if actions.reference is not None:
            policy = policy + self.beta * k3(actions.policy, actions.reference)
        return ActionLosses(per_completion(policy, actions.lengths) / actions.lengths, metrics)

    def counts(self, lengths: Tensor) -> Tensor:
        """One each: the loss is a mean over completions."""
        return torch.ones_like(lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class RLOO:
    """REINFORCE with a leave-one-out baseline, clipped so that rollouts serve several updates; no value head.

    The reward of a completion is its score less ``beta`` times the sum of log(pi / pi_ref) over its tokens; its
    advantage is that less the mean reward of the prompt's other completions. The ratio is that of whole completions.
    RLOO of arXiv:2402.14740.
    """

    learns_values: ClassVar[bool] = False
    min_generations: ClassVar[int] = 2  # leaving one out must leave one

    beta: float = 0.05
    epsilon: float = 0.2

    def __post_init__(self) -> None:
        _check_common(("beta", self.beta), {"epsilon": self.epsilon})
        _check(self.epsilon < 1, "epsilon", self.epsilon, "below 1")

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

    def next_kl_coef(self, kl_coef: float, kl: float, completions: int) -> float:
        """The same."""
        return kl_coef

    def losses(self, actions: Actions) -> ActionLosses:
        """Clipped losses of whole completions (B,)."""
        whole = [per_completion(widen(flat), actions.lengths) for flat in (actions.policy, actions.old)]
        advantages = actions.advantages[actions.lengths.cumsum(0) - 1]
        log = log_ratio(*whole)
        ratio = log.exp()
        losses = clipped_policy_loss(ratio, advantages, low=self.epsilon, high=self.epsilon)
        metrics = {
            "loss/policy_avg": losses.detach(),
            **_ratio_metrics(ratio, advantages, log, low=self.epsilon, high=self.epsilon),
        }
        return ActionLosses(losses, metrics)

    def counts(self, lengths: Tensor) -> Tensor:
        """One each: the loss is a mean over completions."""
        return torch.ones_like(lengths)
