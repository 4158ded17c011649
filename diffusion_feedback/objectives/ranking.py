"""Losses that teach a scorer to rank: logits of prompts against images in, losses (B,) out, never their mean.

``logits`` is (B, 2B): row b is prompt b, columns are the chosen images 0 to B - 1 and then the rejected ones, each entry
logit_scale * cosine. ``chosen_probability`` (B,) in [0, 1] is the label p, 1 where it is not given.

The published code weighs pair i by w_i / sum of w over the gathered batch, with w = 1 / examples of its prompt; here the
caller sums w_i * loss_i and divides by the number of pairs, so that accumulation and several processes are exact. The
two differ by the mean weight of a batch, which is a factor of the learning rate that changes from batch to batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types.training import PairLogps
from .labels import label_entropy, label_probability
from .log_ratios import widen
from .pairwise import preference_divergence


def own_logits(logits: Tensor) -> PairLogps:
    """The logits of each prompt's own two images, from ``logits`` (B, 2B). Raises ValueError for another shape."""
    if logits.ndim != 2 or logits.shape[1] != 2 * logits.shape[0]:
        raise ValueError(f"logits must have shape (B, 2B), got {tuple(logits.shape)}")
    chosen, rejected = logits.chunk(2, dim=1)
    return PairLogps(chosen.diagonal(), rejected.diagonal())


def pickscore(logits: Tensor, chosen_probability: Tensor | None = None) -> Tensor:
    """PickScore's objective: ``preference_divergence`` on each prompt's two images, 0 where the scorer predicts the label.

    For labels 0, 1 and 1/2 it is the published loss, 2-way cross entropy with + log(1/2) for ties; other labels have
    their entropy taken off in the same way, which changes no gradient. (Sec. 3, arXiv:2305.01569.)
    """
    return preference_divergence(own_logits(logits), chosen_probability)


def pickscore_in_batch(logits: Tensor, chosen_probability: Tensor | None = None) -> Tensor:
    """PickScore's objective with in-batch negatives: the mean of two parts.

    The prompt has to find its image among all 2B images (the preferred one with probability p, less the label's
    entropy), and each of its images has to find it among all B prompts (weighed by p and 1 - p).

    Batch-coupled: the negatives are those of the same forward pass, so the loss depends on the batch size, and n
    accumulated passes are not one large pass. Pairs that share a prompt are negatives of each other, as in the published
    code (``in_batch_negatives`` of github.com/yuvalkirstain/PickScore, where they are gathered from all processes).
    """
    own = own_logits(logits)  # checks the shape
    logits = widen(logits)
    p = label_probability(chosen_probability, widen(own.policy_chosen))
    among_images = torch.log_softmax(logits, dim=1)
    among_prompts = torch.log_softmax(logits, dim=0)
    to_image, to_prompt = (own_logits(logs) for logs in (among_images, among_prompts))
    image_part = -p * to_image.policy_chosen - (1 - p) * to_image.policy_rejected - label_entropy(p)
    prompt_part = -p * to_prompt.policy_chosen - (1 - p) * to_prompt.policy_rejected
    return (image_part + prompt_part) / 2
