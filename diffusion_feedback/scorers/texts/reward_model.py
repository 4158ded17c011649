"""Reward models: one number read at the last token of prompt and completion (arXiv:2203.02155)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...records import Text
from .checking import check_equal_length, finite
from .classification import Classification, encode_pairs, load_classification, yes_or_no


@dataclass(frozen=True, slots=True)
class RewardModelScorer:
    """A transformers model for sequence classification with one label; its logit is the reward."""

    name: str
    recipe_id: str
    judge: Classification
    as_chat: bool

    def score(
        self, prompts: Sequence[Text], completions: Sequence[Text], finished: Sequence[bool] | None = None
    ) -> list[float]:
        """One reward for each completion, the difference of two being a Bradley-Terry logit.

        Completions that are not ``finished`` get no end token, as in training.
        """
        check_equal_length(prompts, completions)
        if not completions:
            return []
        logits = self.judge.logits(encode_pairs(self.judge, prompts, completions, finished, as_chat=self.as_chat))
        return finite(logits[:, 0].tolist(), prompts, completions, f"reward model {self.name}")


def load(
    source: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    as_chat: str = "false",
    end_token: str = "true",
    max_length: str = "",
    batch_size: str = "32",
) -> RewardModelScorer:
    """The reward model in the folder or under the hub id ``source``.

    Plain prompts and completions are joined and end in the tokenizer's end token, as they do when a reward model is
    trained on them (``end_token`` false leaves it out, and a completion that was cut off has none); conversations go through the tokenizer's own chat template, and
    with ``as_chat`` plain texts do as well, as one user's and one assistant's turn. Of texts beyond ``max_length`` tokens
    the beginning is dropped. The score is read at the last token by its position: the id of the padding plays no part.
    Raises UserError for what is no model with one label.
    """
    judge = load_classification(
        source,
        device,
        dtype,
        num_labels=1,
        ends=yes_or_no("end_token", end_token),
        max_length=max_length,
        batch_size=batch_size,
    )
    chat = yes_or_no("as_chat", as_chat)
    return RewardModelScorer(source, f"reward_model.1/{'chat/' if chat else ''}{judge.recipe}", judge, chat)
