"""CLIPScore: how well an image fits its prompt by an untuned CLIP, in the two forms that papers report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..catalog import nearest
from ..errors import UserError
from ..types import Scores
from .scorer import Scorer, Towers
from .towers import load_clip
from .views import Centre


@dataclass(frozen=True, slots=True)
class _Form:
    """What is put before the prompt, the cosine to the score, how pictures are centred, and whose weights."""

    prefix: str
    score: Callable[[Tensor], Tensor]
    centre: Centre
    hub_id: str


_FORMS = {
    # Hessel et al., arXiv:2104.08718, computed with OpenAI's clip.
    "hessel": _Form("A photo depicts ", lambda cos: 2.5 * torch.relu(cos), "nearest", "openai/clip-vit-base-patch32"),
    # As torchmetrics has it, computed with transformers.
    "percent": _Form("", lambda cos: 100 * cos, "floor", "openai/clip-vit-large-patch14"),
}


def load(weights: str | None, towers: Towers, *, form: str = "percent") -> Scorer:
    """CLIPScore with the CLIPModel of a folder or hub id; ``weights`` None is the one that the form was published with.

    ``form`` "percent": 100 * cosine, ViT-L/14. "hessel": 2.5 * max(cosine, 0) of the prompt behind "A photo depicts ",
    ViT-B/32. The two are not comparable. ``raw`` is the cosine. There is no ``logit_scale``: CLIP's own parameter
    tells captions apart and is no strength of preference; ``dfb calibrate`` fits one. Long prompts keep their end
    token. Raises UserError for an unknown form, and where the model cannot be had or is no CLIPModel.
    """
    if form not in _FORMS:
        raise UserError(f"scorer clip_score: form {form!r}", nearest(str(form), list(_FORMS)))
    made = _FORMS[form]
    tower = load_clip(weights or made.hub_id, towers)
    view = replace(tower.view, centre=made.centre)

    def whole(prompts: Sequence[str]) -> list[str]:
        return [made.prefix + prompt for prompt in prompts]

    def judge(images: Tensor, prompts: Tensor) -> Scores:
        raw = (images * prompts).sum(-1).cpu()
        return Scores(made.score(raw), raw)

    return Scorer(
        name="clip_score",
        recipe_id=f"clip_score.{form}/{view.id}/{tower.key}",
        view_key=view.id,
        image_key=tower.key,
        text_key=f"{tower.key}/{made.prefix}" if made.prefix else tower.key,
        logit_scale=None,
        view=view,
        encode_images=tower.encode_images,
        encode_prompts=lambda prompts: tower.encode_prompts(whole(prompts)),
        judge=judge,
        view_pixels=view.pixels,
        count_truncated=lambda prompts: tower.tokenizer.count_truncated(whole(prompts)),
    )
