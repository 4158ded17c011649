"""A run of a diffusion model on pairs of images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from torch import nn

from ...catalog import needs_reference
from ...config.recipe import Recipe
from ...data.index import PairIndex
from ...likelihoods.denoising import DenoisingLikelihood
from ...noise import DDPMProcess, PredictionType
from ...training.heldout import even_passes, implicit_sums
from ...training.preference import PreferenceStep
from ...training.run_folder import RunFolder
from ...training.steps import PointwiseStep
from ...types.images import PreferenceBatch
from ...types.models import Denoiser
from ...types.training import Reference
from .base_model import FrozenReference, base_model, frozen_reference, make_trainable
from .given import Setup
from .image_caches import Encoders, build_encoders, cache_bytes, cache_streamed, fill_caches
from .image_pairs import ImagePairs
from .memory import weight_bytes
from .sample_images import ImageSamples
from .session import Session, step_of, step_parts

log = logging.getLogger(__name__)

_NOTHING = 1.05  # noise, velocity and latents have a variance of about 1: the error of predicting nothing
_FAR_BETTER = 0.5


def diffusion_session(setup: Setup) -> Session:
    """Load the model, its reference and the pairs. Raises UserError for bad input."""
    recipe, accelerator = setup.recipe, setup.accelerator
    denoiser: Denoiser = base_model(setup)
    base_hash = denoiser.model_hash()
    reference = frozen_reference(recipe, denoiser, base_hash, accelerator.device)
    adapters = make_trainable(setup, denoiser, base_hash)
    encoders = build_encoders(recipe, denoiser)
    assert reference.give is not None
    starts_at_reference = reference.is_start_of(recipe, base_hash)
    steps = DenoisingSteps(setup, denoiser, reference.give, encoders, starts_at_reference)
    step = steps.training()
    step.check()
    pairs = ImagePairs.load(
        setup,
        resolution=encoders.images.resolution,
        count_truncated=denoiser.count_truncated,
        on_pair=cache_streamed(recipe, encoders),
    )
    source = pairs.source()
    samples = ImageSamples.of(recipe, denoiser, reference.give, encoders.images.resolution, pairs)

    def prepare(folder: RunFolder) -> None:
        fill_caches(encoders, pairs)
        if not folder.checkpoints():
            with accelerator.autocast():
                check_prediction(step.parts.likelihood, denoiser.network, next(source.micro_batches(0)))

    return Session(
        data=pairs,
        network=denoiser.network,
        step=step,
        source=source,
        identity={"base": base_hash, "pairs": pairs.labels_hash()},
        evaluate=DiffusionEvaluation(steps, pairs.heldout, samples),
        save=denoiser.save,
        written_files=denoiser.written_files(),
        card="diffusion",
        prepare=prepare,
        close=encoders.close,
        notes=[*adapters, *_notes(recipe, denoiser), *samples.notes()],
        frozen_bytes=_frozen_bytes(denoiser, reference),
        sampling_bytes=samples.peak_bytes,
        num_samples=lambda: len(samples.prompts),
        cache_bytes=lambda: cache_bytes(encoders, pairs),
    )


@dataclass(frozen=True, slots=True)
class DenoisingSteps:
    """The steps of a run: its objective on training pairs, and on held-out ones the comparison with the model's start."""

    setup: Setup
    denoiser: Denoiser
    reference: Reference
    encoders: Encoders
    starts_at_reference: bool = True

    def training(self) -> PreferenceStep | PointwiseStep:
        """The step of the recipe's objective."""
        recipe = self.setup.recipe
        likelihood = self._likelihood(
            seed=recipe.training.seed,
            caption_dropout=recipe.data.caption_dropout,
            random_flip=recipe.data.random_flip,
            random_crop=recipe.data.random_crop,
            timestep_range=recipe.training.timestep_range,
        )
        reference = self.reference if needs_reference(recipe.objective) else None
        return step_of(step_parts(self.setup, likelihood, reference, starts_at_reference=self.starts_at_reference))

    def heldout(self) -> PreferenceStep:
        """Pairs judged against the model that training started from, whatever the objective; without dropout and flips."""
        recipe = self.setup.recipe
        likelihood = self._likelihood(seed=recipe.validation.seed)
        return PreferenceStep(step_parts(self.setup, likelihood, self.reference))

    def _likelihood(self, **settings: Any) -> DenoisingLikelihood:
        encoders, device = self.encoders, self.setup.accelerator.device
        return DenoisingLikelihood(self.denoiser, encoders.images, encoders.texts, device=device, **settings)


@dataclass(frozen=True, slots=True)
class DiffusionEvaluation:
    """Held-out accuracy, and samples on fixed seeds, before and after."""

    steps: DenoisingSteps
    heldout: PairIndex | None
    samples: ImageSamples

    def __call__(self, step: int, network: nn.Module, folder: RunFolder) -> Mapping[str, float]:
        """The accuracy, and what scorers say of the samples, which are written to ``folder``."""
        of_samples = self.samples.draw(step, network, folder)
        if self.heldout is None:
            return of_samples
        passes = even_passes(len(self.heldout), self.steps.setup.recipe.training.train_batch_size)
        sums = implicit_sums(self.steps.heldout(), network, self.heldout.batch, passes)
        errors = {name: mean for name, mean in sums.means().items() if name.startswith("error/")}
        folder.log_heldout(step, [pair.example_id for pair in self.heldout.pairs], sums.of_each(passes))
        return sums.accuracy() | errors | of_samples


def check_prediction(likelihood: DenoisingLikelihood, network: nn.Module, batch: PreferenceBatch) -> None:
    """Warn where the errors of ``network`` on its first ``batch`` speak against what its scheduler says it predicts.

    Such a run trains calmly, to no good.
    """
    process = likelihood.denoiser.process
    if not isinstance(process, DDPMProcess):
        return
    kinds = {kind: replace(process, prediction_type=kind) for kind in get_args(PredictionType)}
    errors = likelihood.errors_by_prediction(network, batch, kinds)
    said, best = process.prediction_type, min(errors, key=lambda kind: errors[kind])
    if errors[best] < _FAR_BETTER * errors[said]:
        doubt = f"; at {best} it is {errors[best]:.2f}, so that was probably what it was trained for"
    elif errors[said] > _NOTHING:
        doubt = ", and predicting nothing would give about 1: scheduler or VAE are probably another model's"
    else:
        return
    what = f"the scheduler says prediction_type {said}, at which the model's error is {errors[said]:.2f}{doubt}"
    cause = "see scheduler/scheduler_config.json of the model: such a run trains, and is worth nothing"
    log.warning("warning: %s -> %s", what, cause)


def _notes(recipe: Recipe, denoiser: Denoiser) -> list[str]:
    """What the network is taken to predict, and the logit slope, which is what makes runs comparable."""
    lines = [f"prediction type  {denoiser.process.prediction_type} (scheduler/scheduler_config.json)"]
    if "beta" in recipe.objective:
        beta = recipe.objective["beta"]
        lines.append(f"logit slope      {beta / 2:g} per unit of mean squared error (beta {beta:g} / 2)")
    return lines


def _frozen_bytes(denoiser: Denoiser, reference: FrozenReference) -> dict[str, int]:
    encoders = (parameter for part in denoiser.frozen_modules() for parameter in part.parameters())
    return {"reference copy": reference.num_bytes, "image and text encoders": weight_bytes(encoders)}
