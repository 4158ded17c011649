"""Latent diffusion behind one interface; a family adds how it encodes text and how its network is called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from ..errors import UserError
from ..noise import DDPMProcess
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
        return weights_hash(*encoders, settings=self._tokenizer_settings())

    def model_hash(self) -> str:
        """Identity of the whole model: all weights (adapters included), tokenizers and scheduler."""
        scheduler = str(sorted((key, str(value)) for key, value in self.pipeline.scheduler.config.items()))
        return weights_hash(*modules_of(self.pipeline).values(), settings=scheduler + self._tokenizer_settings())

    def _tokenizers(self) -> list[Any]:
        return [part for name, part in self.pipeline.components.items() if name.startswith("tokenizer")]

    def _tokenizer_settings(self) -> str:
        return str([(t.model_max_length, sorted(t.get_vocab().items())) for t in self._tokenizers()])

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
        rounding. ``settings`` go to the pipeline's call: num_inference_steps, guidance_scale, height, width, ...
        """
        own, training = self.pipeline.unet, network.training
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        try:
            self.pipeline.unet = network.eval()
            with quiet(), _own_precision(network, self.pipeline.device):
                images = self.pipeline(prompt=list(prompts), generator=generators, output_type="pil", **settings).images
        finally:
            self.pipeline.unet = own
            network.train(training)
        return list(images)

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


def load_pipeline(
    pipeline_class: type[Any],
    path: str,
    *,
    revision: str | None,
    variant: str | None,
    **components: Any,
) -> Any:
    """Load a diffusers folder or hub id as ``pipeline_class``, every part in float32, in eval mode and frozen.

    Raises UserError for a path that is neither, another kind of pipeline, missing files, and weights that are not finite.
    """
    folder = Path(path)
    if folder.exists() and not (folder / "model_index.json").is_file():
        remedy = "give the folder that DiffusionPipeline.save_pretrained wrote, or a hub id"
        raise UserError(f"{path}: not a diffusers pipeline, it holds no model_index.json", remedy)
    if not folder.exists() and (path.count("/") != 1 or path.startswith((".", "/"))):
        raise UserError(f"{path}: no such folder", "check model.pretrained_model_name_or_path")
    try:
        config = DiffusionPipeline.load_config(path, revision=revision)
        _check_class(path, config, pipeline_class)
        with quiet():
            pipeline = pipeline_class.from_pretrained(
                path, revision=revision, variant=variant, dtype=torch.float32, **components
            )
    except OSError as error:
        raise UserError(
            f"{path}: could not be loaded: {error}", "check the path, revision, variant and network"
        ) from error
    for name, module in modules_of(pipeline).items():
        check_finite(module, f"{path}/{name}")
        module.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.enable_slicing()  # one image at a time: decoding is what runs out of memory first
    return pipeline


def place(pipeline: Any, device: torch.device | str, dtype: torch.dtype) -> Any:
    """Move ``pipeline`` to ``device`` and its network to ``dtype``; the encoders stay in float32. Raises UserError."""
    try:
        with quiet():
            pipeline.to(device).unet.to(dtype)
    except (AssertionError, RuntimeError) as error:  # torch's two ways to say that there is no such device
        raise UserError(
            f"device {device}: {str(error).splitlines()[0]}", "use another device, or free its memory"
        ) from error
    return pipeline


def _check_class(path: str, config: Mapping[str, Any], expected: type[Any]) -> None:
    found = config.get("_class_name")
    if found != expected.__name__:
        remedy = "model.family sd takes StableDiffusionPipeline, sdxl takes StableDiffusionXLPipeline"
        raise UserError(f"{path}/model_index.json: _class_name is {found!r}, expected {expected.__name__!r}", remedy)


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


def ddpm_process(scheduler: Any) -> DDPMProcess:
    """The forward process that the pipeline's scheduler describes, in float64. Raises UserError for another kind."""
    abar = getattr(scheduler, "alphas_cumprod", None)
    if abar is None:
        raise UserError(
            f"scheduler {type(scheduler).__name__} has no alphas_cumprod", "use a diffusion (DDPM-like) model"
        )
    return DDPMProcess(abar.double(), scheduler.config.prediction_type)
