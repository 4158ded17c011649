"""Adapters as what they are: two factors and a strength for each layer, by the layer's name in its network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ...errors import UserError


@dataclass(frozen=True, slots=True)
class LowRank:
    """``alpha / rank`` times ``up @ down`` is added to a layer's weight; kernels of convolutions have two axes more."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The number of rows of ``down``."""
        return len(self.down)

    def folded(self) -> LowRank:
        """The same with the strength within the factors, half of it in each: alpha is the rank."""
        fold = math.sqrt(abs(self.alpha) / self.rank)
        signed = fold if self.alpha >= 0 else -fold
        return LowRank(self.down * fold, self.up * signed, float(self.rank))

    def to(self, dtype: torch.dtype) -> LowRank:
        """The same in another precision."""
        return replace(self, down=self.down.to(dtype), up=self.up.to(dtype))

    def added(self) -> Tensor:
        """What is added to the weight, float32."""
        down, up = self.down.float(), self.up.float()
        product = (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])
        return product * (self.alpha / self.rank)


Layers = Mapping[str, LowRank]


def layers_of(network: nn.Module) -> dict[str, LowRank]:
    """The adapters on ``network`` by layer. Raises UserError for two of them at once, and for adapters with biases."""
    layers = {}
    for name, module in network.named_modules():
        if not isinstance(module, LoraLayer) or not len(module.lora_A):
            continue
        if len(module.lora_A) > 1 or any(module.lora_bias.values()):
            what = "several adapters at once" if len(module.lora_A) > 1 else "an adapter with biases"
            raise UserError(f"{name}: {what}, which the format has no place for", "take the format `merged`")
        (key,) = module.lora_A
        down, up = (part[key].weight.detach().float().cpu().contiguous() for part in (module.lora_A, module.lora_B))
        layers[name] = LowRank(down, up, float(module.scaling[key]) * len(down))
    return layers


def config_of(layers: Layers) -> LoraConfig:
    """peft's settings of ``layers``: rank and alpha of most, and those of the others by name."""
    ranks = {name: layer.rank for name, layer in layers.items()}
    alphas = {name: layer.alpha for name, layer in layers.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return LoraConfig(
        r=int(rank),
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        # "^" binds the pattern to the whole name, as diffusers does it.
        rank_pattern={f"^{name}": value for name, value in ranks.items() if value != rank},
        alpha_pattern={f"^{name}": value for name, value in alphas.items() if value != alpha},
        target_modules=sorted(layers),
    )


@contextmanager
def merged_by_hand(pipeline: DiffusionPipeline, parts: Mapping[str, Layers]) -> Iterator[None]:
    """Within this, what ``parts`` add is part of the weights of ``pipeline``, by this formula and no library's code."""
    before: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for part, layers in parts.items():
            network = getattr(pipeline, part)
            for name, layer in layers.items():
                weight = network.get_submodule(name).weight
                before.append((weight, weight.data))
                weight.data = weight.data + layer.added().reshape(weight.shape).to(weight)
        yield
    finally:
        for weight, data in before:
            weight.data = data
