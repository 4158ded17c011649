"""Pictures as a scorer's image tower takes them, cut once and kept on disk: full-size images are decoded once a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..types.images import ImageHandle
from .cache import TensorCache


@dataclass(frozen=True, slots=True)
class CachedViews:
    """Gives the pictures of image handles: from ``cache``, or by ``cut`` (RGB image to (3, S, S) uint8).

    Raises UserError for an image that cannot be decoded.
    """

    cut: Callable[[Image.Image], Tensor]
    cache: TensorCache | None

    def __call__(self, images: Sequence[ImageHandle]) -> Tensor:
        """Pictures (N, 3, S, S) uint8, on the CPU."""
        views: dict[str, Tensor] = {}
        if self.cache is not None:
            self.cache.missing(image.key for image in images)  # looks for what other processes have added
        for image in images:
            if image.key not in views:
                views[image.key] = self._view(image)
        return torch.stack([views[image.key] for image in images])

    def _view(self, image: ImageHandle) -> Tensor:
        entry = self.cache.get(image.key) if self.cache is not None else None
        if entry is not None:
            return entry["pixels"]
        pixels = self.cut(image.open())
        if self.cache is not None:
            self.cache.put(image.key, {"pixels": pixels})
        return pixels
