"""What a run of a published model will need in memory, before its weights are there: passes of its network without numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call

from ...catalog import objective_row, state_bytes
from ...config.recipe import Recipe
from ...errors import UserError
from ...models import lora
from ...models.published import LATENT_CHANNELS, SCALE, PublishedModel, published_model
from ...types.models import AdapterSettings
from .image_caches import encoded_at_once
from .memory import PeakMemory, gibibytes

_TOKENS = 77
_HALF: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
BOUNDS = "counted, not measured: a device adds 1 to 2 GiB of its own and what its allocator leaves unused, together up to a fifth"


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes in one process: of the network, of what is frozen beside it, of gradients, states and averages; and the most
    that one pass takes, encoding a batch of images, or decoding one of samples.
    """

    network: int
    frozen: int
    states: int
    one_pass: int
    encoding: int
    samples: int

    @property
    def total(self) -> int:
        """The most at once: images are encoded before the first pass, and samples are drawn between two."""
        return self.network + self.frozen + max(self.encoding, self.states + max(self.one_pass, self.samples))

    def lines(self) -> list[str]:
        """The parts, for the plan of a run."""
        return [
            f"memory           about {gibibytes(self.total)} in each process ({BOUNDS}):",
            f"                 network {gibibytes(self.network)}",
            f"                 image and text encoders, reference {gibibytes(self.frozen)}",
            f"                 gradients, optimizer and average {gibibytes(self.states)}",
            f"                 one pass {gibibytes(self.one_pass)}",
            f"                 before: encoding {gibibytes(self.encoding)}; between: samples {gibibytes(self.samples)}",
        ]


def memory_need(recipe: Recipe) -> MemoryNeed:
    """What a run of ``recipe`` needs, whose model is a published one. Raises UserError for others."""
    model = published_model(recipe.model.pretrained_model_name_or_path)
    if model is None:
        problem = f"{recipe.model.pretrained_model_name_or_path}: its memory is unknown until it is loaded"
        raise UserError(problem, "give the folder of its weights")
    network = _tuned(recipe, model)
    side = recipe.data.resolution or model.resolution
    trained = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    dtype = getattr(torch, recipe.model.dtype)
    weights = sum(w.numel() * _itemsize(w, dtype) for w in network.parameters())
    encoders = 4 * (model.text_parameters + sum(weight.numel() for weight in model.decoder().parameters()))
    is_full = recipe.model.tuning == "full"
    copied = weights if is_full and recipe.objective["name"] != "sft" else 0
    average = 4 * trained if recipe.training.ema_decay else 0
    examples = recipe.training.train_batch_size
    images = examples * (1 if objective_row(recipe.objective["name"]).learns_from == "chosen" else 2)
    # Gradients of a pass stand in what the pass takes; they are counted once.
    one_pass = _peak(_Pass(network), _inputs(model, images, side), recipe.training.mixed_precision, dtype) - 4 * trained
    encoded = (torch.empty(encoded_at_once(side), 3, side, side, device="meta"),)
    validation = recipe.validation
    at_once = min(examples, len(validation.prompts) or validation.num_prompts)
    drawn = (torch.empty(at_once, LATENT_CHANNELS, side // SCALE, side // SCALE, device="meta"),)
    return MemoryNeed(
        network=weights,
        frozen=encoders + copied,
        states=int((4 + state_bytes(recipe.optimizer["name"])) * trained + average),
        one_pass=max(0, one_pass),
        encoding=_peak(_Call(model.decoder(), "encode"), encoded, "no", torch.float32),
        samples=_peak(_Call(model.decoder(), "decode"), drawn, "no", torch.float32) if at_once else 0,
    )


def _tuned(recipe: Recipe, model: PublishedModel) -> nn.Module:
    """The network with what is trained of it, on the meta device."""
    settings, network = recipe.model, model.network()
    if settings.tuning == "full":
        network.requires_grad_(True)
    else:
        rank, targets = settings.lora_rank, settings.lora_targets
        lora.add(network, AdapterSettings(rank=rank, alpha=1.0, targets=targets, seed=0))
    network.train()
    if settings.gradient_checkpointing:
        network.enable_gradient_checkpointing()  # type: ignore[operator]  # of diffusers' networks
    for layer in network.modules():
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            layer.register_forward_pre_hook(_in_float32)
    return network


def _in_float32(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """As autocast has norms on a GPU; on the CPU, as which the passes here run, it has not."""
    return (inputs[0].float(), *inputs[1:])


def _itemsize(weight: Tensor, dtype: torch.dtype) -> int:
    return 4 if weight.requires_grad else dtype.itemsize


def _inputs(model: PublishedModel, images: int, side: int) -> tuple[Tensor, ...]:
    small = side // SCALE
    sizes = [(images, LATENT_CHANNELS, small, small), (images,), (images, _TOKENS, model.token_width)]
    sizes += [(images, model.pooled), (images, 6)] * bool(model.pooled)
    return tuple(torch.empty(size, device="meta") for size in sizes)


class _Pass(nn.Module):
    """Forward and backward pass of a network, as a module: its weights can then be given with the call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, latents: Tensor, timesteps: Tensor, tokens: Tensor, *added: Tensor) -> Sequence[Tensor]:
        more = {"added_cond_kwargs": dict(zip(("text_embeds", "time_ids"), added, strict=True))} if added else {}
        error = self.network(latents, timesteps, tokens, **more).sample.float().square().mean()
        return torch.autograd.grad(error, [weight for weight in self.network.parameters() if weight.requires_grad])


class _Call(nn.Module):
    """A method of a module, without gradients."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.call = module, name

    def forward(self, given: Tensor) -> object:
        called: Callable[[Tensor], object] = getattr(self.module, self.call)
        with torch.no_grad():
            return called(given)


def _peak(module: nn.Module, inputs: Sequence[Tensor], precision: str, dtype: torch.dtype) -> int:
    """Bytes that ``module`` on ``inputs`` takes at most, beside its weights, frozen ones of which are in ``dtype``."""
    half = _HALF.get(precision)
    with FakeTensorMode():
        weights = {
            name: torch.empty(weight.shape, dtype=torch.float32 if weight.requires_grad else dtype)
            for name, weight in (*module.named_parameters(), *module.named_buffers())
        }
        for name, weight in module.named_parameters():
            weights[name].requires_grad_(weight.requires_grad)
        given = tuple(torch.empty(each.shape) for each in inputs)
        with torch.autocast("cpu", dtype=half) if half else nullcontext(), PeakMemory() as peak:
            functional_call(module, weights, given)
    return int(peak.bytes)
