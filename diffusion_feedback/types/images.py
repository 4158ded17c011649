"""Images in memory: views, handles, pairs, and the protocols of what encodes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from torch import Tensor

from .models import Conditioning


@dataclass(frozen=True, slots=True)
class ImageView:
    """How an image is cut for training: ``crop`` = (x, y) in [0, 1]^2 of the room left over, 0.5 is the centre."""

    crop: tuple[float, float] = (0.5, 0.5)
    flip: bool = False


class ImageHandle(Protocol):
    """An image that can be opened when it is needed; ``key`` is the content hash of its bytes."""

    @property
    def key(self) -> str: ...
    def open(self) -> Image.Image:
        """Decode to RGB. Raises UserError for bytes that are not an image."""
        ...


@dataclass(frozen=True, slots=True)
class ImageItem:
    """An image to be judged, under the ``name`` by which its set knows it, and the prompt it was made from."""

    name: str
    prompt: str
    handle: ImageHandle


@dataclass(frozen=True, slots=True)
class Scores:
    """What a scorer says of N images, each (N,) float32 on the CPU: ``score`` as published, ``raw`` before any scale."""

    score: Tensor
    raw: Tensor


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """Latents (N, C, h, w), scaled as the network expects them, and the size conditioning of each image, (N, 6) float32:
    original height and width, crop top and left, target height and width, px (SDXL's time ids, arXiv:2307.01952).
    """

    latents: Tensor
    sizes: Tensor


@dataclass(frozen=True, slots=True)
class PreferenceBatch:
    """B pairs. ``draw`` counts how often the data was gone through (the epoch), so that every pass has draws of its own.

    ``chosen_probability`` (B,) in [0.5, 1]; ``weight`` (B,) > 0. ``mismatched`` (B) are prompts of other pairs, where the
    images are learnt from one by one: by them KTO estimates its point of reference.
    """

    example_ids: Sequence[str]
    prompts: Sequence[str]
    chosen: Sequence[ImageHandle]
    rejected: Sequence[ImageHandle]
    chosen_probability: Tensor
    weight: Tensor
    draw: int = 0
    mismatched: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.example_ids)


class ImageEncoder(Protocol):
    """Turns image handles into latents, from a cache or by the VAE."""

    def encode(self, images: Sequence[ImageHandle], views: Sequence[ImageView]) -> EncodedImages: ...


class TextEncoder(Protocol):
    """Turns prompts into text embeddings, from a cache or by the text encoder."""

    def encode(self, prompts: Sequence[str]) -> Conditioning: ...
