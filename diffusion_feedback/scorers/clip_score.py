"""CLIPScore: how well an image fits its prompt by an untuned CLIP, in the three forms that papers report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError, nearest
from .scorer import Scorer, Towers
from .towers import clip_scorer, load_clip, load_open_clip
from .views import CropView, LetterboxView


@dataclass(frozen=True, slots=True)
class _Form:
    """How one form is computed.

    ``prefix`` stands before the prompt, ``score`` makes the number of the cosine, ``view`` cuts the picture, given what
    the folder says. ``cleans`` says whether prompts are cleaned as by OpenAI's clip; ``hub_id`` is whose weights.
    """

    prefix: str
    score: Callable[[Tensor], Tensor]
    view: Callable[[CropView], CropView | LetterboxView]
    cleans: bool
    hub_id: str


_FORMS = {
    # Hessel et al., arXiv:2104.08718, computed with OpenAI's clip.
    "hessel": _Form(
        prefix="A photo depicts ",
        score=lambda cos: 2.5 * torch.relu(cos),
        view=lambda view: replace(view, centre="nearest"),
        cleans=True,
        hub_id="openai/clip-vit-base-patch32",
    ),
    # As torchmetrics has it, computed with transformers.
    "percent": _Form(
        "", lambda cos: 100 * cos, lambda view: view, cleans=False, hub_id="openai/clip-vit-large-patch14"
    ),
    # "CLIP" in the tables of Diffusion-DPO, arXiv:2311.12908: HPSv2's code with the weights that HPSv2 started from.
    "diffusion_dpo": _Form(
        prefix="",
        score=lambda cos: cos,
        view=lambda view: LetterboxView(view.size),
        cleans=True,
        hub_id="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ),
}


def load(weights: str | None, towers: Towers, *, form: str = "percent", architecture: str = "ViT-H-14") -> Scorer:
    """CLIPScore with the CLIPModel of a folder or hub id; ``weights`` None is the one that the form was published with.

    ``form`` "percent": 100 * cosine, ViT-L/14. "hessel": 2.5 * max(cosine, 0) of the prompt behind "A photo depicts ",
    ViT-B/32. "diffusion_dpo": the cosine of the letterboxed picture, ViT-H/14. No two of them are comparable. ``raw`` is
    the cosine. ``weights`` may also be a file of open_clip's ``architecture``. There is no ``logit_scale``: CLIP's own
    parameter tells captions apart and is no strength of preference; a calibration fits one. Long prompts keep their
    end token. Raises UserError for an unknown form, and where the model cannot be had or is no CLIPModel.
    """
    if form not in _FORMS:
        raise UserError(f"scorer clip_score: form {form!r}", nearest(str(form), list(_FORMS)))
    made = _FORMS[form]
    file = Path(weights).expanduser() if weights else None
    tower = (
        load_open_clip(architecture, file, towers)
        if file and file.is_file()
        else load_clip(weights or made.hub_id, towers)
    )
    tower = replace(tower, tokenizer=tower.tokenizer.cleaning()) if made.cleans else tower
    view = made.view(tower.view)
    text = f"{tower.key}/clean/{made.prefix}" if made.cleans else tower.key

    def whole(prompts: Sequence[str]) -> list[str]:
        return [made.prefix + prompt for prompt in prompts]

    recipe = f"clip_score.{form}{'/clean-text' if made.cleans else ''}"
    return replace(
        clip_scorer("clip_score", recipe, tower, view, made.score),
        text_key=text,
        encode_prompts=lambda prompts: tower.encode_prompts(whole(prompts)),
        cuts=lambda prompts: tower.tokenizer.cuts(whole(prompts)),
    )
