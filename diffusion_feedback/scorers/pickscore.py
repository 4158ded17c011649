"""PickScore (arXiv:2305.01569), and any scorer of its form: a CLIPModel whose cosines are scaled to logits."""

from __future__ import annotations

from .scorer import Scorer, Towers
from .towers import clip_scorer, load_clip

HUB_ID = "yuvalkirstain/PickScore_v1"


def load(weights: str | None, towers: Towers) -> Scorer:
    """PickScore v1 from the hub (``weights`` None), or the CLIPModel of a folder or hub id, of any size.

    ``raw`` is the cosine of image and prompt, ``score`` = exp(logit_scale) * raw: a Bradley-Terry logit as trained, so
    that ``logit_scale`` is the model's own. Raises UserError where the model cannot be had or is no CLIPModel.
    """
    tower = load_clip(weights or HUB_ID, towers)
    scale = tower.logit_scale
    return clip_scorer("pickscore", "pickscore.1", tower, tower.view, lambda cosine: scale * cosine, scale)
