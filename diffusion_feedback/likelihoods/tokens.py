"""log p(completion | prompt) under a language model: the sum of the log-probabilities of its tokens, in nats.

The end token belongs to the completion. Rows are padded on the right, positions are explicit, and only positions that
predict a scored token are projected to the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..types.texts import TextBatch, TokenSequence
from .heads import KEPT_BYTES, token_logps
from .prompt_sharing import Rows, SharingCheck, own_rows, shared_rows

TokenReading = tuple[Tensor, Tensor | None]
"""Log-probabilities (N,) of the scored tokens, and entropies (N,) where they are requested."""

TokenNetwork = Callable[..., TokenReading]
"""A network, called with ids, mask, positions and ``read``, which gives what ``read`` makes of its hidden states."""


@dataclass(frozen=True, slots=True)
class TokenInputs:
    """What a network sees of S sequences, and which of its outputs are read.

    ``input_ids`` and ``position_ids`` (R, T) int64, ``attention_mask`` (R, T), or (R, 1, T, T) where two sequences share
    a row, bool. Each of the N scored tokens, sequence by sequence, has: ``read`` (N,) the place in (R * T) that predicts
    it, ``targets`` (N,) its id, ``rows`` (N,) its sequence, ``ranks`` (N,) its number within it; ``weights`` (N,) by which
    its log-probability counts, None for 1. ``lengths`` (S,) float32 are the numbers of scored tokens, at least 1,
    and ``longest`` is the largest of them. The first ``num_chosen`` of ``sequences`` are the chosen ones.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    read: Tensor
    targets: Tensor
    rows: Tensor
    ranks: Tensor
    weights: Tensor | None
    lengths: Tensor
    longest: int
    sequences: Sequence[TokenSequence]
    num_chosen: int


@dataclass(frozen=True, slots=True)
class TokenLogps:
    """The N scored tokens, sequence by sequence: ``logps`` (N,) float32, ``rows`` (N,) the sequence of each, and
    ``entropy`` (N,) float32 of the distribution that it was drawn from, nats, where it was requested.
    """

    logps: Tensor
    rows: Tensor
    entropy: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TokenLikelihood:
    """A ``types.Likelihood`` of token sequences; nothing in it is random.

    ``share_prompt``: chosen and rejected share one row and their prompt in it. ``tail_weight`` in [0, 1]: weight of the
    tokens of a pair beyond the number of its shorter side (LD-DPO, Eq. 8, arXiv:2409.06411). ``temperature`` > 0 divides
    the logits. ``kept_bytes``: logits up to this size are kept for the backward pass, beyond it they are made again.
    """

    device: torch.device | str = "cpu"
    share_prompt: bool = False
    tail_weight: float = 1.0
    temperature: float = 1.0
    kept_bytes: int = KEPT_BYTES
    _check: SharingCheck = field(default_factory=SharingCheck)

    def prepare(self, batch: TextBatch) -> TokenInputs:
        """Rows of ``batch``, chosen first; of the chosen alone where it holds single samples."""
        if not batch.rejected:
            return self.prepare_sequences(batch.chosen)
        sequences = [*batch.chosen, *batch.rejected]
        rows = shared_rows(batch.chosen, batch.rejected) if self.share_prompt else own_rows(sequences)
        inputs = self._inputs(sequences, len(batch.chosen), rows)
        if self.tail_weight == 1.0:
            return inputs
        shorter = torch.minimum(*inputs.lengths.chunk(2)).repeat(2)
        weights = torch.where(inputs.ranks < shorter[inputs.rows], 1.0, self.tail_weight)
        return replace(inputs, weights=weights)

    def prepare_sequences(self, sequences: Sequence[TokenSequence]) -> TokenInputs:
        """One row a sequence, every scored token with its full weight."""
        return self._inputs(sequences, len(sequences), own_rows(sequences))

    def _inputs(self, sequences: Sequence[TokenSequence], num_chosen: int, rows: Rows) -> TokenInputs:
        counts = np.array([len(places) for places in rows.before], np.int64)
        empty = np.zeros(0, np.int64)
        return TokenInputs(
            input_ids=self._to(rows.ids),
            attention_mask=self._to(rows.mask),
            position_ids=self._to(rows.positions),
            read=self._to(np.concatenate([empty, *rows.before])),
            targets=self._to(np.concatenate([empty, *(s.ids[s.scored] for s in sequences)])),
            rows=self._to(np.repeat(np.arange(len(sequences)), counts)),
            ranks=self._to(np.concatenate([empty, *(np.arange(count) for count in counts)])),
            weights=None,
            lengths=self._to(np.maximum(counts, 1).astype(np.float32)),
            longest=int(counts.max(initial=1)),
            sequences=sequences,
            num_chosen=num_chosen,
        )

    def _to(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def chosen(self, inputs: TokenInputs) -> TokenInputs:
        """The chosen sequences of ``inputs``, in rows of their own, each token with its full weight."""
        return self.prepare_sequences(inputs.sequences[: inputs.num_chosen])

    def lengths(self, inputs: TokenInputs) -> Tensor:
        """Numbers of scored tokens, (2B,) float32, at least 1; ``tail_weight`` does not enter."""
        return inputs.lengths

    def logps(self, network: nn.Module, inputs: TokenInputs) -> Tensor:
        """Weighted sums of log-probabilities, (2B,) float32, chosen first; one for each sequence of ``inputs``.

        A sequence without a scored token gets a zero that can be differentiated. Raises UserError where the network does
        not take shared rows.
        """
        logps = self.token_logps(network, inputs).logps
        weighted = logps if inputs.weights is None else logps * inputs.weights
        # Each token has a place of its own, so that the sums are the same in every run.
        table = weighted.new_zeros(len(inputs.sequences) * inputs.longest)
        return (
            table.index_copy(0, inputs.rows * inputs.longest + inputs.ranks, weighted).view(-1, inputs.longest).sum(1)
        )

    def token_logps(self, network: TokenNetwork, inputs: TokenInputs, *, entropy: bool = False) -> TokenLogps:
        """Log-probability of every scored token, not weighted; ``entropy``: of the distributions too, differentiable.

        Raises UserError where prompts are shared and the network does not take such rows.
        """
        length = inputs.input_ids.shape[1]
        if inputs.attention_mask.ndim == 4 and isinstance(network, nn.Module) and self._check.is_due(network, length):
            with torch.no_grad():
                with self._check.trying(network):
                    shared, _ = self._read(network, inputs, entropy=False)
                apart, _ = self._read(network, self.prepare_sequences(inputs.sequences), entropy=False)
            autocast = torch.is_autocast_enabled(torch.device(self.device).type)
            is_half = autocast or next(network.parameters()).dtype.itemsize == 2
            self._check.compare(network, length, shared, apart, is_half=is_half)
        logps, entropies = self._read(network, inputs, entropy=entropy)
        return TokenLogps(logps, inputs.rows, entropies)

    def _read(self, network: TokenNetwork, inputs: TokenInputs, *, entropy: bool) -> TokenReading:
        def read(hidden: Tensor, head: nn.Module) -> TokenReading:
            before = hidden.flatten(0, 1).index_select(0, inputs.read)
            return token_logps(
                before,
                head,
                inputs.targets,
                temperature=self.temperature,
                entropy=entropy,
                kept_bytes=self.kept_bytes,
            )

        return network(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            position_ids=inputs.position_ids,
            read=read,
        )
