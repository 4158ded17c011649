"""Training on the exact world with the package's own loop, steps and likelihoods; the data is drawn from tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffusion_feedback.config.recipe import TrainingConfig
from diffusion_feedback.training.loop import Trainer
from diffusion_feedback.training.optimizers import adamw
from diffusion_feedback.training.order import EpochOrder
from diffusion_feedback.training.run_folder import RunFolder
from diffusion_feedback.training.sources import FixedBatchSource
from diffusion_feedback.types.texts import TextBatch, TokenSequence
from diffusion_feedback.types.training import BatchSource, Step

from .world import ExactWorld, Floats, Integers, Policy, sample


@dataclass(frozen=True, slots=True)
class Pairs:
    """N judged pairs: prompts, and the numbers of chosen and rejected completions, each (N,). Single samples have no
    ``rejected``, (0,). ``groups`` (G + 1,) are where the G groups of pairs begin that were drawn for one prompt, and N.
    """

    prompts: Integers
    chosen: Integers
    rejected: Integers
    groups: Integers

    def __len__(self) -> int:
        return len(self.prompts)

    def members(self, groups: Sequence[int]) -> Integers:
        """The pairs of ``groups``."""
        return np.concatenate([np.arange(self.groups[group], self.groups[group + 1]) for group in groups])


def draw_samples(policy: Policy, number: int, *seed: int) -> tuple[Integers, Integers]:
    """``number`` prompts, equally likely, and a completion of each, drawn from ``policy``."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(len(policy[0]), size=number)
    return prompts, sample(policy, prompts, rng.random((number, len(policy))))


def draw_pairs(policy: Policy, rewards: Floats, num_prompts: int, num_completions: int, *seed: int) -> Pairs:
    """All pairs of ``num_completions`` completions of each of ``num_prompts`` prompts, less pairs of equal completions.

    A is chosen over B with probability sigmoid(r(A) - r(B)): a Bradley-Terry annotator with the true reward.
    """
    rng = np.random.default_rng(seed)
    prompts = rng.integers(len(policy[0]), size=num_prompts)
    each = np.repeat(prompts, num_completions)
    completions = sample(policy, each, rng.random((len(each), len(policy)))).reshape(num_prompts, num_completions)
    sides = np.array(list(combinations(range(num_completions), 2)))
    first, second = completions[:, sides[:, 0]].ravel(), completions[:, sides[:, 1]].ravel()
    prompts = np.repeat(prompts, len(sides))
    differences = rewards[prompts, first] - rewards[prompts, second]
    is_first = rng.random(len(prompts)) < 1 / (1 + np.exp(-differences))
    chosen, rejected = np.where(is_first, first, second), np.where(is_first, second, first)
    differ = first != second
    sizes = differ.reshape(num_prompts, len(sides)).sum(axis=1)
    groups = np.concatenate([[0], np.cumsum(sizes)])
    return Pairs(prompts[differ], chosen[differ], rejected[differ], groups)


@dataclass
class Texts:
    """The world's texts as tokens: the prompt is the first token, all others are scored."""

    world: ExactWorld
    _known: dict[tuple[int, int], TokenSequence] = field(default_factory=dict)

    def sequence(self, prompt: int, completion: int) -> TokenSequence:
        """Prompt and completion number as tokens."""
        sequence = self._known.get((prompt, completion))
        if sequence is None:
            ids = np.array([prompt, *self.world.symbols[completion]], dtype=np.int32)
            sequence = self._known[prompt, completion] = TokenSequence(ids, np.arange(len(ids)) > 0, 1)
        return sequence

    def sequences(self, prompts: Integers, completions: Integers) -> list[TokenSequence]:
        """One sequence a prompt and completion."""
        return [self.sequence(*each) for each in zip(prompts.tolist(), completions.tolist(), strict=True)]

    def places(self, sequences: Sequence[TokenSequence]) -> tuple[Integers, Integers]:
        """Prompts and completion numbers of ``sequences``, each (N,)."""
        ids = np.stack([sequence.ids for sequence in sequences]).astype(np.int64)
        powers = self.world.vocabulary ** np.arange(self.world.length)[::-1]
        return ids[:, 0], ids[:, 1:] @ powers

    def batches(self, pairs: Pairs) -> Callable[[Sequence[int], int], TextBatch]:
        """Gives batches of all pairs of some groups. Weights make the loss that the loop divides by the number of
        groups a mean over pairs, but for groups that lost a pair.
        """
        weight = (len(pairs.groups) - 1) / len(pairs)

        def batch(groups: Sequence[int], draw: int) -> TextBatch:
            at = pairs.members(groups)
            prompts, ones = pairs.prompts[at], torch.ones(len(at))
            rejected = self.sequences(prompts, pairs.rejected[at]) if len(pairs.rejected) else []
            chosen, names = self.sequences(prompts, pairs.chosen[at]), [str(index) for index in at]
            return TextBatch(names, chosen, rejected, ones, weight * ones, torch.zeros(len(at)), draw)

        return batch

    def lookup(self, logps: Floats) -> Callable[[TextBatch], Tensor]:
        """What the policy with the joint table ``logps`` says of a batch: (2B,) float32, chosen first."""

        def look(batch: TextBatch) -> Tensor:
            return torch.from_numpy(logps[self.places([*batch.chosen, *batch.rejected])]).float()

        return look


@dataclass(frozen=True, slots=True)
class Once:
    """A likelihood, or a reader of rewards, that reads each distinct sequence of a batch once: the pairs of a group share
    their completions. ``inner`` is what reads them; inputs are its own, and which distinct sequence each one is.
    """

    inner: Any

    def prepare(self, batch: TextBatch) -> tuple[Any, Tensor]:
        """The sequences of ``batch``, chosen first."""
        return self.prepare_sequences([*batch.chosen, *batch.rejected])

    def prepare_sequences(self, sequences: Sequence[TokenSequence]) -> tuple[Any, Tensor]:
        """Any sequences; equal ones are one object (see ``Texts``)."""
        place: dict[int, int] = {}
        which = [place.setdefault(id(sequence), len(place)) for sequence in sequences]
        distinct = {id(sequence): sequence for sequence in sequences}
        return self.inner.prepare_sequences([distinct[key] for key in place]), torch.tensor(which)

    def chosen(self, inputs: tuple[Any, Tensor]) -> tuple[Any, Tensor]:
        """The chosen half."""
        return inputs[0], inputs[1][: len(inputs[1]) // 2]

    def logps(self, network: nn.Module, inputs: tuple[Any, Tensor]) -> Tensor:
        """(2B,), chosen first."""
        logps: Tensor = self.inner.logps(network, inputs[0])
        return logps[inputs[1]]

    def lengths(self, inputs: tuple[Any, Tensor]) -> Tensor:
        """Numbers of scored tokens, (2B,)."""
        lengths: Tensor = self.inner.lengths(inputs[0])
        return lengths[inputs[1]]

    def scores(self, network: nn.Module, inputs: tuple[Any, Tensor]) -> Tensor:
        """(2B,), chosen first."""
        scores: Tensor = self.inner.scores(network, inputs[0])
        return scores[inputs[1]]


@dataclass(frozen=True, slots=True)
class Course:
    """How a network is trained: ``steps`` updates on ``batch_size`` groups of pairs each."""

    steps: int
    batch_size: int
    learning_rate: float
    lr_scheduler: str = "cosine"


def pair_source(texts: Texts, pairs: Pairs, course: Course, seed: int) -> FixedBatchSource:
    """Batches of the groups of ``pairs`` in an order drawn from ``seed``."""
    return FixedBatchSource(EpochOrder(len(pairs.groups) - 1, course.batch_size, seed), texts.batches(pairs), 1)


def fit(
    folder: Path, network: nn.Module, step: Step, source: BatchSource, course: Course, **settings: Any
) -> Mapping[str, float]:
    """Train ``network`` in place, in ``folder``; a training that was killed goes on, one that is done is read back.

    Returns the metrics of the last update.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(folder)
    network.requires_grad_(True)
    config = replace(
        TrainingConfig(
            max_train_steps=course.steps,
            learning_rate=course.learning_rate,
            lr_scheduler=course.lr_scheduler,  # type: ignore[arg-type]
            lr_warmup_steps=min(20, course.steps // 10),
            checkpointing_steps=200,
            checkpoints_total_limit=1,
        ),
        **settings,
    )
    optimizer = adamw(network.parameters(), course.learning_rate, weight_decay=0.0)
    accelerator = Accelerator(cpu=True)
    Trainer(accelerator, config, run, network, step, source, optimizer, lambda number, net: {}).fit()
    accelerator.free_memory()
    network.requires_grad_(False).eval()
    return {name: value for name, value in run.read_metrics()[-1].items() if isinstance(value, float)}
