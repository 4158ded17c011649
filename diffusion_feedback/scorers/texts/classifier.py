"""Classifiers as judges: how sure a text classifier is of one label, such as POSITIVE for sentiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UserError, nearest
from ...records import Text
from .checking import check_equal_length, finite
from .classification import Classification, encode_pairs, load_classification

OUTPUTS = ("logit", "probability")
READS = ("text", "completion")


@dataclass(frozen=True, slots=True)
class ClassifierScorer:
    """A transformers model for sequence classification; ``label`` is the index of the label that is wanted."""

    name: str
    recipe_id: str
    judge: Classification
    label: int
    output: str
    reads: str

    def score(
        self, prompts: Sequence[Text], completions: Sequence[Text], finished: Sequence[bool] | None = None
    ) -> list[float]:
        """Log-odds, or probability, of the label for each completion."""
        check_equal_length(prompts, completions)
        if not completions:
            return []
        blank: list[Text] = ["" if isinstance(text, str) else () for text in completions]
        read = prompts if self.reads == "text" else blank
        logits = self.judge.logits(encode_pairs(self.judge, read, completions, finished, as_chat=False)).double()
        odds = self._log_odds(logits)
        values = odds if self.output == "logit" else torch.sigmoid(odds)
        return finite(values.tolist(), prompts, completions, f"classifier {self.name}")

    def _log_odds(self, logits: Tensor) -> Tensor:
        """log p / (1 - p) of the label, (N,), from ``logits`` (N, labels); exact where p rounds to 1."""
        own = logits[:, self.label]
        if self.judge.model.config.problem_type == "multi_label_classification":
            return own
        others = torch.ones(logits.shape[1], dtype=torch.bool)
        others[self.label] = False
        return own - logits[:, others].logsumexp(1)


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
) -> ClassifierScorer:
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
    recipe = f"classifier.1/{label}/{output} of {reads}/{judge.recipe}"
    return ClassifierScorer(source, recipe, judge, names[label], output, reads)
