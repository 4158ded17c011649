"""The exact verifier as a scorer of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UserError
from ..scorers.scorer import Scorer, Towers
from ..types.images import Scores
from .scenes import ATTRIBUTES, VALUES, Scene, parse_caption
from .verifier import at_resolution, read_pixels


def load(weights: str | None, towers: Towers) -> Scorer:
    """The verifier as a scorer: no weights, no prompt features; ``raw`` is the score, which has no logit scale.

    Raises UserError for ``weights``, and, when scoring, for a prompt outside the Shapes grammar.
    """
    if weights is not None:
        raise UserError(f"scorer shapes: got weights {weights!r}", "the verifier has none; write just shapes")
    recipe = "shapes.1/box-64/fp32"
    return Scorer(
        name="shapes",
        recipe_id=recipe,
        view_key=recipe,
        image_key=recipe,
        text_key=recipe,
        logit_scale=None,
        view=lambda image: torch.from_numpy(at_resolution(image).copy()),
        encode_images=lambda views: views,
        encode_prompts=_encode_captions,
        judge=_judge,
    )


def _encode_captions(prompts: Sequence[str]) -> Tensor:
    """The named attributes as indices (N, 4) in the order of ATTRIBUTES."""
    try:
        scenes = [parse_caption(prompt) for prompt in prompts]
    except ValueError as error:
        raise UserError(f"scorer shapes: {error}", "it reads captions of the Shapes world only") from error
    return torch.tensor([[VALUES[name].index(getattr(scene, name)) for name in ATTRIBUTES] for scene in scenes])


def _judge(images: Tensor, prompts: Tensor) -> Scores:
    scenes = [Scene(*[VALUES[name][i] for name, i in zip(ATTRIBUTES, row, strict=True)]) for row in prompts.tolist()]
    values = [read_pixels(image.numpy()).score(scene) for image, scene in zip(images, scenes, strict=True)]
    scores = torch.tensor(values, dtype=torch.float32)
    return Scores(scores, scores)
