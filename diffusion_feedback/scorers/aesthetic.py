"""LAION's aesthetic predictor v2: an affine map of CLIP's image features, about 1 (ugly) to 10 (beautiful)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..types import Scores
from .checkpoints import fill, read_checkpoint, weights_hash
from .scorer import Scorer, Towers
from .towers import load_clip

HEAD_FILE = "sac+logos+ava1-l14-linearMSE.pth"
HEAD_URL = "https://github.com/christophschuhmann/improved-aesthetic-predictor"
_HIDDEN = (1024, 128, 64, 16, 1)


def load(weights: str | None, towers: Towers, *, clip: str = "openai/clip-vit-large-patch14") -> Scorer:
    """The predictor whose head stands in the file ``weights``, on the CLIPModel ``clip`` (a folder or hub id).

    The head's five linear layers have nothing between them at inference, so that they are one affine map, which is
    multiplied out in float64. The prompt is not read. ``raw`` is the score; there is no ``logit_scale``.
    Raises UserError without ``weights``, for a head that does not fit ``clip``, and where a file cannot be had.
    """
    if weights is None:
        problem = "scorer aesthetic: needs the file of its head, which no hub publishes officially"
        raise UserError(problem, f"download {HEAD_FILE} from {HEAD_URL} and write aesthetic=PATH")
    tower = load_clip(clip, towers)
    path = Path(weights).expanduser()
    state = read_checkpoint(path)
    weight, bias = (part.to(towers.device) for part in _affine(state, tower.width, str(path)))
    view = replace(tower.view, centre="nearest")  # published with OpenAI's clip

    def judge(images: Tensor, prompts: Tensor) -> Scores:
        score = (images @ weight + bias).cpu()
        return Scores(score, score)

    def encode_prompts(prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(prompts), 0, device=towers.device)

    return Scorer(
        name="aesthetic",
        recipe_id=f"aesthetic.2/{view.id}/{tower.key}-{weights_hash(state)}",
        view_key=view.id,
        image_key=tower.key,
        text_key="none",
        logit_scale=None,
        view=view,
        encode_images=tower.encode_images,
        encode_prompts=encode_prompts,
        judge=judge,
        view_pixels=view.pixels,
    )


def _affine(state: dict[str, Tensor], width: int, source: str) -> tuple[Tensor, Tensor]:
    """Weight (width,) and bias () of the whole head. Raises UserError naming ``source`` where it is another head."""
    linear = [nn.Linear(*sizes, device="meta") for sizes in pairwise((width, *_HIDDEN))]
    # The dropouts of training are counted in the published names.
    dropout = nn.Identity()
    layers = [linear[0], dropout, linear[1], dropout, linear[2], dropout, linear[3], linear[4]]
    fill(nn.ModuleDict({"layers": nn.Sequential(*layers)}), state, source)
    weight = torch.eye(width, dtype=torch.float64)
    bias = torch.zeros(width, dtype=torch.float64)
    with torch.no_grad():
        for layer in linear:
            weight, bias = layer.weight.double() @ weight, layer.weight.double() @ bias + layer.bias.double()
    return weight[0].float(), bias[0].float()
