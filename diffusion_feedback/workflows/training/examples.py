"""What the examples of every kind of run share: an order, held-out ones that stand apart, and bad rows that are named."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from ...catalog import family_row
from ...config.data_lists import DataPart
from ...data.places import name_of_data
from ...data.provenance import prompts_of_texts
from ...errors import UserError, plural
from ...records import Text
from ...training.order import EpochOrder
from .given import Setup

log = logging.getLogger(__name__)
_SHOWN = 20


class Examples(Protocol):
    """What a run learns from, or is evaluated on."""

    def __len__(self) -> int: ...
    def batch(self, indices: Sequence[int], draw: int) -> object:
        """The examples at ``indices``; ``draw`` is the epoch."""
        ...


class RunData(Protocol):
    """The examples of a run, and which of them each optimizer step sees; ``heldout`` is None where the recipe names none."""

    setup: Setup
    train: Examples
    heldout: Examples | None
    order: EpochOrder

    @property
    def unit(self) -> str:
        """What examples are called, in the plural."""
        learns_from = self.setup.objective.learns_from
        if learns_from not in ("chosen", "labels"):
            return learns_from
        if family_row(self.setup.recipe.model.family).reads_text:
            return "texts"
        return "images" if learns_from == "chosen" else "pairs"

    def name_of(self, example_id: str) -> str:
        """Where the example of an id stands, for a message."""
        return f"pair {example_id}"

    def prompts(self) -> Iterable[Text]:
        """The prompts that are learnt from. Raises UserError as their reader does."""
        parts, where = self.setup.parts(heldout=False), self.setup.place(heldout=False)
        return (prompt for part in parts for prompt in prompts_of_texts(part.place, **where))

    def judges(self) -> dict[str, str]:
        """The scorers that made the labels, by name their recipe id, as far as the data say. Raises UserError as ``prompts``."""
        return {}

    def metrics_of(self, number: int) -> Mapping[str, float]:
        """Metrics of an update (number from 0) that are known without running it."""
        return {}

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass through the data."""
        return self.order.steps_per_epoch

    @property
    def max_train_steps(self) -> int:
        """Optimizer steps of the whole run: the recipe's, or those that its epochs are."""
        return self.setup.recipe.training.steps(self.steps_per_epoch)

    @property
    def length(self) -> str:
        """The number of steps, and what it comes from, in words."""
        epochs, steps, each = self.setup.recipe.training.num_train_epochs, self.max_train_steps, self.steps_per_epoch
        if epochs is not None:
            return f"{steps} = {epochs:g} epochs of {each}"
        return f"{steps} ({steps / each:.2f} epochs of {each})"

    def plan(self) -> list[str]:
        """Lines on what is learnt from, and in how many steps."""
        training, size = self.setup.recipe.training, self.setup.batch_size
        passes, processes = training.gradient_accumulation_steps, self.setup.accelerator.num_processes
        split = f"{training.train_batch_size} per pass x {plural(passes, 'pass')} x {plural(processes, 'process')}"
        return [
            f"examples         {len(self.train)} for training, {self.held_out()}",
            f"batch            {size} {self.unit} per step = {split}",
            f"steps            {self.length}",
        ]

    def held_out(self) -> str:
        """How many examples are held out, in words."""
        return "none held out" if self.heldout is None else f"{len(self.heldout)} held out"


def batch_warning(setup: Setup) -> str | None:
    """What differs from the batch that the recipe was written for, and what restores it; None where nothing does."""
    training, size = setup.recipe.training, setup.batch_size
    wanted = training.global_batch_size
    if wanted is None or size == wanted:
        return None
    in_a_pass = size // training.gradient_accumulation_steps
    remedy = (
        f"lower training.train_batch_size, which makes {in_a_pass} in one pass of all processes, to a divisor of it"
    )
    if wanted % in_a_pass == 0:
        remedy = f"training.gradient_accumulation_steps: {wanted // in_a_pass} restores it"
    said = f"warning: {size} examples per step, where the recipe was written for {wanted} (training.global_batch_size)"
    return f"{said} -> {remedy}, or set the learning rate and global_batch_size for {size}"


def check_apart(what: str, train: Collection[str], heldout: Collection[str], *, may_share: bool = False) -> None:
    """Raise UserError where a held-out example is a training example too, by their ids; ``what`` they are, in words.

    With ``may_share`` that is an accident which may happen, and only the same examples twice are refused.
    """
    shared = set(train) & set(heldout)
    if may_share and shared < set(heldout):
        return
    if shared:
        which = f"all of its {len(heldout)} {what}" if may_share else f"{len(shared)} of its {len(heldout)} {what}"
        problem = f"data.validation: {which} are training {what} too"
        raise UserError(problem, "give other files or another validation_split")


def shares(parts: Sequence[DataPart], sizes: Sequence[int], unit: str) -> list[str]:
    """Lines on how much of an epoch each of several data sets is, by their ``sizes`` in ``unit``; none on one alone."""
    if len(parts) == 1 and parts[0].times == 1:
        return []
    draws = [size * part.times for part, size in zip(parts, sizes, strict=True)]
    return [
        f"{name_of_data(part.place)}: {size:,} {unit}"
        + (f", each {part.times:g} times an epoch" if part.times != 1 else "")
        + f": {number / sum(draws):.1%} of the draws"
        for part, size, number in zip(parts, sizes, draws, strict=True)
    ]


def note_skipped(path: str, reasons: Sequence[str]) -> None:
    """Note the bad rows of ``path`` that were left out."""
    if reasons:
        log.warning("%d bad rows skipped in %s; the first of them:", len(reasons), path)
        for reason in reasons[:_SHOWN]:
            log.warning("  %s", reason)
