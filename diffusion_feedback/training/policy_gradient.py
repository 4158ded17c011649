"""Updates of a policy from its own completions, and what is measured of completions when they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..likelihoods.tokens import TokenInputs, TokenLikelihood, TokenLogps, TokenReading
from ..objectives.policy_gradient import Actions, PolicyGradient
from ..types.texts import TokenSequence
from ..types.training import Reference, StepOutput
from .rollout_batches import RolloutBatch
from .rollouts import TokenStatistics
from .steps import Autocast


@dataclass(frozen=True, slots=True)
class PolicyGradientStep:
    """One pass of an update: the clipped loss of its completions, and the loss of its pretraining text.

    ``likelihood`` has the temperature at which completions are drawn; ``pretraining`` has none, as text is learnt as it
    stands. ``language_model`` finds the language model in the network (whatever wraps it for training): under PPO the
    network is a ``models.actor_critic.ActorCritic``, otherwise the language model itself. ``reference`` is None where
    the algorithm's KL has no weight. ``gate_tolerance``: nats a token by which the log-probabilities of the first pass
    may differ from those measured when it was drawn.
    """

    algorithm: PolicyGradient
    likelihood: TokenLikelihood
    pretraining: TokenLikelihood
    reference: Reference | None
    language_model: Callable[[nn.Module], nn.Module]
    autocast: Autocast = nullcontext
    starts_at_reference: bool = True
    gate_tolerance: float = 1e-2

    @torch.no_grad()
    def measure(self, network: nn.Module, sequences: Sequence[TokenSequence]) -> TokenStatistics:
        """Log-probabilities of drawn tokens under policy and reference, values and entropies, on the CPU."""
        inputs = self.likelihood.prepare_sequences(sequences)
        with self.autocast():
            policy, values = self._policy(network, inputs, entropy=True)
            reference = None
            if self.reference is not None:
                with self.reference(self.language_model(network)) as frozen:
                    reference = self.likelihood.token_logps(frozen, inputs).logps
        statistics = {"logps": policy.logps, "reference": reference, "values": values, "entropy": policy.entropy}
        return TokenStatistics(**{name: flat.float().cpu() for name, flat in statistics.items() if flat is not None})

    def _policy(
        self, network: nn.Module, inputs: TokenInputs, *, entropy: bool = False
    ) -> tuple[TokenLogps, Tensor | None]:
        """What the likelihood says of the scored tokens, and their values (N,) where a head learns them."""
        if not self.algorithm.learns_values:
            return self.likelihood.token_logps(network, inputs, entropy=entropy), None
        seen: list[Tensor] = []

        def policy(**inputs: object) -> TokenReading:
            reading, values = network(**inputs)
            seen.append(values)
            return reading  # type: ignore[no-any-return]

        statistics = self.likelihood.token_logps(policy, inputs, entropy=entropy)
        # The value of a token is that of the state before it: it is read where the token is predicted.
        return statistics, seen[0].flatten()[inputs.read]

    def __call__(self, network: nn.Module, batch: RolloutBatch[TokenSequence]) -> StepOutput:
        """Summed losses, and metrics of the update and of the iteration that it belongs to."""
        inputs = self.likelihood.prepare_sequences(batch.samples)
        with self.autocast():
            statistics, values = self._policy(network, inputs)
        policy = statistics.logps

        def here(flat: Tensor | None) -> Tensor | None:
            return None if flat is None else flat.to(policy.device)

        losses = self.algorithm.losses(
            Actions(
                policy,
                batch.old.to(policy.device),
                batch.advantages.to(policy.device),
                batch.lengths.to(policy.device),
                here(batch.reference),
                values,
                here(batch.old_values),
                here(batch.returns),
            )
        )
        loss, metrics = losses.total.sum(), dict(losses.metrics)
        weights: dict[str, Tensor] = {}
        if batch.pretraining or batch.pretraining_scale:
            # A pass without a text says so with weight 0: all processes have metrics of the same names.
            text, tokens = self._text(network, batch.pretraining) if batch.pretraining else (policy.new_zeros(()), 0)
            loss = loss + batch.pretraining_scale * text
            metrics["loss/pretraining_avg"] = (text.detach() / max(tokens, 1))[None]
            weights["loss/pretraining_avg"] = metrics["loss/pretraining_avg"].new_tensor([float(tokens)])
        counts = self.algorithm.counts(batch.lengths).to(policy.device)
        metrics["loss"] = losses.total.detach() / counts
        weights["loss"] = counts
        constant = {name: policy.new_tensor([value]) for name, value in batch.metrics.items()}
        return StepOutput(loss, {**constant, **metrics}, weights)

    def _text(self, network: nn.Module, sequences: Sequence[TokenSequence]) -> tuple[Tensor, int]:
        """Summed - log p of the pretraining text, and how many tokens that is."""
        inputs = self.pretraining.prepare_sequences(sequences)

        def policy(**inputs: object) -> TokenReading:
            outputs = network(**inputs)
            return outputs[0] if self.algorithm.learns_values else outputs  # type: ignore[no-any-return]

        with self.autocast():
            logps = self.pretraining.token_logps(policy, inputs).logps
        return -logps.sum(), len(logps)

    def gate(self, network: nn.Module, batch: RolloutBatch[TokenSequence]) -> dict[str, float]:
        """Check that drawn tokens have, before the first update, the log-probabilities that were measured.

        They differ where dropout is on, or the temperature is not one and the same. Where the policy starts as the
        reference, the two must agree as well: then the KL is 0. Raises UserError where training must not begin.
        """
        with torch.no_grad(), self.autocast():
            policy = self._policy(network, self.likelihood.prepare_sequences(batch.samples))[0].logps
        gaps = {"max_logp_gap": float((policy - batch.old.to(policy)).abs().max())}
        if batch.reference is not None and self.starts_at_reference:
            gaps["max_reference_gap"] = float((batch.reference - batch.old).abs().max())
        for name, gap in gaps.items():
            if not gap < self.gate_tolerance:
                problem = f"step 0: {name} is {gap:.3g} nats in one token, allowed is {self.gate_tolerance:g}"
                raise UserError(problem, "the model draws at random in its forward pass, or its weights are not finite")
        return gaps
