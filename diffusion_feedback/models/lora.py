"""Low-rank adapters through peft: adding, switching off for the reference, saving in diffusers' and in peft's format.

Everything goes through peft itself. transformers and diffusers have calls of the same names, but each release of theirs
asks for the newest peft, so that a fresh install of all three may not fit together.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME, AuxiliaryTrainingWrapper, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from ..errors import UserError
from ..quiet import quiet
from ..types.models import AdapterSettings

ADAPTER = "default"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut")
TARGETS = {"attention": ATTENTION, "feed_forward": FEED_FORWARD, "convolutions": CONVOLUTIONS}


def add(
    network: nn.Module,
    settings: AdapterSettings,
    *,
    adapter: str = ADAPTER,
    task_type: str | None = None,
    is_tied: bool = False,
) -> None:
    """Add one adapter to the layers that ``settings`` name, in float32; only its weights are trainable.

    Targets are keys of ``TARGETS`` or endings of layer names. The second factor starts at zero, so the network's output
    does not change. ``task_type`` is peft's, by which it finds the class of a language model. ``is_tied``: what is trained
    of the embedding is trained of the output head too, which is one tensor with it. Raises UserError for targets that
    match no layer.
    """
    modules = _modules(network, settings.targets)
    is_transposed = any(type(layer).__name__ == "Conv1D" for layer in network.modules())  # as GPT-2 keeps its weights
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(settings.seed)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            init_lora_weights="gaussian",
            target_modules=modules,
            fan_in_fan_out=is_transposed,
            modules_to_save=list(settings.modules_to_save) or None,
            ensure_weight_tying=is_tied,
            task_type=task_type,
            revision=settings.revision,
        )
        # By this name peft finds the base of a language model; diffusers' networks have none. A folder's is written out in
        # full: read elsewhere, a part of a path could be taken for the name of a stranger's model on the hub.
        base = vars(network).get("name_or_path")
        config.base_model_name_or_path = str(Path(base).resolve()) if base and Path(base).is_dir() else base
        inject_adapter_in_model(config, network, adapter)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _modules(network: nn.Module, targets: Sequence[str]) -> list[str]:
    """Endings of the names of all layers that ``targets`` means."""
    layers = [name for name, _ in network.named_modules()]
    modules: list[str] = []
    for target in targets:
        endings = TARGETS.get(target, (target,))
        present = [end for end in endings if any(name == end or name.endswith("." + end) for name in layers)]
        if not present:
            problem = f"model.lora_targets: no layer of the network ends in {', '.join(map(repr, endings))}"
            raise UserError(problem, f"use {', '.join(TARGETS)}, or endings of layer names")
        modules += present
    return modules


def remove(network: nn.Module) -> None:
    """Take what ``add`` has added out of ``network`` and all that it holds, which computes what it computed before."""
    for name, module in list(network.named_modules()):
        # peft's names of what it has put its own layers around.
        own = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
        if own is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, own)
    for module in network.modules():
        vars(module).pop("peft_config", None)


def is_adapted(network: nn.Module) -> bool:
    """Whether ``network`` carries adapters."""
    return bool(getattr(network, "peft_config", None))


def switch(network: nn.Module, *, on: bool) -> None:
    """Switch all adapters within ``network`` on or off, and with them the layers that are trained as a whole.

    Raises ValueError where there are none: the "base" would be the network itself.
    """
    adapted = [module for module in network.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    if not adapted:
        raise ValueError(f"{type(network).__name__} carries no adapters to switch")
    for module in adapted:
        module.enable_adapters(on)


def save_transformer(model: PreTrainedModel, folder: Path, *, is_merged: bool) -> None:
    """Write the transformers ``model``, or its adapter alone, as plain transformers and peft load them.

    Where the base is merged itself (``is_merged``) its adapter is merged too: alone it would go with a base that is
    nowhere.
    """
    if not is_adapted(model):
        model.save_pretrained(folder)
    elif is_merged:
        merged_copy(model).save_pretrained(folder)
    else:
        _save_adapter(model, folder)


def _save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """As peft's ``PeftModel.save_pretrained``, and the generation settings.

    The embedding is never resized here, so it is not saved; to find that out, peft would ask the hub.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    # Clones, since an embedding and a head that are tied may not be one tensor in this format.
    weights = {f"base_model.model.{key}": value.clone().contiguous() for key, value in state.items()}
    save_file(weights, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config = copy.copy(model.peft_config[ADAPTER])
    config.target_modules = sorted(config.target_modules)  # a set comes out in another order in another process
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def save_lora(pipeline: DiffusionPipeline, network: ModelMixin, folder: Path, *, name: str) -> None:
    """Write the adapter of ``network`` so that plain ``load_lora_weights`` reads it, and all others at the same strength.

    Some tools (ComfyUI, older diffusers) read no alpha and take it to be the rank. So the factor sqrt(alpha / rank) is
    folded into both matrices, and alpha is written as the rank.
    """
    config = copy.copy(network.peft_config[ADAPTER])
    fold = math.sqrt(config.lora_alpha / config.r)
    config.lora_alpha = config.r
    weights = get_peft_model_state_dict(network, adapter_name=ADAPTER, save_embedding_layers=False)
    state = {key: (value * fold).contiguous() for key, value in weights.items()}
    # Sets come out in another order in another process; sorted, equal settings are equal texts.
    metadata = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    pipeline.save_lora_weights(folder, **{f"{name}_lora_layers": state, f"{name}_lora_adapter_metadata": metadata})


def merged_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A plain transformers model, float32, whose weights are those of ``model`` with its adapters merged in."""
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    # Subtracting what was added would leave rounding in the weights, and a run may go on with them.
    own = {weight: weight.data.clone() for layer in layers for weight in layer.get_base_layer().parameters()}
    with torch.random.fork_rng(devices=[]):
        plain = type(model)(model.config)
    for layer in layers:
        layer.merge()
    try:
        weights = {
            name.replace(".base_layer.", ".").replace(f".modules_to_save.{ADAPTER}.", "."): value
            for name, value in model.state_dict().items()
            if ".lora_" not in name and ".original_module." not in name
        }
        plain.load_state_dict(weights)
    finally:
        for layer in layers:
            layer.unmerge()
        for weight, data in own.items():
            weight.data = data
    if hasattr(model, "generation_config"):
        plain.generation_config = model.generation_config
    return plain


def trainable(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that training changes."""
    return [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
