"""Which layers of a language model adapters go on: groups by what a layer does, for every architecture that transformers has."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from peft import LoraConfig
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel

from ..errors import UserError
from ..types.models import AdapterSettings
from . import lora
from .output_heads import trunk_of

GROUPS = ("attention", "feed_forward", "all-linear")
# Names of the modules that mix tokens (attention in the wide sense: state spaces, convolutions, linear attention too), and of
# those that work on each token alone.
_MIXERS = re.compile(r"attn|attention|mixer|mamba|conv|temporal_block|ssm|time_mix|delta_net", re.IGNORECASE)
_FEEDS = re.compile(r"mlp|ffn|feed_?forward|moe|expert|channel_mix", re.IGNORECASE)
# Feed-forward layers that stand in a block without a module around them, as OPT's.
_BARE_FEEDS = re.compile(r"fc\d|fc_in|fc_out|w[123]|lin[12]|(gate|up|down|gate_up)_proj|dense_h_to_4h|dense_4h_to_h")
# What chooses experts is left as it is.
_ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
_SHOWN = 30  # endings that a message lists


@dataclass(frozen=True, slots=True)
class AdaptedLayers:
    """``endings`` of names that mean the adapted layers and no others, ``count`` of these layers, and ``left_out``: what
    of the groups requested adapters do not reach, in words.
    """

    endings: Sequence[str]
    count: int
    left_out: Sequence[str]


def adapted_layers(model: PreTrainedModel, targets: Sequence[str]) -> AdaptedLayers:
    """The layers of the language ``model`` that ``targets`` mean: groups of ``GROUPS``, or endings of layer names.

    Groups are of the part that reads texts, without the output head. Raises UserError for a target that means no layer.
    """
    names = [name for name, layer in model.named_modules() if _is_linear(layer) or isinstance(layer, nn.Embedding)]
    trunk = trunk_of(model)
    within = next(name for name, module in model.named_modules() if module is trunk)
    prefix = f"{within}." if within else ""
    passed = {leaf for leaf in {name.rpartition(".")[2] for name in names} if _is_redirected(model, leaf)}
    chosen: dict[str, None] = {}
    left_out: dict[str, None] = {}
    for target in targets:
        if target in GROUPS:
            inner, rest = _group(trunk, target)
            layers = [prefix + name for name in inner]
        else:
            layers, rest = [name for name in names if f".{name}".endswith(f".{target}")], []
        lost = sorted({leaf for name in layers if (leaf := name.rpartition(".")[2]) in passed})
        if lost:
            rest.append(f"{', '.join(lost)} (peft takes these names for fused experts in this architecture)")
            layers = [name for name in layers if name.rpartition(".")[2] not in passed]
        left_out.update(dict.fromkeys(rest))
        if not layers:
            raise _no_layer(target, names, rest)
        chosen.update(dict.fromkeys(layers))
    every = [name for name, _ in model.named_modules()]
    return AdaptedLayers(_endings(list(chosen), every), len(chosen), list(left_out))


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"  # GPT-2's linear layers are called so


def _group(trunk: nn.Module, group: str) -> tuple[list[str], list[str]]:
    """Names within ``trunk`` of the layers of ``group``, and what of it stays out."""
    modules = dict(trunk.named_modules())
    kept, left_out = [], []
    for name, layer in modules.items():
        if not _is_linear(layer) or group not in (_kind(name), "all-linear"):
            continue
        parent, _, leaf = name.rpartition(".")
        if all(hasattr(modules[parent], part) for part in ("A_log", "D")) and leaf != "in_proj":
            left_out.append(f"{leaf} of state spaces (their kernels read the weights past adapters)")
        elif leaf in _ROUTERS and group != "all-linear":
            left_out.append(f"{leaf} (it chooses experts)")
        else:
            kept.append(name)
    if group != "attention":
        fused = [
            (name, weight) for name, weight in trunk.named_parameters() if ".experts." in name and weight.ndim == 3
        ]
        if fused:
            total = sum(weight.numel() for _, weight in fused)
            left_out.append(f"{total:,} weights of experts that are fused into one tensor a layer")
    return kept, left_out


def _is_redirected(model: PreTrainedModel, leaf: str) -> bool:
    """Whether peft turns an adapter on layers called ``leaf`` into one on experts that are fused into one tensor.

    It does so for adapters from the time when experts were layers; other layers of the name would go without.
    """
    config = LoraConfig(target_modules=[leaf])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # it asks for the other half of a fused tensor
        return True
    return bool(config.target_parameters)


def _kind(name: str) -> str | None:
    *parents, leaf = name.split(".")
    for part in parents:
        if _MIXERS.search(part):
            return "attention"
        if _FEEDS.search(part):
            return "feed_forward"
    return "feed_forward" if _BARE_FEEDS.fullmatch(leaf) else None


def _endings(chosen: Sequence[str], every: Collection[str]) -> list[str]:
    """The shortest endings that mean all of ``chosen`` and nothing else of ``every``, in order."""
    wanted, present = set(chosen), dict[str, None]()
    for name in chosen:
        parts = name.split(".")
        endings = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        own = next(
            (end for end in endings if all(other in wanted for other in every if f".{other}".endswith(f".{end}"))), name
        )
        present[own] = None
    return list(present)


def _no_layer(target: str, names: Sequence[str], left_out: Sequence[str]) -> UserError:
    if left_out:
        problem = f"model.lora_targets: {target} means no layer here that adapters reach, but {'; '.join(left_out)}"
        return UserError(problem, "leave it out, or tune the whole model (model.tuning: full)")
    problem = f"model.lora_targets: no layer of the network ends in {target!r}"
    leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    more = ", ..." if len(leaves) > _SHOWN else ""
    return UserError(problem, f"use {', '.join(GROUPS)}, or endings of layer names: {', '.join(leaves[:_SHOWN])}{more}")


def add_adapters(
    model: PreTrainedModel, settings: AdapterSettings, *, task_type: str | None = None, is_merged: bool = False
) -> list[str]:
    """``lora.add`` on the layers of the language ``model`` that ``settings`` mean; returns in words what is trained.

    ``is_merged``: another adapter is part of its weights already. Raises UserError for names that mean no layer.
    """
    layers, heads = adapted_layers(model, settings.targets), settings.modules_to_save
    for head in heads:
        if not any(f".{name}".endswith(f".{head}") for name, _ in model.named_modules()):
            holding = [
                name for name, part in model.named_modules() if any(True for _ in part.parameters(recurse=False))
            ]
            leaves = dict.fromkeys(name.rpartition(".")[2] for name in holding)
            problem = f"model.lora_modules_to_save: no module of the network ends in {head!r}"
            raise UserError(problem, f"give endings of names: {', '.join(list(leaves)[:_SHOWN])}")
    is_tied = _touches_tied(model, layers.endings, heads)
    lora.add(model, replace(settings, targets=layers.endings), task_type=task_type, is_tied=is_tied)
    trained = sum(parameter.numel() for _, parameter in lora.trainable(model))
    whole = f", {', '.join(heads)} whole" if heads else ""
    first = (
        f"rank {settings.rank} on {layers.count:,} layers ({', '.join(layers.endings)}){whole}: {trained:,} parameters"
    )
    lines = [first, *(f"without adapters: {rest}" for rest in layers.left_out)]
    if is_merged:
        size = sum(4 * parameter.numel() for parameter in model.parameters()) / 2**20
        lines.append(f"over another adapter, which is merged: the result is a whole model, {size:,.0f} MiB in float32")
    return lines


def _touches_tied(model: PreTrainedModel, endings: Sequence[str], heads: Sequence[str]) -> bool:
    """Whether ``heads`` mean the embedding or the output head of a ``model`` where they are one tensor.

    Raises UserError where ``endings`` do, since two adapters on one tensor cannot be merged, and where peft would take the
    two apart.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return False
    names = [name for name, part in model.named_modules() if part is head or part is embedding]

    def meant(some: Sequence[str]) -> list[str]:
        return [name for name in names if any(f".{name}".endswith(f".{end}") for end in some)]

    whole = all(name.rpartition(".")[2] in EMBEDDING_LAYER_NAMES for name in names)
    for key, names_of in (("lora_targets", meant(endings)), ("lora_modules_to_save", [] if whole else meant(heads))):
        if names_of:
            problem = f"model.{key}: {names_of[0]} is one tensor with {', '.join(sorted(set(names) - {names_of[0]}))}"
            rest = f"train it whole (model.lora_modules_to_save: [{names[0].rpartition('.')[2]}])" if whole else ""
            raise UserError(problem, ", ".join(filter(None, ["leave it out", rest, "or set model.tuning: full"])))
    return bool(meant(heads))
