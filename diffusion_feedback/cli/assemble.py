"""From a recipe to the parts of a training run: model, pairs, caches, likelihood, step, trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn
from tqdm import tqdm

from ..catalog import resolve
from ..config import Recipe, to_dict
from ..data.cache import CachedImageEncoder, CachedTextEncoder, TensorCache
from ..data.images import EncodedImage
from ..data.index import PairIndex
from ..data.readers import open_pairs
from ..errors import UserError
from ..likelihoods.denoising import DenoisingLikelihood
from ..models import lora
from ..models.reference import AdaptersOff, FrozenCopy
from ..records import PairRecord, content_hash
from ..training.heldout import implicit_accuracy
from ..training.loop import Trainer
from ..training.order import PairOrder
from ..training.run_folder import RunFolder
from ..training.steps import PairwiseStep, StepParts
from ..types import ImageView, Reference


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


def load_model(recipe: Recipe, device: torch.device) -> tuple[Any, Reference, str]:
    """The denoiser with its trainable network, the reference, and the hash of the model that training starts from."""
    model = recipe.model
    denoiser = resolve("family", model.family)(
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
        network.enable_gradient_checkpointing()
    return denoiser, reference, base_hash


def build_encoders(recipe: Recipe, denoiser: Any) -> Encoders:
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
    )
    texts = TensorCache(root / "text", {"encoder": denoiser.text_encoder_id(), "dtype": data.cache_dtype})
    return Encoders(
        CachedImageEncoder(denoiser.encode_images, resolution, images, dtype=dtype),
        CachedTextEncoder(denoiser.encode_prompts, texts, dtype=dtype),
    )


def load_pairs(
    recipe: Recipe, encoders: Encoders, accelerator: Accelerator, *, heldout: bool = False
) -> PairIndex | None:
    """The index of the training or the held-out pairs; None where a recipe names no held-out pairs."""
    data = recipe.data
    path = data.validation if heldout else data.train
    if path is None:
        return None
    reader = open_pairs(
        path,
        split=data.validation_split if heldout else data.split,
        revision=data.revision,
        streaming=data.streaming,
        on_bad_row=data.on_bad_row,
        ties="drop" if heldout else data.ties,
    )
    views = views_of(recipe)

    def encode(record: PairRecord) -> None:
        images = [EncodedImage(image, record.source) for image in (record.image_0, record.image_1)]
        for view in views:
            encoders.images.encode(images, [view, view])

    index = PairIndex.build(reader, on_pair=encode if data.streaming else None)
    if reader.skipped:
        accelerator.print(f"{len(reader.skipped)} bad rows skipped in {path}; the first of them:")
        for _, reason in reader.skipped[:20]:
            accelerator.print(f"  {reason}")
    limit = data.max_validation_pairs if heldout else data.max_train_pairs
    return index.head(limit) if limit else index


def views_of(recipe: Recipe) -> list[ImageView]:
    """The ways in which an image may be seen in training, where crops are not random."""
    return [ImageView(flip=flip) for flip in ([False, True] if recipe.data.random_flip else [False])]


def fill_caches(
    recipe: Recipe, encoders: Encoders, train: PairIndex, order: PairOrder, accelerator: Accelerator
) -> None:
    """Encode what the run will need; each process takes its share."""
    if not recipe.data.cache:
        return
    last_epoch = order.epoch(recipe.training.max_train_steps - 1)
    steps = range(recipe.training.max_train_steps)
    needed = sorted({i for step in steps for i in order.indices(step)}) if last_epoch == 0 else list(range(len(train)))
    share = needed[accelerator.process_index :: accelerator.num_processes]
    if not recipe.data.streaming:
        # In the order of the files, and a part at a time: a batch holds its images as long as it lives.
        share.sort(key=lambda index: train.pairs[index].location or ())
        bar = tqdm(total=len(share), desc="encode images", unit="pair", disable=not accelerator.is_main_process)
        for start in range(0, len(share), 64):
            chunk = share[start : start + 64]
            batch = train.batch(chunk, 0)
            for view in views_of(recipe):
                encoders.images.encode([*batch.chosen, *batch.rejected], [view] * (2 * len(chunk)))
            bar.update(len(chunk))
        bar.close()
        assert encoders.images.cache is not None
        encoders.images.cache.flush()
    encoders.texts.fill(["", *(train.pairs[i].prompt for i in share)])
    accelerator.wait_for_everyone()


def build_step(
    recipe: Recipe,
    denoiser: Any,
    reference: Reference,
    encoders: Encoders,
    accelerator: Accelerator,
    *,
    heldout: bool = False,
) -> Any:
    """The step of the recipe's objective; for held-out pairs without dropout and flips, under the validation seed."""
    objective = resolve("objective", recipe.objective["name"])
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
        reference,
        objective,
        {key: value for key, value in recipe.objective.items() if key != "name"},
        soft_labels=recipe.data.soft_labels,
        weighted=recipe.data.prompt_weights,
        autocast=accelerator.autocast,
        unwrap=accelerator.unwrap_model,
    )
    if heldout:
        return PairwiseStep(parts)
    return resolve("step", objective.__module__.rpartition(".")[2])(parts)


class Session:
    """One training run, ready to go: ``fit`` trains, ``finish`` writes the result."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.denoiser, self.reference, self.base_hash = load_model(recipe, accelerator.device)
        self.encoders = build_encoders(recipe, self.denoiser)
        self.step = build_step(recipe, self.denoiser, self.reference, self.encoders, accelerator)
        self.step.check()
        self.optimizer = self._build_optimizer()
        train = load_pairs(recipe, self.encoders, accelerator)
        assert train is not None
        self.train = train
        self.heldout = load_pairs(recipe, self.encoders, accelerator, heldout=True)
        size = recipe.training.train_batch_size * recipe.training.gradient_accumulation_steps
        self._check_apart()
        self.order = PairOrder(len(train), size * accelerator.num_processes, recipe.training.seed)
        self.truncated = self.denoiser.count_truncated(sorted({pair.prompt for pair in train.pairs}))
        if self.truncated:
            accelerator.print(
                f"note: {self.truncated} captions are longer than the text encoder reads; their ends are ignored"
            )

    def _build_optimizer(self) -> torch.optim.Optimizer:
        settings = {key: value for key, value in self.recipe.optimizer.items() if key != "name"}
        build = resolve("optimizer", self.recipe.optimizer["name"])
        try:
            optimizer: torch.optim.Optimizer = build(self.parameters(), self.recipe.training.learning_rate, **settings)
        except ValueError as error:
            raise UserError(f"optimizer: {error}", "change its setting in the recipe") from error
        return optimizer

    def _check_apart(self) -> None:
        if self.heldout is None:
            return
        shared = {pair.pair_id for pair in self.train.pairs} & {pair.pair_id for pair in self.heldout.pairs}
        if shared:
            problem = f"data.validation: {len(shared)} of its {len(self.heldout)} pairs are training pairs too"
            raise UserError(problem, "give other files or another validation_split")

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        network: nn.Module = self.denoiser.network
        return network

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for _, parameter in lora.trainable(self.network)]

    def _labels(self) -> list[str]:
        return [f"{pair.pair_id} {pair.label_0}" for pair in self.train.pairs]

    def validation_prompts(self) -> list[str]:
        """Prompts of the sample grid."""
        if self.recipe.validation.prompts or self.heldout is None:
            return self.recipe.validation.prompts
        return sorted({pair.prompt for pair in self.heldout.pairs})[: self.recipe.validation.num_prompts]

    def fit(self, folder: RunFolder) -> Trainer:
        """Fill the caches and train to the end, in ``folder``."""
        recipe, accelerator = self.recipe, self.accelerator
        fill_caches(recipe, self.encoders, self.train, self.order, accelerator)
        trainer = Trainer(
            accelerator,
            recipe.training,
            folder,
            self.network,
            self.step,
            self.train.batch,
            len(self.train),
            self.optimizer,
            look=lambda step, network: self.look(step, network, folder),
            look_every=recipe.validation.steps,
            identity={"base": self.base_hash, "pairs": content_hash(*self._labels())},
        )
        trainer.fit()
        self.encoders.close()
        return trainer

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
        from ..records import atomic_write
        from ..reports.figures import image_grid

        prompts, validation = self.validation_prompts(), self.recipe.validation
        if not prompts:
            return
        seeds = [validation.seed + number for number in range(len(prompts))]
        settings = {"num_inference_steps": validation.num_inference_steps, "guidance_scale": validation.guidance_scale}
        with self.reference(network) as frozen:
            before = self.denoiser.sample(frozen, prompts, seeds, **settings)
        after = self.denoiser.sample(network, prompts, seeds, **settings)
        rows = [list(pair) for pair in zip(before, after, strict=True)]
        grid = image_grid(rows, prompts, ["before", f"step {step}"], cell=128, blocks=2)
        with atomic_write(folder.path / "samples" / f"step-{step:06d}.png") as file:
            grid.save(file, format="PNG")

    def finish(self, trainer: Trainer) -> None:
        """Write the weights in diffusers' form and the model card, which marks the run as complete."""
        from .model_card import write_card

        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with trainer.result() as network:
                self.denoiser.save(network, trainer.folder.path)
            write_card(trainer.folder, to_dict(self.recipe), trainer.effective_batch)
        self.accelerator.wait_for_everyone()


def make_accelerator(recipe: Recipe) -> Accelerator:
    """The accelerator of a run. Raises UserError for a tracker that is not installed."""
    try:
        return Accelerator(
            mixed_precision=recipe.training.mixed_precision,
            log_with=recipe.training.report_to or None,
            project_dir=recipe.output_dir,
            # Other processes wait while one encodes or draws samples; the default of ten minutes is too short for that.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
        )
    except (ValueError, ImportError) as error:
        raise UserError(f"training: {error}", "check training.report_to and training.mixed_precision") from error
