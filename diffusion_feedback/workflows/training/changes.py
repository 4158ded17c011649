"""What a run that goes on changes, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ...config.continuing import Changes
from ...config.recipe import TrainingConfig
from ...training.optimizers import scheduled_rate
from .examples import RunData

_TRAINING = "training."


def describe_changes(changes: Changes, data: RunData, step: int) -> Iterator[str]:
    """One line for each of the ``changes`` that a run makes after ``step``, and what they do to the learning rate."""
    for change in changes.accepted:
        yield f"changed          {change}, from step {step + 1}"
    now = data.setup.recipe.training
    old: dict[str, Any] = {
        each.name.removeprefix(_TRAINING): each.old for each in changes.accepted if each.name.startswith(_TRAINING)
    }
    courses = [_counted(training, data.steps_per_epoch) for training in (replace(now, **old), now)]
    before, after = (scheduled_rate(course, step) for course in courses)
    if before != after:
        course = f"the schedule is {now.lr_scheduler} to step {courses[1].max_train_steps} from here on"
        yield f"learning rate    {after:.3g} at step {step + 1}, where it was to be {before:.3g}: {course}"


def _counted(training: TrainingConfig, steps_per_epoch: int) -> TrainingConfig:
    return replace(training, max_train_steps=training.steps(steps_per_epoch), num_train_epochs=None)
