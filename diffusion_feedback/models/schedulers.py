"""What the schedulers of diffusers' pipelines say of the noise that a model was trained with."""

from __future__ import annotations

from typing import get_args

from diffusers import SchedulerMixin
from torch import Tensor

from ..errors import UserError
from ..noise import DDPMProcess, PredictionType


def ddpm_process(scheduler: SchedulerMixin, path: str = "the pipeline") -> DDPMProcess:
    """The forward process that the scheduler of the pipeline at ``path`` describes, in float64. Raises UserError."""
    where, kind = f"{path}/scheduler", type(scheduler).__name__
    abar = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(abar, Tensor) or not len(abar):
        problem = f"{where}: a {kind} has no alphas_cumprod"
        raise UserError(problem, "use a diffusion (DDPM-like) model; flow models are not supported")
    abar = abar.double()
    if not bool(((abar >= 0) & (abar <= 1)).all()) or bool((abar.diff() > 0).any()):
        betas = f"beta_start {scheduler.config.get('beta_start')}, beta_end {scheduler.config.get('beta_end')}"
        problem = f"{where}: alphas_cumprod do not fall from 1 to 0 ({betas})"
        raise UserError(problem, "copy scheduler_config.json again")
    prediction = scheduler.config.get("prediction_type")
    if prediction not in get_args(PredictionType):
        problem = f"{where}: prediction_type is {prediction!r}"
        raise UserError(problem, f"known: {', '.join(get_args(PredictionType))}; flow models are not supported")
    return DDPMProcess(abar, prediction)
