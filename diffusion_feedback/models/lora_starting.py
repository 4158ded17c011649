"""Adapters that start where a LoRA file ends: its factors take the place of the drawn ones, at the same strength."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UserError
from .lora import ADAPTER, is_adapted, remove
from .lora_loading import load_into, load_onto

_SHOWN = 3  # layers that a message names


@dataclass(frozen=True, slots=True)
class LayerFactors:
    """The pair of factors of one layer, which counts ``scaling`` times."""

    down: Tensor
    up: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        """Rank of the pair."""
        return len(self.down)


def pipeline_factors(pipeline: DiffusionPipeline, path: str, network_name: str) -> dict[str, LayerFactors]:
    """The factors of the LoRA at ``path`` by the layers of the network that is called ``network_name``; nothing stays on.

    Raises UserError as ``load_into``, and for a LoRA of other networks too, which training would leave out.
    """
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    try:
        load_into(pipeline, path, network_name)
        others = [name for name, part in parts.items() if name != network_name and is_adapted(part)]
        if others:
            problem = f"{path}: has adapters of {', '.join(others)} too, and {network_name} alone is trained"
            raise UserError(problem, "merge it into the base, and give that as the model")
        return _factors(parts[network_name], path)
    finally:
        for part in parts.values():
            remove(part)


def model_factors(model: PreTrainedModel, path: str) -> dict[str, LayerFactors]:
    """The factors of the LoRA at ``path`` by the layers of the transformers ``model``; nothing stays on. Raises UserError."""
    try:
        load_onto(model, path)
        return _factors(model, path)
    finally:
        remove(model)


def _factors(network: nn.Module, path: str) -> dict[str, LayerFactors]:
    factors = {}
    for name, layer in network.named_modules():
        if not isinstance(layer, LoraLayer) or not layer.lora_A:
            continue
        ((adapter, down),) = layer.lora_A.items()
        up = layer.lora_B[adapter]
        if up.bias is not None:
            raise UserError(f"{path}: its adapters have biases, which are not trained here", "use one without")
        scaling = float(layer.scaling[adapter])
        factors[name] = LayerFactors(down.weight.detach().float().clone(), up.weight.detach().float().clone(), scaling)
    return factors


def start_at(network: nn.Module, factors: Mapping[str, LayerFactors], path: str) -> str:
    """Put ``factors``, read from ``path``, in the place of those of the adapters on ``network``; says what was put where.

    Strengths may differ: the factors are scaled by as much, so that the network computes what it does with the file. Raises
    UserError, which names layers and ranks, for layers without adapters, and for another rank.
    """
    adapted = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A
    }
    _check_fit(factors, {name: layer.r[ADAPTER] for name, layer in adapted.items()}, path)
    with torch.no_grad():
        for name, own in factors.items():
            layer = adapted[name]
            ratio = own.scaling / float(layer.scaling[ADAPTER])
            root = math.sqrt(abs(ratio))
            layer.lora_A[ADAPTER].weight.copy_(own.down * root)
            layer.lora_B[ADAPTER].weight.copy_(own.up * math.copysign(root, ratio))
    rest = len(adapted) - len(factors)
    remark = f"; the other {rest} layers start as adapters that change nothing" if rest else ""
    if not any(bool(own.down.any() and own.up.any()) for own in factors.values()):
        remark += "; all of its pairs multiply to zero: IT CHANGES NOTHING, as an adapter that was never trained"
    return f"start at {path}: {len(factors)} layers{remark}"


def _check_fit(factors: Mapping[str, LayerFactors], ranks: Mapping[str, int], path: str) -> None:
    missing = sorted(factors.keys() - ranks.keys())
    unlike = sorted(name for name, own in factors.items() if name in ranks and own.rank != ranks[name])
    problems, remedies = [], []
    if missing:
        problems.append(f"{len(missing)} of its {len(factors)} layers are not adapted here ({_some(missing)})")
        remedies.append("model.lora_targets that reach them")
    if unlike:
        own = sorted({factors[name].rank for name in unlike})
        here = sorted({ranks[name] for name in unlike})
        problems.append(f"it has rank {_or(own)} on {len(unlike)} layers ({_some(unlike)}), and here it is {_or(here)}")
        one_rank = len({each.rank for each in factors.values()}) == 1
        remedies.append(f"model.lora_rank: {own[0]}" if one_rank else "a LoRA of one rank")
    if problems:
        raise UserError(f"model.init_lora: {path}: {'; '.join(problems)}", f"give {' and '.join(remedies)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])])


def _or(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))
