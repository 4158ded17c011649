"""BLIP's image tower and its text encoder that looks at the image (arXiv:2201.12086), on transformers' modules.

The published checkpoints of BLIP and of its descendants name their tensors after timm and BERT. This file says which
tensor is which, and reads every size from the tensors' shapes. Both networks are the same function: a ViT with its
norms before attention and MLP, and BERT with a cross-attention in every layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from ..errors import UserError
from .checkpoints import fill

_HEAD_WIDTH = 64  # of one attention head, in every published size
_IMAGE, _TEXT = "blip.visual_encoder.", "blip.text_encoder."
_TIMM_NAMES = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding.", "patch_embed.proj."),
    ("encoder.layers.", "blocks."),
    (".layer_norm", ".norm"),
    (".self_attn.projection.", ".attn.proj."),
    (".self_attn.qkv.", ".attn.qkv."),
    ("post_layernorm.", "norm."),
)


class Blip(nn.Module):
    """The two networks; build them from a checkpoint with ``load_blip``."""

    def __init__(self, image: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.image = BlipVisionModel(image)
        self.text = BlipTextModel(text, add_pooling_layer=False)

    @property
    def image_size(self) -> int:
        """Side of the images it takes, px."""
        return int(self.image.config.image_size)

    @property
    def vocabulary(self) -> int:
        """How many tokens it knows."""
        return int(self.text.config.vocab_size)

    def encode_images(self, views: Tensor) -> Tensor:
        """Normalised views (N, 3, S, S) to the normed tokens of the last layer (N, 1 + patches, width)."""
        tokens: Tensor = self.image(views.to(self.image.device, self.image.dtype)).last_hidden_state
        return tokens

    def read(self, ids: Tensor, mask: Tensor, image_tokens: Tensor) -> Tensor:
        """The text's first token (N, hidden) after reading ``ids`` (N, L) where ``mask`` is 1, and the image's tokens."""
        read = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=image_tokens)
        first: Tensor = read.last_hidden_state[:, 0]
        return first


def load_blip(state: Mapping[str, Tensor], source: str) -> Blip:
    """BLIP, frozen, made of tensors under their published names (``blip.visual_encoder.*``, ...), as stored.

    Raises UserError naming ``source`` where a tensor is missing, unknown or of another shape.
    """
    configs = _image_config(state, source), _text_config(state, source)
    with torch.device("meta"):
        model = Blip(*configs)
    fill(model, state, source, _published)
    # The one buffer that is not read from a checkpoint: it counts the places in the text.
    model.text.embeddings.position_ids = torch.arange(configs[1].max_position_embeddings)[None]
    return model.eval().requires_grad_(False)


def _published(name: str) -> str:
    """The published name of a tensor of ``Blip``."""
    if name.startswith("text."):
        return _TEXT + name.removeprefix("text.")
    name = name.removeprefix("image.")
    for ours, timms in _TIMM_NAMES:
        name = name.replace(ours, timms)
    return _IMAGE + name


def _image_config(state: Mapping[str, Tensor], source: str) -> BlipVisionConfig:
    width, _, patch, _ = _shape(state, f"{_IMAGE}patch_embed.proj.weight", 4, source)
    places = _shape(state, f"{_IMAGE}pos_embed", 3, source)[1]
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=_shape(state, f"{_IMAGE}blocks.0.mlp.fc1.weight", 2, source)[0],
        num_hidden_layers=_count(state, f"{_IMAGE}blocks."),
        num_attention_heads=_heads(width, source),
        image_size=patch * isqrt(places - 1),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def _text_config(state: Mapping[str, Tensor], source: str) -> BlipTextConfig:
    vocabulary, width = _shape(state, f"{_TEXT}embeddings.word_embeddings.weight", 2, source)
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=_shape(state, f"{_IMAGE}patch_embed.proj.weight", 4, source)[0],
        intermediate_size=_shape(state, f"{_TEXT}encoder.layer.0.intermediate.dense.weight", 2, source)[0],
        num_hidden_layers=_count(state, f"{_TEXT}encoder.layer."),
        num_attention_heads=_heads(width, source),
        max_position_embeddings=_shape(state, f"{_TEXT}embeddings.position_embeddings.weight", 2, source)[0],
        layer_norm_eps=1e-12,
        is_decoder=True,  # what transformers calls a text encoder with cross-attention
        bos_token_id=None,  # these are of use in writing only
        eos_token_id=None,
        sep_token_id=None,
    )


def _shape(state: Mapping[str, Tensor], name: str, dimensions: int, source: str) -> tuple[int, ...]:
    if name not in state or state[name].ndim != dimensions:
        fault = f"is {tuple(state[name].shape)}" if name in state else "is missing"
        raise UserError(f"{source}: weights of another architecture: {name} {fault}", "give this scorer's weights")
    return tuple(state[name].shape)


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _heads(width: int, source: str) -> int:
    if width > _HEAD_WIDTH and width % _HEAD_WIDTH:
        problem = f"{source}: weights of another architecture: width {width} is no multiple of {_HEAD_WIDTH}"
        raise UserError(problem, "give this scorer's weights")
    return max(1, width // _HEAD_WIDTH)
