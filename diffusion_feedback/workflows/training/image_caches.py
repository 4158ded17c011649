"""What a diffusion model's run encodes once: latents and text embeddings, on the disk where the recipe says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...config.recipe import Recipe
from ...data.cache import CachedImageEncoder, CachedTextEncoder, TensorCache
from ...data.images import EncodedImage
from ...errors import within_memory
from ...folders import expand
from ...records import PairRecord
from ...types.images import ImageView, PreferenceBatch
from ...types.models import Denoiser
from .image_pairs import ImagePairs


@dataclass(frozen=True, slots=True)
class Encoders:
    """The caches of one run; the same for training and held-out pairs."""

    images: CachedImageEncoder
    texts: CachedTextEncoder

    def close(self) -> None:
        """Write what is not yet on disk."""
        for cache in (self.images.cache, self.texts.cache):
            if cache is not None:
                cache.close()


_PIXELS = 8 * 512 * 512


def encoded_at_once(resolution: int) -> int:
    """How many images of ``resolution`` px a side go through the image encoder together, at most 8: it is in float32."""
    return max(1, min(8, _PIXELS // resolution**2))


def build_encoders(recipe: Recipe, denoiser: Denoiser) -> Encoders:
    """Latents and text embeddings, from the disk where ``data.cache`` says so."""
    data = recipe.data
    resolution = data.resolution or denoiser.resolution
    if not data.cache:
        return Encoders(
            CachedImageEncoder(denoiser.encode_images, resolution, None, encoded_at_once(resolution)),
            CachedTextEncoder(denoiser.encode_prompts, None),
        )
    root, dtype = expand(data.cache_dir), getattr(torch, data.cache_dtype)
    images = TensorCache(
        root / "latents",
        {"encoder": denoiser.image_encoder_id(), "resolution": resolution, "dtype": data.cache_dtype},
        parts=("latents", "sizes"),
    )
    texts = TensorCache(root / "text", {"encoder": denoiser.text_encoder_id(), "dtype": data.cache_dtype})
    return Encoders(
        CachedImageEncoder(denoiser.encode_images, resolution, images, encoded_at_once(resolution), dtype),
        CachedTextEncoder(denoiser.encode_prompts, texts, dtype=dtype),
    )


def views_of(recipe: Recipe) -> list[ImageView]:
    """The ways in which an image may be seen in training, where crops are not random."""
    return [ImageView(flip=flip) for flip in ([False, True] if recipe.data.random_flip else [False])]


def cache_streamed(recipe: Recipe, encoders: Encoders) -> Callable[[PairRecord], None] | None:
    """Encodes each pair of a stream as it passes by, since it cannot be read again; None where nothing is streamed."""
    if not recipe.data.streaming:
        return None
    views = views_of(recipe)

    def encode(record: PairRecord) -> None:
        images = [EncodedImage(image, record.source) for image in (record.image_0, record.image_1)]
        for view in views:
            encoders.images.encode(images, [view, view])

    return encode


def fill_caches(encoders: Encoders, pairs: ImagePairs) -> None:
    """Encode what the run will need; each process takes its share."""
    recipe = pairs.setup.recipe
    if not recipe.data.cache:
        return

    def encode(batch: PreferenceBatch) -> None:
        for view in views_of(recipe):
            encoders.images.encode([*batch.chosen, *batch.rejected], [view] * (2 * len(batch)))

    with within_memory("encoding images and prompts", "lower data.resolution, or use another device"):
        if not recipe.data.streaming:
            pairs.encode_ahead(encode)
            assert encoders.images.cache is not None
            encoders.images.cache.flush()
        encoders.texts.fill(["", *(pairs.train.pairs[i].prompt for i in pairs.share())])
    pairs.setup.accelerator.wait_for_everyone()


def cache_bytes(encoders: Encoders, pairs: ImagePairs) -> dict[str, int]:
    """Bytes of the latents and text embeddings of a run on disk, by the size of one of each; those that are there count too."""
    if encoders.images.cache is None or encoders.texts.cache is None:
        return {}
    first = pairs.train.batch([0], 0)
    view, *others = views_of(pairs.setup.recipe)
    latent = encoders.images.encode(first.chosen, [view]).latents
    tokens = sum(leaf.numel() for leaf in tree_leaves(encoders.texts.encode(first.prompts)) if isinstance(leaf, Tensor))
    images = {
        key for index in (pairs.train, pairs.heldout) if index is not None for pair in index.pairs for key in pair.keys
    }
    prompts = {pair.prompt for index in (pairs.train, pairs.heldout) if index is not None for pair in index.pairs}
    size = encoders.images.dtype.itemsize
    return {
        f"{len(images):,} images": latent.numel() * size * len(images) * (1 + len(others)),
        f"{len(prompts):,} prompts": tokens * encoders.texts.dtype.itemsize * (len(prompts) + 1),
    }
