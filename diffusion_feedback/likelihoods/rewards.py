"""Scores of prompts and completions under a reward model: one number a text, read at its last token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..types.texts import TextBatch, TokenSequence
from .prompt_sharing import own_rows


@dataclass(frozen=True, slots=True)
class RewardInputs:
    """N right-padded texts: ids and positions (N, T) int64, mask (N, T) bool, index of the last token (N,) int64."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    last: Tensor


@dataclass(frozen=True, slots=True)
class SequenceRewards:
    """A ``types.SampleJudge`` of whole texts. Padding and the other texts of a pass change nothing but the rounding."""

    device: torch.device | str

    def prepare(self, batch: TextBatch) -> RewardInputs:
        """The 2B texts of ``batch``, the chosen ones first."""
        return self.prepare_sequences([*batch.chosen, *batch.rejected])

    def prepare_sequences(self, sequences: Sequence[TokenSequence]) -> RewardInputs:
        """Pad ``sequences`` on the right. The mask comes from their lengths, never from ids: padding may be the end token."""
        rows, last = own_rows(sequences), np.array([len(sequence) - 1 for sequence in sequences])
        arrays = (rows.ids, rows.mask, rows.positions, last)
        return RewardInputs(*(torch.from_numpy(array).to(self.device) for array in arrays))

    def scores(self, network: nn.Module, inputs: RewardInputs) -> Tensor:
        """(N,) float32."""
        scores: Tensor = network(inputs.input_ids, inputs.attention_mask, inputs.position_ids, inputs.last)
        return scores.float()
