"""The step of the recipe's objective over a likelihood."""

from __future__ import annotations

from typing import Any, TypeVar

from ...training.preference import PreferenceStep
from ...training.steps import PointwiseStep, StepParts
from ...types.training import Likelihood, Reference
from .given import Setup

BatchT = TypeVar("BatchT")
InputsT = TypeVar("InputsT")


def preference_parts(
    setup: Setup, likelihood: Likelihood[BatchT, InputsT], reference: Reference | None, **more: Any
) -> StepParts:
    """What a step on log-probabilities is made of; ``more`` are further fields of ``StepParts``."""
    return StepParts(
        likelihood=likelihood,
        reference=reference,
        objective=setup.objective,
        settings=setup.objective_settings,
        soft_labels=setup.recipe.data.soft_labels,
        weighted=setup.recipe.data.prompt_weights,
        autocast=setup.accelerator.autocast,
        unwrap=setup.accelerator.unwrap_model,
        **more,
    )


def step_of(parts: StepParts) -> PreferenceStep | PointwiseStep:
    """The step of an objective on samples."""
    return PointwiseStep(parts) if parts.objective.learns_from == "chosen" else PreferenceStep.of(parts)


def judging_settings(setup: Setup) -> dict[str, Any]:
    """What the step of a model that is taught to judge takes besides its judge."""
    return {
        "objective": setup.objective,
        "settings": setup.objective_settings,
        "soft_labels": setup.recipe.data.soft_labels,
        "weighted": setup.recipe.data.prompt_weights,
        "autocast": setup.accelerator.autocast,
    }
