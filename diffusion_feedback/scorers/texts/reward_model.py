"""Reward models: one number read at the last token of prompt and completion (arXiv:2203.02155)."""

from __future__ import annotations

import torch

from .classification import encode_pairs, load_classification, yes_or_no
from .completion_scorer import CompletionScorer


def load(
    source: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    as_chat: str = "false",
    end_token: str = "true",
    max_length: str = "",
    batch_size: str = "32",
) -> CompletionScorer:
    """The reward model in the folder or under the hub id ``source``: a model for sequence classification with one label.

    Its logit is the reward, so that the difference of two is a Bradley-Terry logit. Plain prompts and completions are
    joined and end in the tokenizer's end token, as they do when a reward model is trained on them (``end_token`` false
    leaves it out, and a completion that was cut off has none); conversations go through the tokenizer's own chat template,
    and with ``as_chat`` plain texts do as well, as one user's and one assistant's turn. Of texts beyond ``max_length``
    tokens the beginning is dropped. The score is read at the last token by its position: the id of the padding plays no
    part. Raises UserError for what is no model with one label.
    """
    ends, is_chat = yes_or_no("end_token", end_token), yes_or_no("as_chat", as_chat)
    judge = load_classification(
        source, device, dtype, num_labels=1, ends=ends, max_length=max_length, batch_size=batch_size
    )

    return CompletionScorer(
        name=source,
        recipe_id=f"reward_model.1/{'chat/' if is_chat else ''}{judge.recipe}",
        label=f"reward model {source}",
        values=lambda *texts: judge.logits(encode_pairs(judge, *texts, as_chat=is_chat))[:, 0].tolist(),
        logit_scale=1.0,
        network=judge.model,
    )
