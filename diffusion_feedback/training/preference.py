"""The step of every objective on preferences, and what an objective may see beyond its own example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import UserError
from ..objectives.metrics import pair_metrics, reward_scale
from ..objectives.unpaired import unpaired_log_ratios
from ..types.texts import TextBatch, UnpairedBatch
from ..types.training import Collect, PairLogps, StepOutput, UnpairedLogps
from .steps import StepParts, check_repeats, gate_against_reference

Rows = NDArray[np.float64]


@dataclass(slots=True)
class RunningMean:
    """The mean log-ratio of the samples of all earlier updates; ``scale`` is the beta of the rewards in the metrics.

    It moves once an update, by the metrics of the global batch: it is the same in all processes and for every way of
    cutting a batch into passes. ``updates`` counts them.
    """

    scale: float
    mean_log_ratio: float = 0.0
    updates: int = 0

    def handed(self, batch: object) -> dict[str, Tensor | PairLogps]:
        """``mean_log_ratio``, a scalar."""
        return {"mean_log_ratio": torch.tensor(self.mean_log_ratio, dtype=torch.float64)}

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take the samples of an update into the mean; updates are of one size, so they count alike."""
        rewards = (metrics["rewards/chosen"] + metrics["rewards/rejected"]) / 2
        self.updates += 1
        self.mean_log_ratio += (rewards / self.scale - self.mean_log_ratio) / self.updates

    def state_dict(self) -> dict[str, Tensor]:
        """The mean and the number of updates behind it."""
        return {
            "mean_log_ratio": torch.tensor(self.mean_log_ratio, dtype=torch.float64),
            "updates": torch.tensor(self.updates),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state_dict`` gave."""
        self.mean_log_ratio, self.updates = float(state["mean_log_ratio"]), int(state["updates"])


@dataclass(frozen=True, slots=True)
class Population:
    """The log-probabilities of the global batch (N,), and where the examples of each pass stand in it.

    ``positions`` holds (B,) places for each batch of this process, by its identity. Without a pass over all batches the batch is the whole.
    """

    everyone: PairLogps | None = None
    positions: Mapping[int, Tensor] = field(default_factory=dict)

    def handed(self, batch: object) -> dict[str, Tensor | PairLogps]:
        """``population`` and ``positions``. Raises KeyError for a batch that was not gathered."""
        if self.everyone is None:
            return {}
        return {"population": self.everyone, "positions": self.positions[id(batch)]}

    def gathered(
        self, step: PreferenceStep, network: nn.Module, batches: Sequence[object], collect: Collect
    ) -> PreferenceStep:
        """``step`` with the whole batch in sight: losses and gradients of the parts add up to those of one large batch."""
        with torch.no_grad():
            logps = [step.logps(network, batch) for batch in batches]
        rows = [_rows(each) for each in logps]
        device = logps[0].policy_chosen.device
        gathered = collect(torch.from_numpy(np.concatenate(rows).reshape(-1)))
        everyone = np.concatenate([values.cpu().numpy().reshape(-1, 4) for values in gathered])
        # One order for every way of cutting the batch, so that ties are broken alike.
        everyone = everyone[np.lexsort(everyone.T)]
        population = PairLogps(*torch.from_numpy(everyone).to(device).unbind(1))
        keys = [id(batch) for batch in batches]
        positions = {
            key: torch.from_numpy(_places(own, everyone)).to(device) for key, own in zip(keys, rows, strict=True)
        }
        references = {key: _reference(each) for key, each in zip(keys, logps, strict=True)}
        # What that pass computed of the reference is not computed again.
        parts = replace(step.parts, reference_logps=lambda batch: references[id(batch)])
        return PreferenceStep(parts, Population(population, positions))


@dataclass(frozen=True, slots=True)
class MeanDivergence:
    """That of policy from reference over the global batch: ``kl``, a scalar >= 0; None where it was not estimated.

    It is max(0, mean log-ratio) on prompts with the samples of others; pairs of images are shown with the prompts of
    other pairs, under the same timestep and noise.
    """

    kl: Tensor | None = None

    def handed(self, batch: object) -> dict[str, Tensor | PairLogps]:
        """``kl``."""
        return {} if self.kl is None else {"kl": self.kl}

    def gathered(
        self, step: PreferenceStep, network: nn.Module, batches: Sequence[object], collect: Collect
    ) -> PreferenceStep:
        """``step`` with the divergence of the global batch."""
        with torch.no_grad():
            own = torch.cat([step.mismatched_log_ratios(network, batch).double() for batch in batches])
        # In one order for every way of cutting the batch, so that the sum is the same to the last digit.
        everyone = torch.sort(torch.cat(collect(own))).values
        return PreferenceStep(step.parts, MeanDivergence(everyone.mean().clamp(min=0)))


Context = RunningMean | Population | MeanDivergence
"""What an objective is handed besides its own example."""


@dataclass(frozen=True, slots=True)
class PreferenceStep:
    """Samples that people preferred against others, or against a reference: Diffusion-DPO and all its relatives.

    Batches are pairs, or single samples with a label (``UnpairedBatch``). An objective on single samples takes a pair as
    two: the chosen one is desirable, the rejected one is not, and the pair's loss is the mean of both. ``context`` is what
    the objective sees beyond its own example; one that keeps a state makes the step an ``Observer`` that has some.
    """

    parts: StepParts
    context: Context | None = None

    @classmethod
    def of(cls, parts: StepParts) -> PreferenceStep:
        """The step of the objective of ``parts``, with the context that it asks for."""
        contexts: dict[str, Context] = {
            "mean_log_ratio": RunningMean(reward_scale(parts.settings)),
            "population": Population(),
            "kl": MeanDivergence(),
        }
        fitting = (context for name, context in contexts.items() if name in parts.objective.inputs)
        return cls(parts, next(fitting, None))

    @property
    def looks_ahead(self) -> bool:
        """Whether ``coupled`` has anything to compute."""
        return self.parts.objective.looks_ahead

    def check(self) -> None:
        """Ask the objective for one loss, so that settings out of range are refused before the work begins."""
        parts, two = self.parts, torch.zeros(2)
        soft = parts.soft_labels and "chosen_probability" in parts.objective.inputs
        label = {"chosen_probability": torch.ones(2)} if soft else {}
        pairs = PairLogps(policy_chosen=two, policy_rejected=two, reference_chosen=two, reference_rejected=two)
        logps = pairs if parts.objective.sees_both else UnpairedLogps(two, two, two.bool())
        parts.objective.check_losses(logps, examples=2, **label, **parts.settings)

    def logps(self, network: nn.Module, batch: object) -> Any:
        """Log-probabilities of ``batch`` under policy and reference, on the very same inputs.

        ``PairLogps`` of pairs, ``UnpairedLogps`` of single samples; these raise UserError without a reference.
        """
        likelihood = self.parts.likelihood
        if isinstance(batch, UnpairedBatch):
            samples = self._compared(network, likelihood.prepare_sequences(batch.samples))
            return UnpairedLogps(*samples, batch.desirable.to(samples[0].device))
        inputs = likelihood.prepare(batch)
        reference = self._reference(network, batch, inputs)
        with self.parts.autocast():
            policy = likelihood.logps(network, inputs)
        return PairLogps.of_halves(policy, reference, likelihood.lengths(inputs))

    def mismatched_log_ratios(self, network: nn.Module, batch: Any) -> Tensor:
        """Log-ratios of samples under prompts that they do not belong to: (B,), or (2B,) for pairs."""
        likelihood = self.parts.likelihood
        if isinstance(batch, UnpairedBatch):
            inputs = likelihood.prepare_sequences(batch.mismatched)
        else:
            inputs = likelihood.prepare(replace(batch, prompts=batch.mismatched))
        policy, reference = self._compared(network, inputs)
        return policy - reference

    def _compared(self, network: nn.Module, inputs: object) -> tuple[Tensor, Tensor]:
        """Log-probabilities of ``inputs`` under policy and reference, both computed."""
        reference = self._frozen(network, inputs)
        if reference is None:
            problem = "this objective compares the policy with a reference, and none was given"
            raise UserError(problem, "use a reference")
        with self.parts.autocast():
            return self.parts.likelihood.logps(network, inputs), reference

    def _reference(self, network: nn.Module, batch: object, inputs: object) -> Tensor | None:
        kept = self.parts.reference_logps
        return self._frozen(network, inputs) if kept is None else kept(batch)

    def _frozen(self, network: nn.Module, inputs: object) -> Tensor | None:
        parts = self.parts
        if parts.reference is None:
            return None
        with torch.no_grad(), parts.autocast(), parts.reference(parts.unwrap(network)) as frozen:
            logps: Tensor = parts.likelihood.logps(frozen, inputs)
        return logps

    def losses(self, logps: Any, batch: Any) -> Tensor:
        """Losses of the examples of ``batch`` (B,), unweighted."""
        parts, inputs = self.parts, self.parts.objective.inputs
        handed = {} if self.context is None else self.context.handed(batch)
        if isinstance(logps, PairLogps) and not parts.objective.sees_both:
            chosen, rejected = parts.objective(_single_samples(logps), **handed, **parts.settings).chunk(2)
            return (chosen + rejected) / 2  # type: ignore[no-any-return]
        if parts.soft_labels and "chosen_probability" in inputs:
            handed["chosen_probability"] = batch.chosen_probability.to(logps.policy_chosen)
        if isinstance(batch, TextBatch) and "margin" in inputs:
            handed["margin"] = batch.margin.to(logps.policy_chosen)
        return parts.objective(logps, **handed, **parts.settings)  # type: ignore[no-any-return]

    def __call__(self, network: nn.Module, batch: Any) -> StepOutput:
        """Sum of weighted losses, and metrics of each example."""
        parts, beta = self.parts, reward_scale(self.parts.settings)
        logps = self.logps(network, batch)
        losses = self.losses(logps, batch)
        weights: dict[str, Tensor] = {}
        if isinstance(logps, UnpairedLogps):
            metrics, weights = _sample_metrics(logps, beta)
        else:
            rewards = pair_metrics(logps, beta=beta, per_token=parts.objective.rewards == "mean")
            metrics = {**rewards, **parts.pair_metrics_of(logps)}
        if isinstance(self.context, MeanDivergence) and self.context.kl is not None:
            metrics["kl"] = self.context.kl.to(losses).expand(len(losses))
        return StepOutput(parts.total(losses, batch), {"loss": losses.detach(), **metrics}, weights)

    def coupled(self, network: nn.Module, batches: Sequence[object], collect: Collect) -> PreferenceStep:
        """The step for ``batches``, this process's part of one update."""
        if isinstance(self.context, Population | MeanDivergence):
            return self.context.gathered(self, network, batches, collect)
        return self

    def observe(self, network: nn.Module, metrics: Mapping[str, float]) -> None:
        """Let the context see an update."""
        if isinstance(self.context, RunningMean):
            self.context.observe(metrics)

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the context; empty for most objectives."""
        return self.context.state_dict() if isinstance(self.context, RunningMean) else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state_dict`` gave."""
        if isinstance(self.context, RunningMean):
            self.context.load_state_dict(state)

    def gate(self, network: nn.Module, batch: object) -> dict[str, float]:
        """Check that policy and reference agree before the first update. Raises UserError when they do not.

        Where the policy starts elsewhere on purpose, the reference has to agree with itself instead: on the same draws its second
        pass gives what the first one did.
        """
        with torch.no_grad():
            repeats = self._check_reference(network, batch) if self.parts.starts_elsewhere else {}
            return repeats | self._gate(network, batch)

    def _check_reference(self, network: nn.Module, batch: object) -> dict[str, float]:
        likelihood = self.parts.likelihood
        inputs = [
            likelihood.prepare_sequences(batch.samples)
            if isinstance(batch, UnpairedBatch)
            else likelihood.prepare(batch)
            for _ in range(2)
        ]
        first, second = (self._frozen(network, each) for each in inputs)
        return {} if first is None or second is None else check_repeats(self.parts, first, second)

    def _gate(self, network: nn.Module, batch: object) -> dict[str, float]:
        logps = self.logps(network, batch)
        if isinstance(logps, PairLogps):
            return gate_against_reference(self.parts, logps, lambda given: self.losses(given, batch))
        # The same sample twice makes a pair of which the gate is known.
        twice = PairLogps(logps.policy, logps.policy, logps.reference, logps.reference)
        return gate_against_reference(
            self.parts, twice, lambda given: self.losses(replace(logps, policy=given.policy_chosen), batch)
        )


def _reference(logps: PairLogps) -> Tensor:
    """What the reference says of chosen and rejected samples, (2B,)."""
    assert logps.reference_chosen is not None
    assert logps.reference_rejected is not None
    return torch.cat([logps.reference_chosen, logps.reference_rejected])


def _single_samples(logps: PairLogps) -> UnpairedLogps:
    """The samples of pairs one by one, (2B,): the chosen ones are desirable."""
    policy = torch.cat([logps.policy_chosen, logps.policy_rejected])
    desirable = torch.arange(len(policy), device=policy.device) < len(logps.policy_chosen)
    return UnpairedLogps(policy, _reference(logps), desirable)


def _rows(logps: PairLogps) -> Rows:
    """Log-probabilities of policy and reference, chosen and rejected, (B, 4) float64."""
    reference_chosen, reference_rejected = _reference(logps).chunk(2)
    columns = (logps.policy_chosen, logps.policy_rejected, reference_chosen, reference_rejected)
    return torch.stack([column.detach().double().cpu() for column in columns], 1).numpy()


def _places(rows: Rows, everyone: Rows) -> NDArray[np.intp]:
    """Where each of ``rows`` (B, 4) stands in ``everyone`` (N, 4); equal ones, as copies of a pair, share the first place."""
    places: NDArray[np.intp] = (rows[:, None, :] == everyone[None, :, :]).all(-1).argmax(1)
    return places


def _sample_metrics(logps: UnpairedLogps, beta: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rewards and log-probabilities of desirable (chosen) and undesirable (rejected) samples, and the weights that keep
    them apart: 1 for samples of their own kind, 0 for others.
    """
    rewards, policy = (beta * unpaired_log_ratios(logps)).detach(), logps.policy.detach().float()
    desirable = logps.desirable.to(rewards)
    sides = {"chosen": desirable, "rejected": 1 - desirable}
    metrics = {f"{name}/{side}": values for name, values in (("rewards", rewards), ("logps", policy)) for side in sides}
    return metrics, {name: sides[name.rpartition("/")[2]] for name in metrics}
