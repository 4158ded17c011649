"""Scores of whole texts: what the network is given, whatever lies beside a text in its pass."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_feedback.likelihoods.rewards import SequenceRewards
from diffusion_feedback.types.texts import TextBatch, TokenSequence


class Sums(nn.Module):
    """The sum of the ids, each times its position from 1, and the last id behind the point: what it was given, as a number."""

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, last: Tensor) -> Tensor:
        ends = ids.gather(1, last[:, None])[:, 0]
        return ((ids * (positions + 1) * mask).sum(1) + ends / 100).half()


def text(*ids: int) -> TokenSequence:
    scored = np.arange(len(ids)) > 0
    return TokenSequence(np.array(ids, np.int32), scored, 1)


def test_rewards_of_a_batch_by_hand() -> None:
    chosen, rejected = [text(1, 2, 3), text(5)], [text(4, 0), text(7, 7, 7, 50)]
    batch = TextBatch(
        example_ids=["a", "b"],
        chosen=chosen,
        rejected=rejected,
        chosen_probability=torch.ones(2),
        weight=torch.ones(2),
        margin=torch.zeros(2),
        draw=0,
    )
    judge = SequenceRewards("cpu")
    scores = judge.scores(Sums(), judge.prepare(batch))
    assert scores.dtype == torch.float32
    expected = torch.tensor([1 + 4 + 9 + 0.03, 5.05, 4 + 0.0, 7 + 14 + 21 + 200 + 0.5]).half().float()
    assert torch.equal(scores, expected)
    for index, each in enumerate([*chosen, *rejected]):
        assert judge.scores(Sums(), judge.prepare_sequences([each])) == expected[index]
