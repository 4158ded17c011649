"""What a training run is made of: a session says what is particular to it, ``run`` does the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ...models.lora import trainable
from ...reports.cards.writer import CardKind
from ...training.preference import PreferenceStep
from ...training.run_folder import RunFolder
from ...training.steps import PointwiseStep, StepParts
from ...types.training import BatchSource, Likelihood, Reference, SampleJudge, Step
from .examples import RunData
from .given import Setup
from .starting import starts_elsewhere

Evaluate = Callable[[int, nn.Module, RunFolder], Mapping[str, float]]
"""(Step, network, the run's folder) to metrics of the network after that step; may write samples to the folder."""

BatchT = TypeVar("BatchT")
InputsT = TypeVar("InputsT")


@dataclass(frozen=True, kw_only=True)
class Session:
    """One training run, ready to go: model and data are loaded, nothing is written yet.

    Args:
        data: What is learnt from, and the setup of the run.
        network: What is trained.
        source: The passes of each optimizer step.
        identity: Hashes that a continued run must share with its beginning.
        evaluate: Metrics of the network after a step, for metrics.jsonl.
        evaluates_first: Whether that is done before the first update too.
        save: Writes the result, (network, folder).
        written_files: Patterns of all files and folders that ``save`` may write.
        card: Which model card is written, which marks the run as complete.
        card_facts: What only this kind of run tells its card; called while the result's weights are in place.
        prepare: What is done before the first update, (folder): caches are filled.
        close: What is done after the last one, or where the run ends before.
        notes: Lines on what one should know of the run before it begins.
        frozen_bytes: Bytes of the weights that are held besides the network, by what they are.
        sampling_bytes: Measures the bytes of one batch of samples at its peak; 0 where none are drawn.
        num_samples: How many samples an evaluation draws.
        cache_bytes: Bytes of what is kept on disk for the run, by what it is; nothing where it caches nothing.
    """

    data: RunData
    network: nn.Module
    step: Step[Any]
    source: BatchSource[Any]
    identity: Mapping[str, str]
    evaluate: Evaluate
    save: Callable[[nn.Module, Path], None]
    written_files: Sequence[str]
    card: CardKind
    card_facts: Callable[[], Mapping[str, object]] = dict
    evaluates_first: bool = False
    prepare: Callable[[RunFolder], None] = lambda folder: None
    close: Callable[[], None] = lambda: None
    notes: Sequence[str] = ()
    frozen_bytes: Mapping[str, int] = field(default_factory=dict)
    sampling_bytes: Callable[[], int] = int
    num_samples: Callable[[], int] = int
    cache_bytes: Callable[[], Mapping[str, int]] = dict

    @property
    def setup(self) -> Setup:
        """Recipe, accelerator, and what was handed in."""
        return self.data.setup

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for _, parameter in trainable(self.network)]


def step_parts(
    setup: Setup,
    likelihood: Likelihood[BatchT, InputsT] | SampleJudge[BatchT, InputsT],
    reference: Reference | None = None,
    **more: Any,
) -> StepParts:
    """What the step of the recipe's objective is made of; ``more`` are further fields of ``StepParts``."""
    return StepParts(
        likelihood=likelihood,
        reference=reference,
        objective=setup.objective,
        settings=setup.objective_settings,
        soft_labels=setup.recipe.data.soft_labels,
        weighted=setup.recipe.data.prompt_weights,
        autocast=setup.accelerator.autocast,
        unwrap=setup.accelerator.unwrap_model,
        starts_elsewhere=starts_elsewhere(setup.recipe),
        **more,
    )


def step_of(parts: StepParts) -> PreferenceStep | PointwiseStep:
    """The step of an objective on samples."""
    return PointwiseStep(parts) if parts.objective.learns_from == "chosen" else PreferenceStep.of(parts)
