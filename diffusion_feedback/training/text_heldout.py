"""What is watched while a language model learns, in training and on held-out texts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from ..likelihoods.tokens import TokenLikelihood
from ..objectives.log_ratios import log_ratios, widen
from ..types.training import PairLogps
from .heldout import Batches, Measured, Passes, Sums, sums_over


def token_metrics(logps: PairLogps) -> dict[str, Tensor]:
    """Per pair (B,), detached: how far both completions have moved, in nats, and how well the chosen one is known.

    logps/chosen_change and logps/rejected_change are policy minus reference, and left out without one. A loss on their
    difference falls even when the chosen completion grows less likely, as long as the rejected one does so faster; a
    negative logps/chosen_change tells. nll_loss is the negative log-likelihood of the chosen completion per token.
    """
    metrics: dict[str, Tensor] = {}
    if logps.reference_chosen is not None and logps.reference_rejected is not None:
        chosen, rejected = log_ratios(logps)
        metrics = {"logps/chosen_change": chosen.detach(), "logps/rejected_change": rejected.detach()}
    if logps.chosen_length is not None:
        policy = widen(logps.policy_chosen).detach()
        metrics["nll_loss"] = -policy / logps.chosen_length.to(policy)
    return metrics


def heldout_metrics(sums: Sums, *, chosen_logps: float, num_tokens: int, start: float | None) -> dict[str, float]:
    """The metrics of one evaluation.

    ``chosen_logps`` is the sum of the log-likelihoods of all chosen completions (nats), ``num_tokens`` the number of
    their tokens (0 where none was called good), ``start`` the same sum before the first update, None at that moment.

    - nll, perplexity: of the chosen completions, per token;
    - logps/chosen_change: mean over examples, against the reference, or against the start where there is none;
    - log_ratio: the same per token;
    - accuracy with its Wilson interval, ties half: how often the implicit reward prefers the chosen completion;
    - loss, rewards/*, logps/*: means of the step's own metrics.
    """
    kept = ("loss", "rewards/", "logps/", "kl")
    metrics = {name: value for name, value in sums.means().items() if name.startswith(kept)}
    num = sums.weights.get("logps/chosen", 0.0)
    if num_tokens:
        nll = -chosen_logps / num_tokens
        metrics |= {"nll": nll, "perplexity": math.exp(min(nll, 700.0))}
        if "logps/chosen_change" not in metrics and start is not None:
            metrics["logps/chosen_change"] = (chosen_logps - start) / num
        if "logps/chosen_change" in metrics:
            metrics["log_ratio"] = metrics["logps/chosen_change"] * num / num_tokens
    metrics.pop("rewards/accuracies", None)
    return metrics | sums.accuracy()


def chosen_logps(likelihood: TokenLikelihood, network: nn.Module, batches: Batches, passes: Passes) -> float:
    """Sum of the log-likelihoods of all chosen completions under ``network``, nats."""

    def measure(indices: Sequence[int]) -> Measured:
        inputs = likelihood.chosen(likelihood.prepare(batches(indices, 0)))
        return {"logps": likelihood.logps(network, inputs)}, {}

    return sums_over(passes, measure, "texts").totals["logps"]
