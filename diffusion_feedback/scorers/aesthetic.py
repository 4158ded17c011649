"""LAION's aesthetic predictors v1 and v2: an affine map of CLIP's image features, about 1 (ugly) to 10 (beautiful)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..types.images import Scores
from ..weights import state_hash
from .affine_head import affine_head
from .checkpoints import fill, read_checkpoint
from .scorer import Scorer, Towers
from .towers import load_clip

HEAD_FILE = "sac+logos+ava1-l14-linearMSE.pth"
HEAD_URL = "https://github.com/christophschuhmann/improved-aesthetic-predictor"
V1_URL = "https://github.com/LAION-AI/aesthetic-predictor"
_V1 = {"weight", "bias"}
_FITTING = {
    768: "openai/clip-vit-large-patch14",
    512: "openai/clip-vit-base-patch32 (or -patch16, as the file is named)",
}


def load(weights: str | None, towers: Towers, *, clip: str | None = None) -> Scorer:
    """The predictor whose head stands in the file ``weights``, on the CLIPModel ``clip`` (a folder or hub id).

    Version 2 has five linear layers with nothing between them at inference, so that they are one affine map, which is
    multiplied out in float64; version 1 (sa_0_4_vit_l_14_linear.pth and its like) is one layer. They do not compare.
    ``clip`` None is OpenAI's ViT-L/14. The prompt is not read. ``raw`` is the score; there is no ``logit_scale``.
    Raises UserError without ``weights``, for a head that does not fit ``clip``, and where a file cannot be had.
    """
    if weights is None:
        problem = "scorer aesthetic: needs the file of its head, which no hub publishes officially"
        remedy = f"download {HEAD_FILE} from {HEAD_URL} (version 1: {V1_URL}) and write aesthetic=PATH"
        raise UserError(problem, remedy)
    path = Path(weights).expanduser()
    state = read_checkpoint(path)
    is_v1 = state.keys() == _V1
    if clip is None and is_v1:
        clip = _clip_of_v1(state, str(path))
    tower = load_clip(clip or _FITTING[768], towers)
    width = tower.width
    head = _affine_v1(state, width, str(path)) if is_v1 else affine_head(state, width, str(path), "layers.")
    weight, bias = (part.to(towers.device) for part in head)
    view = replace(tower.view, centre="nearest")  # published with OpenAI's clip

    def judge(images: Tensor, prompts: Tensor) -> Scores:
        score = (images @ weight + bias).cpu()
        return Scores(score, score)

    def encode_prompts(prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(prompts), 0, device=towers.device)

    return Scorer(
        name="aesthetic",
        recipe_id=f"aesthetic.{1 if is_v1 else 2}/{view.id}/{tower.key}-{state_hash(state)}",
        view_key=view.id,
        image_key=tower.key,
        text_key="none",
        logit_scale=None,
        view=view,
        encode_images=tower.encode_images,
        encode_prompts=encode_prompts,
        judge=judge,
    )


def _clip_of_v1(state: dict[str, Tensor], source: str) -> str:
    """The CLIP that a head of version 1 is for, by its width. Raises UserError where that does not tell."""
    width = state["weight"].shape[-1] if state["weight"].ndim else 0
    if width == 768:
        return _FITTING[768]
    fitting = _FITTING.get(width, "the CLIPModel that the head was trained on")
    raise UserError(f"{source}: a head over {width} features, which ViT-L/14 does not give", f"append ,clip={fitting}")


def _affine_v1(state: dict[str, Tensor], width: int, source: str) -> tuple[Tensor, Tensor]:
    """Weight (width,) and bias () of the single layer. Raises UserError naming ``source`` where it does not fit."""
    layer = nn.Linear(width, 1, device="meta")
    fill(layer, state, source)
    return layer.weight.detach()[0].float(), layer.bias.detach()[0].float()
