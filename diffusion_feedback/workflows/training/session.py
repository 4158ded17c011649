"""What a training run is made of: a session says what is particular to it, ``run`` does the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch import nn

from ...config.recipe import Recipe
from ...models.lora import trainable
from ...reports.cards.writer import CardKind
from ...training.order import EpochOrder
from ...training.run_folder import RunFolder
from ...types.training import BatchSource, Step

Evaluate = Callable[[int, nn.Module, RunFolder], Mapping[str, float]]
"""(Step, network, the run's folder) to metrics of the network after that step; may write samples to the folder."""


class Examples(Protocol):
    """What a run learns from, or is evaluated on."""

    def __len__(self) -> int: ...
    def batch(self, indices: Sequence[int], draw: int) -> object:
        """The examples at ``indices``; ``draw`` is the epoch."""
        ...


def nothing() -> None:
    """What is done where nothing is to be done."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """One training run, ready to go: model and data are loaded, nothing is written yet.

    Args:
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
        close: What is done after the last one.
        plan: Lines on what is learnt from, and in how many steps; None for a run that goes through its examples.
        notes: Lines on what one should know of the run before it begins.
        frozen_bytes: Bytes of the weights that are held besides the network, by what they are.
        sampling_bytes: Measures the bytes of one batch of samples at its peak; 0 where none are drawn.
        metrics_of: Metrics of an update (number from 0) that are known without running it.
        name_of: Where the example of an id stands, for a message.
    """

    recipe: Recipe
    accelerator: Accelerator
    network: nn.Module
    step: Step[Any]
    train: Examples
    heldout: Examples | None
    order: EpochOrder
    source: BatchSource[Any]
    identity: Mapping[str, str]
    evaluate: Evaluate
    save: Callable[[nn.Module, Path], None]
    written_files: Sequence[str]
    card: CardKind
    card_facts: Callable[[], Mapping[str, object]] = dict
    evaluates_first: bool = False
    prepare: Callable[[RunFolder], None] = lambda folder: None
    close: Callable[[], None] = nothing
    plan: Sequence[str] | None = None
    notes: Sequence[str] = ()
    frozen_bytes: Mapping[str, int] = field(default_factory=dict)
    sampling_bytes: Callable[[], int] = int
    metrics_of: Callable[[int], Mapping[str, float]] = lambda number: {}
    name_of: Callable[[str], str] = lambda example_id: f"pair {example_id}"

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for _, parameter in trainable(self.network)]
