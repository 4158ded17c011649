"""Denoising error as log-likelihood: logp := -1/2 * mean over C, H, W of the squared error (Eq. 14, arXiv:2311.12908).

With this convention Diffusion-DPO is text DPO: ``beta`` 5000 is the original code's ``beta_dpo`` 5000, a logit slope of
2500 per unit of mean squared error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..types.images import ImageEncoder, ImageView, PreferenceBatch, TextEncoder
from ..types.models import Conditioning, Denoiser, ForwardProcess
from .draws import draw_noise, draw_pair


@dataclass(frozen=True, slots=True)
class DenoisingInputs:
    """Everything the networks see, chosen first: ``noisy`` and ``target`` (2B, C, h, w) float32, ``timesteps`` (2B,)."""

    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    conditioning: Conditioning


@dataclass(frozen=True, slots=True)
class DenoisingLikelihood:
    """Likelihood of images under a denoiser at one shared timestep and noise per pair.

    ``caption_dropout`` in [0, 1]: how often a pair's caption is replaced by the empty one (both sides alike).
    ``random_flip``, ``random_crop``: shared by the two images of a pair. ``timestep_range`` within [0, 1]: part of the
    scheduler's range to draw from.
    """

    denoiser: Denoiser
    images: ImageEncoder
    texts: TextEncoder
    seed: int
    caption_dropout: float = 0.0
    random_flip: bool = False
    random_crop: bool = False
    timestep_range: tuple[float, float] = (0.0, 1.0)
    device: torch.device | str = "cpu"

    def prepare(self, batch: PreferenceBatch) -> DenoisingInputs:
        """Encode ``batch`` and make every draw once; policy and reference then see the same inputs."""
        return self._prepared(batch, self.denoiser.process)

    def _prepared(self, batch: PreferenceBatch, process: ForwardProcess) -> DenoisingInputs:
        draws = [draw_pair(self.seed, batch.draw, example_id) for example_id in batch.example_ids]
        views = [
            ImageView(
                crop=(d.crop_x, d.crop_y) if self.random_crop else (0.5, 0.5),
                flip=self.random_flip and d.flip < 0.5,
            )
            for d in draws
        ]
        encoded = self.images.encode([*batch.chosen, *batch.rejected], [*views, *views])
        latents = encoded.latents.float()
        low, high = self.timestep_range
        uniform = torch.tensor([low + (high - low) * d.timestep for d in draws], dtype=torch.float64)
        timesteps = process.timesteps(uniform).repeat(2)
        noise = draw_noise(draws, latents.shape[1:]).repeat(2, *([1] * (latents.ndim - 1)))
        noisy = process.add_noise(latents, noise, timesteps)
        target = process.target(latents, noise, timesteps)
        kept = [
            "" if d.dropout < self.caption_dropout else prompt for prompt, d in zip(batch.prompts, draws, strict=True)
        ]
        text = {name: torch.cat([value, value]) for name, value in self.texts.encode(kept).items()}
        conditioning = self.denoiser.conditioning(text, encoded.sizes)
        return DenoisingInputs(
            noisy.to(self.device),
            target.to(self.device),
            timesteps.to(self.device),
            {name: value.to(self.device) for name, value in conditioning.items()},
        )

    def chosen(self, inputs: DenoisingInputs) -> DenoisingInputs:
        """The chosen half of ``inputs``."""
        half = len(inputs.timesteps) // 2
        conditioning = {name: value[:half] for name, value in inputs.conditioning.items()}
        return DenoisingInputs(inputs.noisy[:half], inputs.target[:half], inputs.timesteps[:half], conditioning)

    def logps(self, network: nn.Module, inputs: DenoisingInputs) -> Tensor:
        """Log-probabilities (2B,) float32, chosen first. The prediction is cast up before the target is subtracted."""
        prediction = self.denoiser.predict(network, inputs.noisy, inputs.timesteps, inputs.conditioning)
        error = prediction.float() - inputs.target.float()
        return -0.5 * error.square().flatten(1).mean(1)

    @torch.no_grad()
    def errors_by_prediction(
        self, network: nn.Module, batch: PreferenceBatch, processes: Mapping[str, ForwardProcess]
    ) -> dict[str, float]:
        """The mean squared error of ``network`` on ``batch`` if its output were what each of ``processes`` asks for.

        A model that was trained for one of them is far better at that than at the others.
        """
        inputs = {name: self._prepared(batch, process) for name, process in processes.items()}
        first = next(iter(inputs.values()))
        output = self.denoiser.predict(network, first.noisy, first.timesteps, first.conditioning).float()
        return {name: float((output - each.target.float()).square().mean()) for name, each in inputs.items()}

    def lengths(self, inputs: DenoisingInputs) -> None:
        """An image has no length: its log-probability is a mean already."""
        return
