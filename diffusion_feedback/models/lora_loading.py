"""A LoRA onto a pipeline: every tensor of the file is counted, and nothing goes on that fits in part or not at all."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.state_dict_utils import (
    StateDictType,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UserError
from ..foreign import reading
from ..quiet import quiet
from ..text_folders import scale_adapter
from .lora_files import FOLDER, LoraFile, read_lora

_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
# What files put before the names of layers: the network that they are for.
_PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
_REMEDY = "use a LoRA that was trained on this base; adapters of other kinds (LoHa, LoKr, DoRA) are not read"


@dataclass(slots=True)
class _Part:
    """What goes onto one network: tensors by peft's keys, alphas by layer, and the key of each tensor in the file."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)


def load_into(pipeline: DiffusionPipeline, path: str, network_name: str, scale: float = 1.0) -> str:
    """Add the LoRA in folder, file or hub id ``path`` to ``pipeline``, whose denoiser is ``network_name``; say what was added.

    ``scale`` multiplies what it adds, through its alpha, so that the hash of the model knows of it. Raises UserError for what cannot be read, and where one tensor of it does not fit: the message counts them.
    """
    file = read_lora(path)
    with reading(path, "LoRA weights", FOLDER), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, where settings name layers that the file has no tensors for
        parts, lost = _sort(pipeline, file, network_name)
        misfits = lost + [
            problem for name, part in parts.items() for problem in _misfits(getattr(pipeline, name), part)
        ]
        if misfits:
            total = len(file.tensors)
            shown = "; ".join(misfits[:3])
            problem = (
                f"{path}: {total - len(misfits)} of {total} LoRA tensors fit this {type(pipeline).__name__}: {shown}"
            )
            raise UserError(problem, _REMEDY)
        for name, part in parts.items():
            _apply(getattr(pipeline, name), part, scale_adapter(_config(file, name, part), scale), path)
    layers = {name: len({_layer(key) for key in part.tensors}) for name, part in parts.items()}
    where = " and ".join(f"{count} layers of {name}" for name, count in layers.items())
    remark = f", times {scale:g}" if scale != 1 else ""
    unsaid = file.settings is None and file.alpha is None and not file.alphas
    remark += "; it states no alpha, so that its strength is 1, as in diffusers" if unsaid else ""
    if not any(_changes(part) for part in parts.values()):
        remark += "; all of its pairs multiply to zero: IT CHANGES NOTHING, as an adapter that was never trained"
    return f"LoRA {path}: {len(file.tensors)} tensors on {where}{remark}"


def load_onto(model: PreTrainedModel, path: str) -> None:
    """Add the LoRA in peft's folder or file ``path`` to the transformers ``model``. Raises UserError as ``load_into``."""
    file = read_lora(path)
    with reading(path, "LoRA weights", FOLDER), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = _Part(dict(file.tensors), {}, {key: key for key in file.tensors})
        misfits = list(_misfits(model, part))
        if misfits:
            fitting = f"{len(file.tensors) - len(misfits)} of {len(file.tensors)} LoRA tensors fit"
            problem = f"{path}: {fitting} this {type(model).__name__}: {'; '.join(misfits[:3])}"
            raise UserError(problem, _REMEDY)
        # Which layers these are is known by name; groups of the settings are the file's own.
        _apply(model, part, _config(file, "", part), path)


def _changes(part: _Part) -> bool:
    """Whether a pair of ``part`` has two factors that are not all zeros."""
    full = {key for key, value in part.tensors.items() if bool(value.any())}
    return any(
        key.replace(".lora_A.", ".lora_B.") in full or key.endswith(".bias")
        for key in full
        if ".lora_B." not in key or key.endswith(".bias")
    )


def _is_encoder(name: str) -> bool:
    return name.startswith("text_encoder")


def _layer(key: str) -> str:
    """The name of the layer that the tensor of ``key`` belongs to."""
    return key.split(".lora")[0]


def _sort(pipeline: DiffusionPipeline, file: LoraFile, network_name: str) -> tuple[dict[str, _Part], list[str]]:
    """The tensors of ``file`` by the network they are for, and what is wrong with the others."""
    present = [
        network_name,
        *(name for name in _PARTS if _is_encoder(name) and getattr(pipeline, name, None) is not None),
    ]
    state, by_origin = _named(pipeline, file, present)
    parts: dict[str, _Part] = {}
    lost = [f"{key!r} is of no form that is known" for key in file.tensors if key not in by_origin.values()]
    for name in present:
        own = {key: value for key, value in state.items() if key.startswith(f"{name}.")}
        if own:
            parts[name] = _convert(getattr(pipeline, name), name, own, by_origin, file.alphas or {})
    known = tuple(f"{name}." for name in present)
    lost += [f"{by_origin[key]!r} is for no network of it" for key in state if not key.startswith(known)]
    layers = {_layer(key) for key in file.tensors}
    lost += [f"{layer}.alpha belongs to no layer of it" for layer in file.alphas or {} if layer not in layers]
    return parts, lost


def _named(pipeline: DiffusionPipeline, file: LoraFile, present: list[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by keys that begin with their network's name, and the key in the file of each of them."""
    tensors = dict(file.tensors)
    if any(key.startswith(_KOHYA) for key in tensors):
        # By identity it is seen which tensor became which, and that none was dropped on the way.
        origin = {id(value): key for key, value in tensors.items()}
        blocks = {f"{present[0]}_config": getattr(pipeline, present[0]).config} if "text_encoder_2" in present else {}
        kohya = {key: value for key, value in tensors.items() if key.startswith(_KOHYA)}
        state = type(pipeline).lora_state_dict(kohya, **blocks)[0]
        return state, {key: origin[id(value)] for key, value in state.items()}
    if not any(key.startswith(tuple(f"{name}." for name in _PARTS)) for key in tensors):
        best = max(present, key=lambda name: len(_fitting(getattr(pipeline, name), name, tensors)))
        return {f"{best}.{key}": value for key, value in tensors.items()}, {f"{best}.{key}": key for key in tensors}
    return tensors, {key: key for key in tensors}


def _fitting(network: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """Which of the bare ``tensors`` belong to layers of ``network``."""
    part = _convert(network, name, {f"{name}.{key}": value for key, value in tensors.items()}, {}, {})
    layers = dict(network.named_modules())
    return [key for key in part.tensors if _layer(key) in layers]


def _convert(
    network: nn.Module, name: str, own: Mapping[str, Tensor], by_origin: Mapping[str, str], alphas: Mapping[str, float]
) -> _Part:
    part = _Part()
    for key, value in own.items():
        bare = {key.removeprefix(f"{name}."): value}
        if ".lora_A." not in key and ".lora_B." not in key:
            bare = (
                convert_state_dict_to_peft(bare, StateDictType.DIFFUSERS_OLD)
                if _is_encoder(name)
                else convert_unet_state_dict_to_peft(bare)
            )
        (layer,) = bare
        if _is_encoder(name) and not hasattr(network, "text_model"):  # transformers has flattened its encoders
            layer = layer.removeprefix("text_model.")
        part.tensors[layer] = value
        part.origin[layer] = by_origin.get(key, key)
        if (alpha := alphas.get(_layer(part.origin[layer]))) is not None:
            part.alphas[_layer(layer)] = alpha
    return part


def _misfits(network: nn.Module, part: _Part) -> Iterator[str]:
    """What is wrong with each tensor of ``part`` that does not fit ``network``."""
    layers = dict(network.named_modules())
    for key, value in part.tensors.items():
        name, layer = part.origin[key], layers.get(_layer(key))
        weight = getattr(layer, "weight", None)
        if type(layer).__name__ == "Conv1D" and isinstance(weight, Tensor):  # as GPT-2 keeps its weights
            weight = weight.T
        down, up = (part.tensors.get(f"{_layer(key)}.lora_{letter}.weight") for letter in "AB")
        if layer is None or not isinstance(weight, Tensor):
            yield f"{name!r} is for a layer that it does not have"
        elif down is None or up is None:
            yield f"{name!r} is one half of a pair"
        elif not bool(torch.isfinite(value).all()):
            yield f"{name!r} holds values that are not finite"
        elif key.endswith("lora_A.weight"):
            if value.shape[1:] != weight.shape[1:]:
                yield f"{name!r} takes {tuple(value.shape[1:])}, the layer {tuple(weight.shape[1:])}"
        elif key.endswith("lora_B.weight"):
            if value.shape != (len(weight), len(down), *([1] * (weight.ndim - 2))):
                yield f"{name!r} is {tuple(value.shape)} for a layer of {len(weight)} outputs and rank {len(down)}"
        elif not key.endswith("lora_B.bias"):
            yield f"{name!r} is no factor of a LoRA"


def _config(file: LoraFile, name: str, part: _Part) -> LoraConfig:
    """peft's settings for the network called ``name``: the file's own, or rank and alpha of every layer."""
    prefixes = tuple(f"{each}." for each in _PARTS)
    settings = file.settings or {}
    if any(key.startswith(prefixes) for key in settings):
        own = {key: value for key, value in settings.items() if key.startswith(f"{name}.")}
        settings = {key.removeprefix(f"{name}."): value for key, value in own.items()}
    if settings:
        if settings.get("peft_type", "LORA") != "LORA":
            raise UserError(f"{file.path}: an adapter of kind {settings['peft_type']}, not a LoRA", _REMEDY)
        return LoraConfig(**settings)
    ranks = {_layer(key): len(value) for key, value in part.tensors.items() if key.endswith("lora_A.weight")}
    whole = file.alpha
    alphas = {layer: part.alphas.get(layer, rank if whole is None else whole) for layer, rank in ranks.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return LoraConfig(
        r=int(rank),
        lora_alpha=alpha,
        # "^" binds the pattern to the whole name, as diffusers does it.
        rank_pattern={f"^{layer}": value for layer, value in ranks.items() if value != rank},
        alpha_pattern={f"^{layer}": value for layer, value in alphas.items() if value != alpha},
        target_modules=sorted(ranks),
        lora_bias=any(key.endswith("lora_B.bias") for key in part.tensors),
    )


def _apply(network: nn.Module, part: _Part, config: LoraConfig, path: str) -> None:
    """Put ``part`` onto ``network`` and read it back. Raises UserError where that is not the same."""
    adapter = f"default_{len(getattr(network, 'peft_config', None) or {})}"
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, network, adapter, state_dict=part.tensors)
    set_peft_model_state_dict(network, part.tensors, adapter)
    loaded = get_peft_model_state_dict(network, adapter_name=adapter, save_embedding_layers=False)
    wrong = {*loaded} ^ {*part.tensors}
    wrong |= {
        key for key in {*loaded} - wrong if not torch.equal(loaded[key].cpu(), part.tensors[key].to(loaded[key].dtype))
    }
    if wrong:
        problem = (
            f"{path}: {len(wrong)} of {len(part.tensors)} LoRA tensors did not arrive, the first is {min(wrong)!r}"
        )
        raise UserError(problem, "the file's settings and its tensors do not go together; save it again")
