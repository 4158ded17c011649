"""Names and shapes of the original Stable Diffusion files: one file of all parts, as CompVis and Stability AI published them.

ComfyUI, A1111 and others read these. Each function takes what diffusers or transformers call a weight (or, without its
ending, a layer) of one part, and gives the original's name within that part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError

Weights = Mapping[str, Tensor]
Config = Mapping[str, Any]

_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_VAE = {"conv_norm_out": "norm_out"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_ENCODER_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
_QKV = re.compile(r"self_attn\.([qkv])_proj\.(weight|bias)")


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    """``name``, which begins with a key of ``table``, with what stands there; None where it begins with none."""
    return next((new + name[len(old) :] for old, new in table.items() if f"{name}.".startswith(f"{old}.")), None)


def unet_names(names: Iterable[str], config: Config) -> dict[str, str]:
    """The original name of each of ``names`` of a UNet2DConditionModel with this ``config``.

    Raises UserError for names that the original has no place for.
    """
    names, layers = list(names), config["layers_per_block"]
    if not isinstance(layers, int):
        raise UserError(
            f"layers_per_block is {layers!r}", "the original format has one number of layers for all blocks"
        )
    attended = {(match[1], match[2]) for match in map(_BLOCK.match, names) if match and match[3] == "attentions"}
    types = {"down": config["down_block_types"], "up": config["up_block_types"]}
    attended |= {(way, str(n)) for way, kinds in types.items() for n, kind in enumerate(kinds) if "CrossAttn" in kind}

    def original(name: str) -> str | None:
        if match := _MIDDLE.fullmatch(name):
            part, number, rest = match.groups()
            if part == "attentions":
                return f"middle_block.1.{rest}" if number == "0" else None
            inner = _renamed(rest, _UNET_RESNET)
            return inner and f"middle_block.{2 * int(number)}.{inner}"
        match = _BLOCK.fullmatch(name)
        if match is None:
            return _renamed(name, _UNET)
        way, block, part, number, rest = match.groups()
        # Every block has its layers and one place more: of the way down its downsampler, of the way up a layer.
        place = int(block) * (layers + 1) + (layers if part.endswith("samplers") else int(number))
        stem = f"input_blocks.{1 + place}" if way == "down" else f"output_blocks.{place}"
        if part == "resnets":
            inner = _renamed(rest, _UNET_RESNET)
            return inner and f"{stem}.0.{inner}"
        if part == "attentions":
            return f"{stem}.1.{rest}"
        if part == "downsamplers":
            return f"{stem}.0.{_renamed(rest, {'conv': 'op'})}"
        return f"{stem}.{2 if ('up', block) in attended else 1}.{rest}"

    return _all_named(names, original)


def vae_names(names: Iterable[str], config: Config) -> dict[str, str]:
    """The original name of each of ``names`` of an AutoencoderKL with this ``config``. Raises UserError as ``unet_names``."""
    last = len(config["up_block_types"]) - 1

    def original(name: str) -> str | None:
        half, _, rest = name.partition(".")
        if half not in ("encoder", "decoder"):
            return name  # quant_conv and post_quant_conv
        if match := _MIDDLE.fullmatch(rest):
            part, number, rest = match.groups()
            if part == "resnets":
                return f"{half}.mid.block_{int(number) + 1}.{_vae_resnet(rest)}"
            inner = _renamed(rest, _VAE_ATTENTION)
            return inner and f"{half}.mid.attn_{int(number) + 1}.{inner}"
        match = _BLOCK.fullmatch(rest)
        if match is None:
            return f"{half}.{_renamed(rest, _VAE) or rest}"
        way, block, part, number, rest = match.groups()
        # The original counts the way up from its end.
        stem = f"{half}.{way}.{block if way == 'down' else last - int(block)}"
        if part == "resnets":
            return f"{stem}.block.{number}.{_vae_resnet(rest)}"
        return f"{stem}.{part.removesuffix('rs')}.{rest}" if part.endswith("samplers") else None

    return _all_named(names, original)


def _vae_resnet(rest: str) -> str:
    return _renamed(rest, {"conv_shortcut": "nin_shortcut"}) or rest


def _all_named(names: Iterable[str], original: Callable[[str], str | None]) -> dict[str, str]:
    named = {name: original(name) for name in names}
    unknown = [name for name, new in named.items() if new is None]
    if unknown:
        problem = f"{len(unknown)} weights have no name in the original format, the first is {unknown[0]!r}"
        raise UserError(problem, "take the format `merged`, which holds any pipeline")
    return {name: new for name, new in named.items() if new is not None}


def unet_weights(weights: Weights, config: Config) -> dict[str, Tensor]:
    """The weights of a UNet2DConditionModel by their original names."""
    return {new: weights[name] for name, new in unet_names(weights, config).items()}


def vae_weights(weights: Weights, config: Config) -> dict[str, Tensor]:
    """The weights of an AutoencoderKL by their original names; its linear layers are convolutions of 1 x 1 there."""
    named = {new: weights[name] for name, new in vae_names(weights, config).items()}
    is_linear = {new: ".attn_" in new and value.ndim == 2 for new, value in named.items()}
    return {new: value[:, :, None, None] if is_linear[new] else value for new, value in named.items()}


def clip_weights(weights: Weights, config: Config) -> dict[str, Tensor]:
    """The weights of OpenAI's text encoder, which the original holds as transformers had it."""
    return {f"transformer.{text_layer(name)}": value for name, value in weights.items()}


def open_clip_weights(weights: Weights, config: Config) -> dict[str, Tensor]:
    """The weights of OpenCLIP's text encoder: query, key and value in one matrix, the projection transposed."""
    named: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        bare = text_layer(name).removeprefix("text_model.")
        layer = _ENCODER_LAYER.fullmatch(bare)
        if layer and (qkv := _QKV.fullmatch(layer[2])):
            joined.setdefault(f"transformer.resblocks.{layer[1]}.attn.in_proj_{qkv[2]}", {})[qkv[1]] = value
        elif layer and (inner := _renamed(layer[2], _OPEN_CLIP_LAYER)):
            named[f"transformer.resblocks.{layer[1]}.{inner}"] = value
        elif bare == "text_projection.weight":
            named["text_projection"] = value.T
        elif bare in _OPEN_CLIP:
            named[_OPEN_CLIP[bare]] = value
        elif not bare.endswith("position_ids"):
            raise UserError(f"a text encoder's weight {name!r} has no name in the original format", "use `merged`")
    named |= {name: torch.cat([parts[letter] for letter in "qkv"]) for name, parts in joined.items()}
    return {f"model.{name}": value for name, value in named.items()}


def clip_of_its_kind(weights: Weights, config: Config) -> dict[str, Tensor]:
    """Stable Diffusion 1 has OpenAI's encoder, 2 has OpenCLIP's: they differ in their activation."""
    return (open_clip_weights if config["hidden_act"] == "gelu" else clip_weights)(weights, config)


def text_layer(name: str) -> str:
    """transformers has flattened some of its text encoders; the files have not changed."""
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def layers_as_they_are(names: Iterable[str], config: Config) -> dict[str, str]:
    """Layers that other tools know by diffusers' names."""
    return {name: name for name in names}


def text_layers(names: Iterable[str], config: Config) -> dict[str, str]:
    """Layers of a text encoder, which other tools know by transformers' names of old."""
    return {name: text_layer(name) for name in names}


@dataclass(frozen=True, slots=True)
class PartNames:
    """What other tools call one part of a pipeline.

    Args:
        prefix: What stands before its names in a single file.
        weights: (weights by their names here, config of the part) to weights as a single file has them.
        lora: What kohya's names of adapters begin with; "" where no adapters go on it.
        layers: (names of layers here, config of the part) to the names that kohya's are made of.
    """

    prefix: str
    weights: Callable[[Weights, Config], dict[str, Tensor]]
    lora: str = ""
    layers: Callable[[Iterable[str], Config], dict[str, str]] = layers_as_they_are


SD = {
    "unet": PartNames("model.diffusion_model.", unet_weights, "lora_unet"),
    "vae": PartNames("first_stage_model.", vae_weights),
    "text_encoder": PartNames("cond_stage_model.", clip_of_its_kind, "lora_te", text_layers),
}
# kohya trains Stable Diffusion XL in the original's code, and so by the original's names.
SDXL = {
    "unet": PartNames("model.diffusion_model.", unet_weights, "lora_unet", unet_names),
    "vae": PartNames("first_stage_model.", vae_weights),
    "text_encoder": PartNames("conditioner.embedders.0.", clip_weights, "lora_te1", text_layers),
    "text_encoder_2": PartNames("conditioner.embedders.1.", open_clip_weights, "lora_te2", text_layers),
}
