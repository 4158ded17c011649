"""Forward processes: how noise is mixed into latents, and what the network predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample"]


def _like(coefficients: Tensor, latents: Tensor) -> Tensor:
    """Coefficients (B,) in the precision of ``latents`` (at least float32), shaped to broadcast over them."""
    dtype = torch.promote_types(latents.dtype, torch.float32)
    return coefficients.to(dtype).reshape(-1, *([1] * (latents.ndim - 1)))


@dataclass(frozen=True, slots=True)
class DDPMProcess:
    """Variance-preserving diffusion, x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (Eq. 4, arXiv:2006.11239).

    ``alphas_cumprod`` (T,) in [0, 1], from the scheduler that the model was trained with. ``prediction_type``:
    "epsilon" (the noise), "v_prediction" (sqrt(abar) noise - sqrt(1 - abar) x_0, Eq. 25 of arXiv:2202.00512), or
    "sample" (x_0).
    """

    alphas_cumprod: Tensor
    prediction_type: PredictionType = "epsilon"

    def __post_init__(self) -> None:
        if self.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction_type {self.prediction_type!r}; known: epsilon, v_prediction, sample")

    @property
    def num_timesteps(self) -> int:
        """Length of the scheduler's range."""
        return len(self.alphas_cumprod)

    def timesteps(self, uniform: Tensor) -> Tensor:
        """Map ``uniform`` (B,) in [0, 1) to integer timesteps (B,) int64 in [0, T)."""
        return (uniform.double() * self.num_timesteps).long().clamp_(max=self.num_timesteps - 1)

    def _coefficients(self, timesteps: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.alphas_cumprod.double().to(timesteps.device)[timesteps]
        return _like(abar.sqrt(), latents), _like((1 - abar).sqrt(), latents)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents x_t, shaped as ``latents``, in at least float32."""
        signal, sigma = self._coefficients(timesteps, latents)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should predict at ``timesteps``, shaped as ``latents``."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latents
        signal, sigma = self._coefficients(timesteps, latents)
        return signal * noise - sigma * latents


@dataclass(frozen=True, slots=True)
class RectifiedFlow:
    """Straight paths, x_t = (1 - s) x_0 + s noise with target noise - x_0 (arXiv:2209.03003, Eq. 13 of arXiv:2403.03206).

    Timesteps are s * ``num_timesteps`` with s in (0, 1). ``logit_mean`` and ``logit_std`` shape s as a logit-normal
    (arXiv:2403.03206, Eq. 19); ``logit_std`` = 0 leaves it uniform. ``shift`` moves s towards noise for large images,
    s' = shift s / (1 + (shift - 1) s) (Eq. 23).
    """

    num_timesteps: int = 1000
    shift: float = 1.0
    logit_mean: float = 0.0
    logit_std: float = 0.0

    @property
    def prediction_type(self) -> str:
        """The velocity, as diffusers' schedulers call it."""
        return "flow_prediction"

    def timesteps(self, uniform: Tensor) -> Tensor:
        """Map ``uniform`` (B,) in [0, 1) to timesteps (B,) float32 in [0, T]."""
        s = uniform.double()
        if self.logit_std > 0:
            normal = torch.special.ndtri(s.clamp(1e-9, 1 - 1e-9))
            s = torch.sigmoid(self.logit_mean + self.logit_std * normal)
        s = self.shift * s / (1 + (self.shift - 1) * s)
        return (s * self.num_timesteps).float()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents x_t, shaped as ``latents``, in at least float32."""
        s = _like(timesteps.double() / self.num_timesteps, latents)
        return (1 - s) * latents + s * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity noise - x_0; it does not depend on ``timesteps``."""
        return noise - latents
