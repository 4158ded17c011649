"""Whether a model was trained to predict what its scheduler says: a wrong word trains calmly, to no good."""

from __future__ import annotations

import dataclasses
from typing import get_args

from torch import nn

from ...likelihoods.denoising import DenoisingLikelihood
from ...noise import DDPMProcess, PredictionType
from ...types.images import PreferenceBatch

_NOTHING = 1.05  # noise, velocity and latents have a variance of about 1: the error of predicting nothing
_FAR_BETTER = 0.5


def doubt_prediction(likelihood: DenoisingLikelihood, network: nn.Module, batch: PreferenceBatch) -> str | None:
    """What the errors of ``network`` on its first ``batch`` say against the scheduler's prediction type, if anything."""
    process = likelihood.denoiser.process
    if not isinstance(process, DDPMProcess):
        return None
    kinds = {kind: dataclasses.replace(process, prediction_type=kind) for kind in get_args(PredictionType)}
    errors = likelihood.errors_by_prediction(network, batch, kinds)
    said, best = process.prediction_type, min(errors, key=lambda kind: errors[kind])
    doubt = f"warning: the scheduler says prediction_type {said}, at which the model's error is {errors[said]:.2f}"
    cause = "see scheduler/scheduler_config.json of the model: such a run trains, and is worth nothing"
    if errors[best] < _FAR_BETTER * errors[said]:
        return f"{doubt}; at {best} it is {errors[best]:.2f}, so that was probably what it was trained for -> {cause}"
    if errors[said] > _NOTHING:
        return f"{doubt}, and predicting nothing would give about 1: scheduler or VAE are probably another model's -> {cause}"
    return None
