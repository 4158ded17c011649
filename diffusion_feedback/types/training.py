"""What training is made of: log-probabilities, step results, and the protocols of likelihoods, steps and sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn


class Batch(Protocol):
    """What the loop and the weighing of losses know of any batch."""

    @property
    def weight(self) -> Tensor: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Log-probabilities of chosen and rejected samples under policy and reference, each (B,); reference-free: None.

    ``chosen_length`` and ``rejected_length`` (B,) are the numbers of scored tokens, at least 1, by which length-normalised
    objectives divide; None where a sample has no length, as an image, which counts as 1.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None
    chosen_length: Tensor | None = None
    rejected_length: Tensor | None = None

    @classmethod
    def of_halves(cls, policy: Tensor, reference: Tensor | None = None, lengths: Tensor | None = None) -> PairLogps:
        """Pairs from columns (2B,) that hold the chosen samples first."""
        no_halves = (None, None)
        references = no_halves if reference is None else reference.chunk(2)
        return cls(*policy.chunk(2), *references, *(no_halves if lengths is None else lengths.chunk(2)))


@dataclass(frozen=True, slots=True)
class UnpairedLogps:
    """Log-probabilities (B,) of single samples under policy and reference, and whether each is ``desirable`` (B,) bool."""

    policy: Tensor
    reference: Tensor
    desirable: Tensor


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Result of one step on one micro-batch: ``loss`` is the *sum* over its examples of weighted per-example losses.

    ``metrics`` maps names to per-example values (B,), detached; the loop averages them over the global batch, by the
    ``weights`` (B,) of the same name where there are some (numbers of tokens, for means over tokens).
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)


BatchT_contra = TypeVar("BatchT_contra", contravariant=True)
BatchT_co = TypeVar("BatchT_co", covariant=True)
InputsT = TypeVar("InputsT")


class Likelihood(Protocol[BatchT_contra, InputsT]):
    """log p(sample | prompt) under any network, up to a constant."""

    def prepare(self, batch: BatchT_contra) -> InputsT:
        """Encode ``batch`` and make every random draw, once."""
        ...

    def chosen(self, inputs: InputsT) -> InputsT:
        """The chosen half of ``inputs``."""
        ...

    def logps(self, network: nn.Module, inputs: InputsT) -> Tensor:
        """(2B,) float32, chosen first; (B,) for the chosen half."""
        ...

    def lengths(self, inputs: InputsT) -> Tensor | None:
        """Numbers of scored tokens, shaped as ``logps``; None where samples have no length."""
        ...


class SampleJudge(Protocol[BatchT_contra, InputsT]):
    """How good samples are, under a network that is being taught to judge."""

    def prepare(self, batch: BatchT_contra) -> InputsT:
        """Tokenise, pad or cut ``batch``, once."""
        ...

    def scores(self, network: nn.Module, inputs: InputsT) -> Tensor:
        """Rewards (2B,) float32, or logits (B, 2B) of each prompt against all samples; the chosen ones first."""
        ...


class Reference(Protocol):
    """Gives the frozen network for the length of a ``with`` block."""

    def __call__(self, policy: nn.Module) -> AbstractContextManager[nn.Module]: ...


class Step(Protocol[BatchT_contra]):
    """(network, batch) to StepOutput; the loop knows nothing else, but for the optional parts below."""

    def __call__(self, network: nn.Module, batch: BatchT_contra) -> StepOutput: ...


Collect = Callable[[Tensor], list[Tensor]]
"""A 1-D tensor of any length to the tensors of all processes, in the order of their ranks."""


@runtime_checkable
class Gated(Protocol[BatchT_contra]):
    """A step that checks itself before the first update."""

    def gate(self, network: nn.Module, batch: BatchT_contra) -> dict[str, float]:
        """Metrics of the check. Raises UserError where training must not begin."""
        ...


@runtime_checkable
class Coupled(Protocol[BatchT_contra]):
    """A step whose loss on one example may depend on the other examples of the *global* batch."""

    @property
    def looks_ahead(self) -> bool:
        """Whether it does: only then must ``coupled`` be called, which takes all passes of an update at once."""
        ...

    def coupled(self, network: nn.Module, batches: Sequence[BatchT_contra], collect: Collect) -> Step[BatchT_contra]:
        """The step for this process's ``batches`` of one update, after a pass over all of them without gradients."""
        ...


@runtime_checkable
class Observer(Protocol):
    """A step that keeps account of training: running means, target networks, a reference that follows."""

    def observe(self, network: nn.Module, metrics: Mapping[str, float]) -> None:
        """Called after every update, in every process, with the metrics of the global batch."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class BatchSource(Protocol[BatchT_co]):
    """Which examples make up which optimizer step."""

    @property
    def batch_size(self) -> int:
        """Examples in one optimizer step, over all processes."""
        ...

    def micro_batches(self, number: int) -> Iterator[BatchT_co]:
        """This process's part of optimizer step ``number`` (from 0)."""
        ...

    def denominator(self, number: int) -> float:
        """What the sum of the losses of step ``number`` over all processes is divided by."""
        ...
