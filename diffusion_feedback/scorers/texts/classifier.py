"""Classifiers as judges: how sure a text classifier is of one label, such as POSITIVE for sentiment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import UserError, nearest
from ...records import Text
from .classification import encode_pairs, load_classification
from .completion_scorer import CompletionScorer

OUTPUTS = ("logit", "probability")
READS = ("text", "completion")


def load(
    source: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    label: str,
    output: str = "logit",
    reads: str = "text",
    max_length: str = "",
    batch_size: str = "32",
) -> CompletionScorer:
    """The classifier in the folder or under the hub id ``source``; ``label`` is the name of the label that is wanted.

    ``output`` "logit" gives the log-odds log p / (1 - p) of the label, which for two labels is the difference of their
    logits, and for a model of several labels at once the label's own logit; "probability" gives p. ``reads`` "text" shows
    prompt and completion, joined, "completion" the completion alone. Texts are cut at ``max_length`` tokens.
    Raises UserError for what is no classifier, and for a label that it does not have.
    """
    for name, value, allowed in (("output", output, OUTPUTS), ("reads", reads, READS)):
        if value not in allowed:
            raise UserError(f"classifier={source}: {name}={value}", f"allowed: {', '.join(allowed)}")
    judge = load_classification(
        source, device, dtype, num_labels=None, ends=False, max_length=max_length, batch_size=batch_size
    )
    names = {str(name): int(index) for index, name in judge.model.config.id2label.items()}
    if len(names) < 2:
        raise UserError(f"classifier={source}: has {len(names)} label", f"use it as reward_model={source}")
    if label not in names:
        raise UserError(f"classifier={source}: has no label {label!r}", nearest(label, list(names)))
    is_multi_label = judge.model.config.problem_type == "multi_label_classification"

    def values(prompts: Sequence[Text], completions: Sequence[Text], finished: Sequence[bool] | None) -> list[float]:
        blank: list[Text] = ["" if isinstance(text, str) else () for text in completions]
        shown = prompts if reads == "text" else blank
        logits = judge.logits(encode_pairs(judge, shown, completions, finished, as_chat=False)).double()
        odds = logits[:, names[label]] if is_multi_label else _log_odds(logits, names[label])
        shares: list[float] = (odds if output == "logit" else torch.sigmoid(odds)).tolist()
        return shares

    recipe = f"classifier.1/{label}/{output} of {reads}/{judge.recipe}"
    return CompletionScorer(source, recipe, f"classifier {source}", values, network=judge.model)


def _log_odds(logits: Tensor, label: int) -> Tensor:
    """log p / (1 - p) of one label of several that exclude each other, (N,), from ``logits`` (N, labels).

    Exact where p rounds to 1.
    """
    others = torch.ones(logits.shape[1], dtype=torch.bool)
    others[label] = False
    return logits[:, label] - logits[:, others].logsumexp(1)
