"""Latent diffusion behind one interface; a family adds how it encodes text and how its network is called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import UserError
from ..noise import DDPMProcess, PredictionType
from ..types import Conditioning
from . import lora
from .lora_loading import load_into
from .quiet import quiet
from .saving import saving


@dataclass(frozen=True, slots=True)
class LatentDiffusion:
    """Denoiser over a diffusers pipeline; implements ``types.Denoiser``.

    ``encode_text(pipeline, prompts)`` gives the text part of the conditioning, ``join(text, sizes)`` adds the size
    stories (N, 6) where the family wants them, ``call(network, noisy, timesteps, conditioning)`` runs the network.
    """

    pipeline: Any
    process: DDPMProcess
    encode_text: Callable[[Any, list[str]], Conditioning]
    join: Callable[[Conditioning, Tensor], Conditioning]
    call: Callable[[nn.Module, Tensor, Tensor, Conditioning], Tensor]

    @property
    def network(self) -> nn.Module:
        """The trainable network as loaded."""
        network: nn.Module = self.pipeline.unet
        return network

    @property
    def resolution(self) -> int:
        """The model's own image side, px."""
        return int(self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor)

    def image_encoder_id(self) -> str:
        """Identity of the VAE and its scaling, for cache keys."""
        vae = self.pipeline.vae
        return weights_hash(vae, settings=f"{vae.config.scaling_factor} {vae.config.get('shift_factor')}")

    def text_encoder_id(self) -> str:
        """Identity of tokenizers and text encoders, for cache keys."""
        encoders = [part for name, part in modules_of(self.pipeline).items() if name.startswith("text_encoder")]
        return weights_hash(*encoders, settings=self._text_settings())

    def model_hash(self) -> str:
        """Identity of the whole model: all weights (adapters included), tokenizers and scheduler."""
        scheduler = str(sorted((key, str(value)) for key, value in self.pipeline.scheduler.config.items()))
        return weights_hash(*modules_of(self.pipeline).values(), settings=scheduler + self._text_settings())

    def _tokenizers(self) -> list[Any]:
        return [part for name, part in self.pipeline.components.items() if name.startswith("tokenizer")]

    def _text_settings(self) -> str:
        vocabularies = str([(t.model_max_length, sorted(t.get_vocab().items())) for t in self._tokenizers()])
        zeros = self.pipeline.config.get("force_zeros_for_empty_prompt")
        return vocabularies + ("the empty prompt is zeros" if zeros else "")

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) in [-1, 1] to scaled latents (N, C, h, w) float32 on the CPU: the posterior's mode."""
        vae = self.pipeline.vae
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode().float()
        shift, scale = float(vae.config.get("shift_factor") or 0.0), float(vae.config.scaling_factor)
        scaled: Tensor = (latents - shift) * scale
        return scaled.cpu()

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Text conditioning of each prompt, batch first, float32 on the CPU."""
        with quiet():
            return {name: value.float().cpu() for name, value in self.encode_text(self.pipeline, list(prompts)).items()}

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many ``prompts`` exceed a tokenizer's limit and will be cut."""
        if not prompts:
            return 0
        tokenizer = self._tokenizers()[0]
        lengths = [len(ids) for ids in tokenizer(list(prompts), truncation=False, verbose=False).input_ids]
        return sum(length > tokenizer.model_max_length for length in lengths)

    def conditioning(self, text: Conditioning, sizes: Tensor) -> Conditioning:
        """Join text conditioning (N, ...) and size stories (N, 6)."""
        return self.join(text, sizes)

    def predict(self, network: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's prediction at ``timesteps`` (N,), shaped as ``noisy``."""
        return self.call(network, noisy, timesteps, conditioning)

    @torch.no_grad()
    def sample(
        self, network: nn.Module, prompts: Sequence[str], seeds: Sequence[int], **settings: Any
    ) -> list[Image.Image]:
        """One image per (prompt, seed) by the pipeline itself, with ``network`` in the place of its own.

        Each image starts from its own CPU generator, so it does not depend on its neighbours in the batch, up to
        rounding. ``settings`` go to the pipeline's call: num_inference_steps, guidance_scale, height, width, ... Raises
        UserError for images that are not finite, and for settings that the pipeline refuses.
        """
        own, training = self.pipeline.unet, network.training
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        try:
            self.pipeline.unet = network.eval()
            with quiet(), _own_precision(network, self.pipeline.device):
                found = self.pipeline(prompt=list(prompts), generator=generators, output_type="np", **settings).images
        finally:
            self.pipeline.unet = own
            network.train(training)
        # As pictures they would be black, and nothing would tell.
        broken = [index for index, image in enumerate(found) if not np.isfinite(image).all()]
        if broken:
            first = f"the first is of {prompts[broken[0]]!r} under seed {seeds[broken[0]]}"
            problem = f"{len(broken)} of {len(found)} images hold values that are not finite, {first}"
            raise UserError(problem, "use float32 or bfloat16 for the network, and a usual guidance_scale")
        images: list[Image.Image] = self.pipeline.image_processor.numpy_to_pil(found)
        return images

    def load_lora(self, path: str) -> str:
        """Add the LoRA weights at ``path`` to the pipeline; say which. Raises UserError unless all of them fit."""
        return load_into(self.pipeline, path)

    def save_merged(self, folder: Path) -> None:
        """Write the whole pipeline, what ``load_lora`` added merged into its weights."""
        with quiet():
            self.pipeline.fuse_lora()
            self.pipeline.unload_lora_weights()
            with saving(folder) as beside:
                self.pipeline.save_pretrained(beside)

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write LoRA weights (``load_lora_weights``) or the whole pipeline (``from_pretrained``) to ``folder``."""
        own = self.pipeline.unet
        try:
            self.pipeline.unet = network
            with quiet(), saving(folder) as beside:
                if lora.is_adapted(network):
                    lora.save(self.pipeline, network, beside)
                else:
                    self.pipeline.save_pretrained(beside)
        finally:
            self.pipeline.unet = own


@contextmanager
def _own_precision(network: Any, device: torch.device) -> Iterator[None]:
    """Run a half-precision ``network`` under autocast, and nothing else: encoders and VAE stay in float32."""
    if network.dtype == torch.float32:
        yield
        return
    forward = network.forward
    network.forward = torch.autocast(device.type, network.dtype)(forward)
    try:
        yield
    finally:
        network.forward = forward


def modules_of(pipeline: Any) -> dict[str, nn.Module]:
    """The pipeline's networks by name."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def check_finite(module: nn.Module, name: str) -> None:
    """Raise UserError naming the first weight of ``module`` that holds NaN or infinity."""
    for key, value in module.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise UserError(
                f"{name}: weight {key!r} holds {count} values that are not finite", "the weights are damaged"
            )


def weights_hash(*modules: nn.Module, settings: str = "") -> str:
    """SHA-256 over configs, names, types and bytes of all weights, and ``settings``; 16 hexadecimal digits."""
    digest = hashlib.sha256(settings.encode())
    for module in modules:
        digest.update(_config_of(module).encode())
        for key, value in sorted(module.state_dict().items()):
            digest.update(f"{key}:{value.dtype}:{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _config_of(module: Any) -> str:
    """Everything besides the weights that decides what ``module`` computes: its config, and its adapters'."""
    config = module.config if isinstance(module.config, Mapping) else module.config.to_dict()
    told = {key: value for key, value in config.items() if key not in ("_name_or_path", "_diffusers_version", "dtype")}
    adapters = {name: adapter.to_dict() for name, adapter in (getattr(module, "peft_config", None) or {}).items()}
    return json.dumps(
        [told, adapters],
        sort_keys=True,
        default=lambda value: sorted(map(str, value)) if isinstance(value, set) else str(value),
    )


def ddpm_process(scheduler: Any, path: str = "the pipeline") -> DDPMProcess:
    """The forward process that the scheduler of the pipeline at ``path`` describes, in float64. Raises UserError."""
    where, kind = f"{path}/scheduler", type(scheduler).__name__
    abar = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(abar, Tensor) or not len(abar):
        problem = f"{where}: a {kind} has no alphas_cumprod"
        raise UserError(problem, "use a diffusion (DDPM-like) model; flow models are not supported")
    abar = abar.double()
    if not bool(((abar >= 0) & (abar <= 1)).all()) or bool((abar.diff() > 0).any()):
        betas = f"beta_start {scheduler.config.get('beta_start')}, beta_end {scheduler.config.get('beta_end')}"
        problem = f"{where}: alphas_cumprod do not fall from 1 to 0 ({betas})"
        raise UserError(problem, "copy scheduler_config.json again")
    prediction = scheduler.config.get("prediction_type")
    if prediction not in get_args(PredictionType):
        problem = f"{where}: prediction_type is {prediction!r}"
        raise UserError(problem, f"known: {', '.join(get_args(PredictionType))}; flow models are not supported")
    return DDPMProcess(abar, prediction)
