"""What flows in memory between the rooms: batches, log-probabilities, step results, and the protocols that join them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

Conditioning = dict[str, Tensor]
"""What a network is told besides latents and timestep: named tensors, batch first."""


@dataclass(frozen=True, slots=True)
class ImageView:
    """How an image is cut for training: ``crop`` = (x, y) in [0, 1]^2 of the room left over, 0.5 is the centre."""

    crop: tuple[float, float] = (0.5, 0.5)
    flip: bool = False


class ImageHandle(Protocol):
    """An image that can be opened when it is needed; ``key`` is the content hash of its bytes."""

    @property
    def key(self) -> str: ...
    def open(self) -> Image.Image:
        """Decode to RGB. Raises UserError for bytes that are not an image."""
        ...


@dataclass(frozen=True, slots=True)
class ImageItem:
    """An image to be judged, under the ``name`` by which its set knows it, and the prompt it was made from."""

    name: str
    prompt: str
    handle: ImageHandle


@dataclass(frozen=True, slots=True)
class Scores:
    """What a scorer says of N images, each (N,) float32 on the CPU: ``score`` as published, ``raw`` before any scale."""

    score: Tensor
    raw: Tensor


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """Latents (N, C, h, w), scaled as the network expects them, and the size story of each image, (N, 6) float32:
    original height and width, crop top and left, target height and width, px (SDXL's time ids, arXiv:2307.01952).
    """

    latents: Tensor
    sizes: Tensor


@dataclass(frozen=True, slots=True)
class PreferenceBatch:
    """B pairs. ``draw`` counts how often the data was gone through (the epoch), so that every pass draws anew.

    ``chosen_probability`` (B,) in [0.5, 1]; ``weight`` (B,) > 0. ``mismatched`` (B) are prompts of other pairs, where the
    images are learnt from one by one: by them KTO estimates its point of reference.
    """

    pair_ids: Sequence[str]
    prompts: Sequence[str]
    chosen: Sequence[ImageHandle]
    rejected: Sequence[ImageHandle]
    chosen_probability: Tensor
    weight: Tensor
    draw: int = 0
    mismatched: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.pair_ids)


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids (T,) int32, and which of them are scored, (T,) bool: those whose log-probability counts.

    The first ``prompt_length`` tokens are the prompt: none of them is scored, and the two sides of a pair may share
    them in one forward pass. The first token of all is never scored, as nothing predicts it.
    """

    ids: NDArray[np.int32]
    scored: NDArray[np.bool_]
    prompt_length: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_scored(self) -> int:
        """How many tokens count: those of the completion, its end token included."""
        return int(self.scored.sum())


@dataclass(frozen=True, slots=True)
class TokenExample:
    """A ``records.TextRecord`` as tokens; ``pair_id`` is the record's, other fields mean what they mean there."""

    pair_id: str
    chosen: TokenSequence
    rejected: TokenSequence | None = None
    label: bool | None = None
    margin: float = 0.0
    chosen_probability: float = 1.0
    weight: float = 1.0

    @property
    def length(self) -> int:
        """Tokens of the longer side, which is what a padded pass pays for."""
        return max(len(self.chosen), len(self.rejected) if self.rejected is not None else 0)


@dataclass(frozen=True, slots=True)
class TextBatch:
    """B examples of tokens: pairs, or, with an empty ``rejected``, single samples in ``chosen``.

    ``chosen_probability`` (B,) in [0.5, 1]; ``weight`` (B,) > 0; ``margin`` (B,) >= 0, by how much chosen is known to be
    better, 0 where nothing is known; ``draw`` is the epoch.
    """

    pair_ids: Sequence[str]
    chosen: Sequence[TokenSequence]
    rejected: Sequence[TokenSequence]
    chosen_probability: Tensor
    weight: Tensor
    margin: Tensor
    draw: int = 0

    def __len__(self) -> int:
        return len(self.pair_ids)


@dataclass(frozen=True, slots=True)
class UnpairedBatch:
    """B single completions, each ``desirable`` (B,) bool or not; ``mismatched`` (B) are the same prompts with the
    completions of other examples, by which KTO estimates its point of reference.
    """

    pair_ids: Sequence[str]
    samples: Sequence[TokenSequence]
    mismatched: Sequence[TokenSequence]
    desirable: Tensor
    weight: Tensor
    draw: int = 0

    def __len__(self) -> int:
        return len(self.pair_ids)


@dataclass(frozen=True, slots=True)
class TrajectoryBatch:
    """B completions with rewards: ``rewards[b]`` (``sequences[b].num_scored``,) float32 are what came with each scored
    token, in order. ``weight`` (B,) > 0; ``draw`` is the epoch.
    """

    pair_ids: Sequence[str]
    sequences: Sequence[TokenSequence]
    rewards: Sequence[NDArray[np.float32]]
    weight: Tensor
    draw: int = 0

    def __len__(self) -> int:
        return len(self.pair_ids)


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


class ForwardProcess(Protocol):
    """How noise is mixed into latents, and what the network is asked to predict."""

    def timesteps(self, uniform: Tensor) -> Tensor:
        """Map ``uniform`` (B,) in [0, 1) to the process's own timesteps (B,)."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...


class Denoiser(Protocol):
    """A family of diffusion models behind one interface; the network is always passed explicitly."""

    @property
    def network(self) -> nn.Module:
        """The trainable network as loaded."""
        ...

    @property
    def process(self) -> ForwardProcess: ...
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) in [-1, 1] to scaled latents (N, C, h, w) float32: the posterior's mode."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Text embeddings of each prompt, batch first, on the CPU."""
        ...

    def conditioning(self, text: Conditioning, sizes: Tensor) -> Conditioning:
        """Join text embeddings (N, ...) and size stories (N, 6) into what ``predict`` takes."""
        ...

    def predict(self, network: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor: ...
    def sample(
        self, network: nn.Module, prompts: Sequence[str], seeds: Sequence[int], **settings: Any
    ) -> list[Image.Image]:
        """One image per (prompt, seed); each image depends on its own prompt and seed alone, up to rounding."""
        ...

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write weights that plain diffusers loads."""
        ...


class ImageEncoder(Protocol):
    """Turns image handles into latents, from a cache or by the VAE."""

    def encode(self, images: Sequence[ImageHandle], views: Sequence[ImageView]) -> EncodedImages: ...


class TextEncoder(Protocol):
    """Turns prompts into text embeddings, from a cache or by the text encoder."""

    def encode(self, prompts: Sequence[str]) -> Conditioning: ...


class Likelihood(Protocol):
    """log p(sample | prompt) under any network, up to a constant."""

    def prepare(self, batch: Any) -> Any:
        """Encode ``batch`` and make every random draw, once."""
        ...

    def chosen(self, inputs: Any) -> Any:
        """The chosen half of ``inputs``."""
        ...

    def logps(self, network: nn.Module, inputs: Any) -> Tensor:
        """(2B,) float32, chosen first; (B,) for the chosen half."""
        ...

    def lengths(self, inputs: Any) -> Tensor | None:
        """Numbers of scored tokens, shaped as ``logps``; None where samples have no length."""
        ...


class Ranker(Protocol):
    """How well images fit prompts, under a network that is being taught to judge."""

    def prepare(self, batch: PreferenceBatch) -> Any:
        """Tokenise and cut ``batch``, once."""
        ...

    def logits(self, network: nn.Module, inputs: Any) -> Tensor:
        """(B, 2B) float32: each prompt against all images of the batch, the chosen ones first."""
        ...


class Reference(Protocol):
    """Gives the frozen network for the length of a ``with`` block."""

    def __call__(self, policy: nn.Module) -> AbstractContextManager[nn.Module]: ...


class Objective(Protocol):
    """Log-probabilities (PairLogps, (B,) for a pointwise objective, logits (B, 2B) for a ranking one) to per-example
    losses (B,), never their mean.
    """

    def __call__(self, logps: Any, **settings: Any) -> Tensor: ...


class Step(Protocol):
    """(network, batch) to StepOutput; the loop knows nothing else, but for the optional parts below."""

    def __call__(self, network: nn.Module, batch: Any) -> StepOutput: ...


Collect = Callable[[Tensor], list[Tensor]]
"""A 1-D tensor of any length to the tensors of all processes, in the order of their ranks."""


@runtime_checkable
class Gated(Protocol):
    """A step that checks itself before the first update."""

    def gate(self, network: nn.Module, batch: Any) -> dict[str, float]:
        """Figures of the check. Raises UserError where training must not begin."""
        ...


@runtime_checkable
class Coupled(Protocol):
    """A step whose loss on one example depends on the other examples of the *global* batch."""

    def coupled(self, network: nn.Module, batches: Sequence[Any], collect: Collect) -> Step:
        """The step for this process's ``batches`` of one update, after a look at all of them without gradients."""
        ...


@runtime_checkable
class Observer(Protocol):
    """A step that keeps account of training: running means, target networks, a reference that follows."""

    def observe(self, network: nn.Module, metrics: Mapping[str, float]) -> None:
        """Called after every update, in every process, with the metrics of the global batch."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class BatchSource(Protocol):
    """Which examples make up which optimizer step."""

    @property
    def batch_size(self) -> int:
        """Examples in one optimizer step, over all processes."""
        ...

    def micro_batches(self, number: int) -> Iterator[Any]:
        """This process's part of optimizer step ``number`` (from 0)."""
        ...

    def denominator(self, number: int) -> float:
        """What the sum of the losses of step ``number`` over all processes is divided by."""
        ...


class TextScorer(Protocol):
    """Judges completions of prompts: a reward model, a classifier, a function. Larger is better."""

    @property
    def recipe_id(self) -> str:
        """Names everything that makes the number: kind, version, precision, hash of the weights."""
        ...

    def score(self, prompts: Sequence[Any], completions: Sequence[Any]) -> Sequence[float]:
        """One finite number for each completion, in order; prompts and completions are texts or lists of messages."""
        ...


class PairJudge(Protocol):
    """Compares two completions of one prompt, as a reader does who is shown both."""

    @property
    def recipe_id(self) -> str:
        """Names everything that makes the verdict: kind, version, question, precision, hash of the weights."""
        ...

    def judge(self, prompts: Sequence[Any], firsts: Sequence[Any], seconds: Sequence[Any]) -> Sequence[float]:
        """Preference in [0, 1] for the completion shown first, one for each prompt.

        A judge may favour a place: whoever asks, asks in both orders.
        """
        ...
