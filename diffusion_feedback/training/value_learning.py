"""The step that learns values of tokens from trajectories with rewards, while its policy imitates them (ILQL)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..catalog.rows import settings_of
from ..likelihoods.heads import token_logps
from ..objectives.log_ratios import widen
from ..objectives.value_learning import (
    ActionValues,
    awac_losses,
    cql_losses,
    next_values,
    q_losses,
    v_losses,
)
from ..types.texts import TrajectoryBatch
from ..types.training import StepOutput
from .steps import StepParts, check_first_loss


def check_rewards(batch: TrajectoryBatch) -> None:
    """Raise ValueError where a sequence has no action, or not one reward for each."""
    for example_id, sequence, rewards in zip(batch.example_ids, batch.sequences, batch.rewards, strict=True):
        if not 0 < sequence.num_scored == len(rewards):
            raise ValueError(f"{example_id}: {sequence.num_scored} scored tokens, {len(rewards)} rewards")


class Heads(Protocol):
    """What values tokens: ``models.value_heads.ValueHeads``. Hidden states (N, H) or (..., H) to values."""

    @property
    def target_q_heads(self) -> nn.Module: ...
    def q(self, hidden: Tensor) -> Tensor: ...
    def v(self, hidden: Tensor) -> Tensor: ...
    def target_q(self, hidden: Tensor) -> Tensor: ...
    def sync_targets(self, alpha: float) -> None: ...


class _ScaledGradient(torch.autograd.Function):
    """Its input as it is; the gradient times ``factor``."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


@dataclass
class ValueLearningStep:
    """Q and V heads and the policy's imitation, learnt together from the actions of trajectories.

    The network is called as ``network(input_ids, attention_mask, position_ids, read)``, where ``read`` gets the hidden
    states (B, T, H), the output head and ``heads``, which have ``q``, ``v``, ``target_q`` and ``sync_targets``
    (``models.value_heads``). The targets move after updates, by ``observe``; they and the number of updates are the state
    of this step. The loss of a trajectory is the sum over its actions, so divide by the number of actions of the global batch.
    """

    parts: StepParts
    heads: Heads
    updates: int = 0

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """All settings of the objective, its defaults among them: some are the step's own."""
        defaults = {name: each.default for name, each in settings_of(self.parts.objective.function).items()}
        return {**defaults, **self.parts.settings}

    def check(self) -> None:
        """Ask the objective for one loss, so that settings out of range are refused before the work begins."""
        one, two = torch.zeros(1), torch.zeros(2, 1)
        self.parts.objective.check_losses(
            ActionValues(one, two, two, one, one, one, one), examples=1, **self.parts.settings
        )

    def values(self, network: nn.Module, batch: TrajectoryBatch) -> tuple[ActionValues, Tensor]:
        """What policy and heads say of the N actions of ``batch``, in float32 or wider, and the trajectory of each, (N,)."""
        check_rewards(batch)
        inputs = self.parts.likelihood.prepare_sequences(batch.sequences)
        rewards = torch.from_numpy(np.concatenate(batch.rewards))

        def read(hidden: Tensor, output_head: nn.Module, heads: Heads) -> ActionValues:
            states = hidden.flatten(0, 1).index_select(0, inputs.read)
            watched = _ScaledGradient.apply(states, self.settings["value_gradient"])
            logps, _ = token_logps(states, output_head, inputs.targets)
            q, v = widen(heads.q(watched)), widen(heads.v(watched))
            with torch.no_grad():
                target_q = widen(heads.target_q(states))
            return ActionValues(
                logps=logps,
                q=q.gather(2, inputs.targets.expand(2, -1)[..., None]).squeeze(2),
                q_logsumexp=q.logsumexp(2),
                v=v,
                next_v=next_values(v.detach(), inputs.rows),
                target_q=target_q.gather(1, inputs.targets[:, None]).squeeze(1),
                rewards=rewards.to(v),
            )

        with self.parts.autocast():
            values: ActionValues = network(inputs.input_ids, inputs.attention_mask, inputs.position_ids, read)
        return values, inputs.rows

    def __call__(self, network: nn.Module, batch: TrajectoryBatch) -> StepOutput:
        """Sum of weighted losses over trajectories, and metrics as means over actions."""
        values, rows = self.values(network, batch)
        losses = self.parts.objective(values, **self.parts.settings)

        def by_trajectory(each: Tensor) -> Tensor:
            return each.new_zeros(len(batch)).index_add(0, rows, each)

        counts = by_trajectory(torch.ones_like(losses))
        metrics = {
            name: by_trajectory(each.detach()) / counts
            for name, each in {"loss": losses, **self._watched(values)}.items()
        }
        metrics["return"] = by_trajectory(values.rewards)
        weights = {name: counts for name in metrics if name != "return"}
        return StepOutput(self.parts.total(by_trajectory(losses), batch), metrics, weights)

    def _watched(self, values: ActionValues) -> dict[str, Tensor]:
        settings = self.settings
        return {
            "losses/q": q_losses(values, gamma=settings["gamma"]),
            "losses/v": v_losses(values, tau=settings["tau"]),
            "losses/cql": cql_losses(values),
            "losses/awac": awac_losses(values, beta=settings["beta"]),
            "nll": -values.logps,
            "values/q": values.q.mean(0),
            "values/v": values.v,
            "values/advantage": values.target_q - values.v,
        }

    def gate(self, network: nn.Module, batch: TrajectoryBatch) -> dict[str, float]:
        """Check that the first loss is finite. Raises UserError when it is not."""
        with torch.no_grad():
            output = self(network, batch)
        counts = output.weights["loss"]
        loss = float((output.metrics["loss"] * counts).sum() / counts.sum())
        return check_first_loss(loss)

    def observe(self, network: nn.Module, metrics: Mapping[str, float]) -> None:
        """Count the update, and move the targets where their turn has come."""
        self.updates += 1
        if self.updates % self.settings["target_sync_steps"] == 0:
            self.heads.sync_targets(self.settings["target_alpha"])

    def state_dict(self) -> dict[str, Tensor]:
        """The targets, and the number of updates under the name "updates"."""
        return {**self.heads.target_q_heads.state_dict(), "updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state_dict`` gave."""
        self.updates = int(state["updates"])
        self.heads.target_q_heads.load_state_dict({name: each for name, each in state.items() if name != "updates"})
