"""From a recipe to a training run of a diffusion model: model, reference, caches, likelihood, step, trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL.Image import Image
from torch import nn

from ...catalog import needs_reference, objective_row, resolve
from ...config import Recipe
from ...data.cache import CachedImageEncoder, CachedTextEncoder, TensorCache
from ...data.images import EncodedImage
from ...data.index import PairIndex
from ...errors import within_memory
from ...likelihoods.denoising import DenoisingLikelihood
from ...models import lora
from ...models.reference import AdaptersOff, FrozenCopy
from ...records import PairRecord
from ...training.heldout import implicit_accuracy
from ...training.loop import Trainer
from ...training.order import PairOrder
from ...training.preference import PreferenceStep
from ...training.run_folder import RunFolder
from ...training.steps import PointwiseStep, StepParts
from ...types import BatchSource, Denoiser, ImageView, PreferenceBatch, Reference
from .card import write_run_card
from .image_pairs import check_apart, load_pairs
from .memory import PeakMemory, weight_bytes
from .prediction_check import doubt_prediction
from .session import (
    build_optimizer,
    build_order,
    encode_ahead,
    labels_hash,
    mismatched_source,
    names_of,
    needed_pairs,
    note_truncated,
    pair_source,
)


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


def load_model(recipe: Recipe, device: torch.device) -> tuple[Denoiser, Reference, str]:
    """The denoiser with its trainable network, the reference, and the hash of the model that training starts from."""
    model = recipe.model
    denoiser: Denoiser = resolve("family", model.family)(
        model.pretrained_model_name_or_path,
        revision=model.revision,
        variant=model.variant,
        dtype=getattr(torch, model.dtype),
        device=device,
    )
    network, base_hash = denoiser.network, denoiser.model_hash()
    reference: Reference
    if model.tuning == "lora":
        alpha = model.lora_alpha if model.lora_alpha is not None else float(model.lora_rank)
        seed = recipe.training.seed
        lora.add(network, rank=model.lora_rank, alpha=alpha, targets=model.lora_targets, seed=seed)
        reference = AdaptersOff()
    else:
        reference = FrozenCopy(network)
        network.requires_grad_(True)
    if model.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    return denoiser, reference, base_hash


def build_encoders(recipe: Recipe, denoiser: Denoiser) -> Encoders:
    """Latents and text embeddings, from the disk where ``data.cache`` says so."""
    data = recipe.data
    resolution = data.resolution or denoiser.resolution
    if not data.cache:
        return Encoders(
            CachedImageEncoder(denoiser.encode_images, resolution, None),
            CachedTextEncoder(denoiser.encode_prompts, None),
        )
    root, dtype = Path(data.cache_dir).expanduser(), getattr(torch, data.cache_dtype)
    images = TensorCache(
        root / "latents",
        {"encoder": denoiser.image_encoder_id(), "resolution": resolution, "dtype": data.cache_dtype},
        parts=("latents", "sizes"),
    )
    texts = TensorCache(root / "text", {"encoder": denoiser.text_encoder_id(), "dtype": data.cache_dtype})
    return Encoders(
        CachedImageEncoder(denoiser.encode_images, resolution, images, dtype=dtype),
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


def fill_caches(
    recipe: Recipe, encoders: Encoders, train: PairIndex, order: PairOrder, accelerator: Accelerator
) -> None:
    """Encode what the run will need; each process takes its share."""
    if not recipe.data.cache:
        return
    share = needed_pairs(recipe, train, order, accelerator)

    def encode(batch: PreferenceBatch) -> None:
        for view in views_of(recipe):
            encoders.images.encode([*batch.chosen, *batch.rejected], [view] * (2 * len(batch)))

    with within_memory("encoding images and prompts", "lower data.resolution, or use another device"):
        if not recipe.data.streaming:
            encode_ahead(train, share, encode, accelerator)
            assert encoders.images.cache is not None
            encoders.images.cache.flush()
        encoders.texts.fill(["", *(train.pairs[i].prompt for i in share)])
    accelerator.wait_for_everyone()


def build_step(
    recipe: Recipe,
    denoiser: Denoiser,
    reference: Reference,
    encoders: Encoders,
    accelerator: Accelerator,
    *,
    heldout: bool = False,
) -> Any:
    """The step of the recipe's objective; for held-out pairs without dropout and flips, under the validation seed."""
    objective = objective_row(recipe.objective["name"])
    likelihood = DenoisingLikelihood(
        denoiser,
        encoders.images,
        encoders.texts,
        seed=recipe.validation.seed if heldout else recipe.training.seed,
        caption_dropout=0.0 if heldout else recipe.data.caption_dropout,
        random_flip=recipe.data.random_flip and not heldout,
        random_crop=recipe.data.random_crop and not heldout,
        timestep_range=(0.0, 1.0) if heldout else recipe.training.timestep_range,
        device=accelerator.device,
    )
    parts = StepParts(
        likelihood,
        # Held-out pairs are judged against the model that training started from, whatever the objective.
        reference if heldout or needs_reference(recipe.objective) else None,
        objective,
        {key: value for key, value in recipe.objective.items() if key != "name"},
        soft_labels=recipe.data.soft_labels,
        weighted=recipe.data.prompt_weights,
        autocast=accelerator.autocast,
        unwrap=accelerator.unwrap_model,
    )
    if heldout:
        return PreferenceStep(parts)
    return PointwiseStep(parts) if objective.learns_from == "chosen" else PreferenceStep.of(parts)


class DenoisingSession:
    """One training run of a diffusion model, ready to go: ``fit`` trains, ``finish`` writes the result."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.denoiser, self.reference, self.base_hash = load_model(recipe, accelerator.device)
        self.encoders = build_encoders(recipe, self.denoiser)
        self.step = build_step(recipe, self.denoiser, self.reference, self.encoders, accelerator)
        self.step.check()
        self.optimizer = build_optimizer(recipe, self.parameters())
        on_pair = cache_streamed(recipe, self.encoders)
        resolution = recipe.data.resolution or self.denoiser.resolution
        train = load_pairs(recipe, accelerator, resolution=resolution, on_pair=on_pair)
        assert train is not None
        self.train = train
        self.heldout = load_pairs(recipe, accelerator, resolution=resolution, heldout=True, on_pair=on_pair)
        check_apart(self.train, self.heldout)
        self.order = build_order(recipe, train, accelerator)
        note_truncated(self.denoiser.count_truncated(sorted({pair.prompt for pair in train.pairs})), accelerator)

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self.denoiser.network

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for _, parameter in lora.trainable(self.network)]

    def frozen_bytes(self) -> dict[str, int]:
        """Bytes of the reference copy, and of the encoders."""
        network = weight_bytes(self.network.parameters())
        return {
            "reference copy": network if self.recipe.model.tuning == "full" else 0,
            "image and text encoders": weight_bytes(
                p for part in self.denoiser.frozen_modules() for p in part.parameters()
            ),
        }

    def notes(self) -> list[str]:
        """What the network is taken to predict, and the logit slope, which is what makes runs comparable."""
        predicts = [f"prediction type  {self.denoiser.process.prediction_type} (scheduler/scheduler_config.json)"]
        if "beta" not in self.recipe.objective:
            return predicts
        beta = self.recipe.objective["beta"]
        return [*predicts, f"logit slope      {beta / 2:g} per unit of mean squared error (beta {beta:g} / 2)"]

    def validation_prompts(self) -> list[str]:
        """Prompts of the sample grid."""
        if self.recipe.validation.prompts or self.heldout is None:
            return self.recipe.validation.prompts
        return sorted({pair.prompt for pair in self.heldout.pairs})[: self.recipe.validation.num_prompts]

    def source(self) -> BatchSource:
        """The passes of each optimizer step."""
        is_unpaired = objective_row(self.recipe.objective["name"]).learns_from == "labels"
        build = mismatched_source if is_unpaired else pair_source
        return build(self.recipe, self.order, self.train, self.accelerator)

    def fit(self, folder: RunFolder) -> Trainer:
        """Fill the caches and train to the end, in ``folder``."""
        recipe, accelerator = self.recipe, self.accelerator
        fill_caches(recipe, self.encoders, self.train, self.order, accelerator)
        if not folder.checkpoints():
            self._check_prediction()
        trainer = Trainer(
            accelerator,
            recipe.training,
            folder,
            self.network,
            self.step,
            self.source(),
            self.optimizer,
            look=lambda step, network: self.look(step, network, folder),
            look_every=recipe.validation.steps,
            identity={"base": self.base_hash, "pairs": labels_hash(self.train)},
            name_of=names_of(self.train),
        )
        trainer.fit()
        self.encoders.close()
        return trainer

    def _check_prediction(self) -> None:
        """Say before the first update where the model does not predict what its scheduler says."""
        with self.accelerator.autocast():
            batch = next(self.source().micro_batches(0))
            said = doubt_prediction(self.step.parts.likelihood, self.network, batch)
        if said and self.accelerator.is_main_process:
            print(said)

    def look(self, step: int, network: nn.Module, folder: RunFolder) -> Mapping[str, float]:
        """Held-out accuracy and a grid of samples on fixed seeds."""
        figures: dict[str, float] = {}
        if self.heldout is not None:
            held_step = build_step(
                self.recipe, self.denoiser, self.reference, self.encoders, self.accelerator, heldout=True
            )
            size = max(1, self.recipe.training.train_batch_size)
            figures = implicit_accuracy(
                held_step, network, self.heldout.batch, num_pairs=len(self.heldout), batch_size=size
            )
        self._draw_samples(step, network, folder)
        return figures

    def _draw_samples(self, step: int, network: nn.Module, folder: RunFolder) -> None:
        from ...records import atomic_write
        from ...reports.figures import image_grid

        prompts = self.validation_prompts()
        if not prompts:
            return
        steps = self.recipe.validation.num_inference_steps
        with self.reference(network) as frozen:
            before = self._sample(frozen, prompts, steps)
        after = self._sample(network, prompts, steps)
        rows = [list(pair) for pair in zip(before, after, strict=True)]
        grid = image_grid(rows, prompts, ["before", f"step {step}"], cell=128, blocks=2)
        with atomic_write(folder.path / "samples" / f"step-{step:06d}.png") as file:
            grid.save(file, format="PNG")

    def _sample(self, network: nn.Module, prompts: Sequence[str], num_inference_steps: int) -> list[Image]:
        """One image a prompt, at the resolution of training, as many at once as pairs in a training pass."""
        validation, side = self.recipe.validation, self.encoders.images.resolution
        found: list[Image] = []
        for start in range(0, len(prompts), self.recipe.training.train_batch_size):
            part = prompts[start : start + self.recipe.training.train_batch_size]
            found += self.denoiser.sample(
                network,
                part,
                [validation.seed + start + number for number in range(len(part))],
                num_inference_steps=num_inference_steps,
                guidance_scale=validation.guidance_scale,
                height=side,
                width=side,
            )
        return found

    def sampling_bytes(self) -> int:
        """Bytes that one batch of validation samples takes at its peak, measured; 0 where none are drawn."""
        prompts = self.validation_prompts()[: self.recipe.training.train_batch_size]
        if not prompts:
            return 0
        with torch.no_grad(), PeakMemory() as peak:
            self._sample(self.network, prompts, 2)
        return int(peak.bytes)

    def finish(self, trainer: Trainer) -> None:
        """Write the weights in diffusers' form and the model card, which marks the run as complete."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with trainer.result() as network:
                self.denoiser.save(network, trainer.folder.path)
            write_run_card("diffusion", trainer, self.recipe)
        self.accelerator.wait_for_everyone()
