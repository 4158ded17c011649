"""Latent diffusion behind one interface; a family adds how it encodes text and how its network is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from PIL import Image
from torch import Tensor, nn

from ..catalog.sources import foreign_hash
from ..errors import UserError
from ..quiet import quiet
from ..types.models import AdapterSettings, Conditioning, ForwardProcess, Tokenizer
from ..weights import modules_hash, move
from . import lora
from .exports.original_names import PartNames
from .lora_loading import load_into
from .lora_starting import pipeline_factors, start_at
from .pipelines import ddpm_process, load_pipeline, modules_of, reuse_pipeline
from .saving import saving


@dataclass(frozen=True, slots=True)
class DiffusionFamily:
    """What pipelines of one class have in common, and how a denoiser is made over one.

    Args:
        pipeline_class: The class of diffusers.
        encode_text: (pipeline, prompts) to the text part of the conditioning.
        join: (text, sizes (N, 6)) to the conditioning: adds the sizes of the original images where the family wants them.
        call: (network, noisy, timesteps, conditioning) to the network's prediction, shaped as ``noisy``.
        network_name: What the pipeline calls the network that is trained.
        components: Parts and settings that pipelines are made with, in the place of their own.
        process: (scheduler, path) to the forward process that the network was trained with.
        layout: What other tools call the parts and their layers; without it some forms of results are not written.
    """

    pipeline_class: type[DiffusionPipeline]
    encode_text: Callable[[Any, list[str]], Conditioning]
    join: Callable[[Conditioning, Tensor], Conditioning]
    call: Callable[[nn.Module, Tensor, Tensor, Conditioning], Tensor]
    network_name: str = "unet"
    components: Mapping[str, object] = field(default_factory=dict)
    process: Callable[[Any, str], ForwardProcess] = ddpm_process
    layout: Mapping[str, PartNames] = field(default_factory=dict)

    def load(
        self,
        path: str,
        *,
        revision: str | None = None,
        variant: str | None = None,
        config: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> LatentDiffusion:
        """Load a folder, hub id or single file; the network in ``dtype``, the encoders in float32.

        Raises UserError as ``load_pipeline``.
        """
        pipeline = load_pipeline(
            self.pipeline_class, path, revision=revision, variant=variant, config=config, **self.components
        )
        return self._over(pipeline, path, dtype, device)

    def from_pipeline(
        self, pipeline: DiffusionPipeline, *, dtype: torch.dtype, device: torch.device | str
    ) -> LatentDiffusion:
        """The denoiser of a ``pipeline`` that is loaded already, whose weights it shares; as ``load`` else."""
        own = {weight: weight.data for weight in getattr(pipeline, self.network_name).parameters()}
        reused = reuse_pipeline(pipeline, **self.components)
        # diffusers casts all parts there and back: weights that have ``dtype`` as they come would be in memory twice.
        for weight, data in own.items():
            weight.data = data if data.dtype == dtype else weight.data
        return self._over(reused, "the pipeline", dtype, device)

    def _over(
        self, pipeline: DiffusionPipeline, path: str, dtype: torch.dtype, device: torch.device | str
    ) -> LatentDiffusion:
        denoiser = LatentDiffusion(pipeline, self.process(pipeline.scheduler, path), self)
        with quiet():
            move(pipeline, device)
            denoiser.network.to(dtype)
        return denoiser


@dataclass(frozen=True, slots=True)
class LatentDiffusion:
    """Denoiser over a diffusers ``pipeline`` of a ``family``; implements ``types.Denoiser``."""

    pipeline: Any
    process: ForwardProcess
    family: DiffusionFamily

    @property
    def network_name(self) -> str:
        """What the pipeline calls the trainable network."""
        return self.family.network_name

    @property
    def network(self) -> nn.Module:
        """The trainable network as loaded."""
        network: nn.Module = getattr(self.pipeline, self.network_name)
        return network

    @property
    def resolution(self) -> int:
        """The model's own image side, px."""
        config = getattr(self.pipeline, self.network_name).config
        return int((config.get("sample_size") or self.pipeline.default_sample_size) * self.pipeline.vae_scale_factor)

    def frozen_modules(self) -> list[nn.Module]:
        """The pipeline's networks besides the trainable one."""
        return [module for module in modules_of(self.pipeline).values() if module is not self.network]

    @property
    def library_model(self) -> DiffusionPipeline:
        """The object of its library that all this is made of."""
        return self.pipeline

    def trained_parts(self) -> list[nn.Module]:
        """What full tuning trains."""
        return [self.network]

    def add_adapters(self, settings: AdapterSettings) -> list[str]:
        """Adapters over the frozen network; diffusers' networks have no modules that are saved beside them."""
        if settings.start is None:
            lora.add(self.network, settings)
            return []
        factors = pipeline_factors(self.pipeline, settings.start, self.network_name)
        lora.add(self.network, settings)
        return [start_at(self.network, factors, settings.start)]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass."""
        getattr(self.pipeline, self.network_name).enable_gradient_checkpointing()

    def image_encoder_id(self) -> str:
        """Identity of the VAE and its scaling, for cache keys."""
        vae = self.pipeline.vae
        return modules_hash(vae, settings=f"{vae.config.scaling_factor} {vae.config.get('shift_factor')}")

    def text_encoder_id(self) -> str:
        """Identity of tokenizers and text encoders, for cache keys."""
        encoders = [part for name, part in modules_of(self.pipeline).items() if name.startswith("text_encoder")]
        return modules_hash(*encoders, settings=self._text_settings())

    def model_hash(self) -> str:
        """Identity of the whole model: all weights (adapters included), tokenizers and scheduler."""
        scheduler = str(sorted((key, str(value)) for key, value in self.pipeline.scheduler.config.items()))
        return modules_hash(*modules_of(self.pipeline).values(), settings=scheduler + self._text_settings())

    def _tokenizers(self) -> list[Tokenizer]:
        return [part for name, part in self.pipeline.components.items() if name.startswith("tokenizer") and part]

    def _text_settings(self) -> str:
        vocabularies = str([(t.model_max_length, sorted(t.get_vocab().items())) for t in self._tokenizers()])
        zeros = self.pipeline.config.get("force_zeros_for_empty_prompt")
        code = foreign_hash(self.family.encode_text, self.family.join, self.family.call)
        return vocabularies + ("the empty prompt is zeros" if zeros else "") + code

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
            text = self.family.encode_text(self.pipeline, list(prompts))
        return {name: value.float().cpu() for name, value in text.items()}

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many ``prompts`` exceed a tokenizer's limit and will be cut."""
        if not prompts:
            return 0
        tokenizer = self._tokenizers()[0]
        lengths = [len(ids) for ids in tokenizer(list(prompts), truncation=False, verbose=False).input_ids]
        return sum(length > tokenizer.model_max_length for length in lengths)

    def conditioning(self, text: Conditioning, sizes: Tensor) -> Conditioning:
        """Join text conditioning (N, ...) and size conditioning (N, 6)."""
        return self.family.join(text, sizes)

    def predict(self, network: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's prediction at ``timesteps`` (N,), shaped as ``noisy``."""
        return self.family.call(network, noisy, timesteps, conditioning)

    @torch.no_grad()
    def sample(
        self, network: nn.Module, prompts: Sequence[str], seeds: Sequence[int], **settings: object
    ) -> list[Image.Image]:
        """One image per (prompt, seed) by the pipeline itself, with ``network`` in the place of its own.

        Each image starts from its own CPU generator, so it does not depend on its neighbours in the batch, up to
        rounding. ``settings`` go to the pipeline's call: num_inference_steps, guidance_scale, height, width, ... Raises
        UserError for images that are not finite, and for settings that the pipeline refuses.
        """
        training = network.training
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        try:
            with quiet(), self._calling(network.eval()), _own_precision(network, self.pipeline.device):
                arrays = self.pipeline(prompt=list(prompts), generator=generators, output_type="np", **settings).images
        finally:
            network.train(training)
        # As pictures they would be black, and nothing would tell.
        broken = [index for index, image in enumerate(arrays) if not np.isfinite(image).all()]
        if broken:
            first = f"the first is of {prompts[broken[0]]!r} under seed {seeds[broken[0]]}"
            problem = f"{len(broken)} of {len(arrays)} images hold values that are not finite, {first}"
            raise UserError(problem, "use float32 or bfloat16 for the network, and a usual guidance_scale")
        images: list[Image.Image] = self.pipeline.image_processor.numpy_to_pil(arrays)
        return images

    def load_lora(self, path: str, scale: float = 1.0) -> str:
        """Add the LoRA weights at ``path``, times ``scale``, to the pipeline; say which.

        Raises UserError unless all of them fit.
        """
        return load_into(self.pipeline, path, self.network_name, scale)

    def save_merged(self, folder: Path) -> None:
        """Write the whole pipeline, what ``load_lora`` added merged into its weights."""
        with quiet():
            self.pipeline.fuse_lora()
            self.pipeline.unload_lora_weights()
            with saving(folder) as beside:
                self.pipeline.save_pretrained(beside)

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write LoRA weights (``load_lora_weights``) or the whole pipeline (``from_pretrained``) to ``folder``."""
        with quiet(), self._calling(network), saving(folder) as beside:
            if lora.is_adapted(network):
                lora.save_lora(self.pipeline, network, beside, name=self.network_name)
            else:
                self.pipeline.save_pretrained(beside)

    def written_files(self) -> tuple[str, ...]:
        """Patterns of what ``save`` may write: LoRA weights, or the pipeline's index and a folder for each part."""
        return (LORA_WEIGHT_NAME_SAFE, "model_index.json", *self.pipeline.components)

    @contextmanager
    def _calling(self, network: nn.Module) -> Iterator[None]:
        """The pipeline has ``network`` in the place of its own for the length of the ``with`` block."""
        own = self.network
        setattr(self.pipeline, self.network_name, network)
        try:
            yield
        finally:
            setattr(self.pipeline, self.network_name, own)


@contextmanager
def _own_precision(network: ModelMixin, device: torch.device) -> Iterator[None]:
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
