"""A run in which a language model and heads on it learn the values of tokens from trajectories with rewards."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from ...data.trajectories import TrajectoryIndex, index_trajectories, open_trajectories
from ...likelihoods.tokenization import UNCUT, Tokenization
from ...likelihoods.tokens import TokenLikelihood
from ...models import value_heads
from ...models.causal_lm import CausalLM
from ...records import TextRecord, content_hash
from ...training.heldout import even_passes, step_sums
from ...training.order import EpochOrder
from ...training.run_folder import RunFolder
from ...training.sources import TokenSource
from ...training.value_learning import ValueLearningStep
from ...types.texts import TokenExample
from .base_model import base_model, make_trainable
from .examples import RunData, check_apart, note_skipped
from .given import Setup
from .memory import weight_bytes
from .session import Session, step_parts
from .token_batches import budget_of
from .tokenization import describe_tokenizer, length_of, set_chat_template

log = logging.getLogger(__name__)


def value_learning_session(setup: Setup) -> Session:
    """Load the model, give it its heads, and load the trajectories. Raises UserError for bad input."""
    recipe = setup.recipe
    model: CausalLM = base_model(setup)
    path = recipe.model.pretrained_model_name_or_path
    network = value_heads.attach(model.network, path, seed=recipe.training.seed)
    base_hash = content_hash(model.model_hash(), value_heads.heads_hash(network.heads))
    adapters = make_trainable(setup, model)
    step = ValueLearningStep(step_parts(setup, TokenLikelihood(setup.accelerator.device)), network.heads)
    step.check()
    trajectories = Trajectories.load(setup, model)

    def evaluate(step_number: int, network: nn.Module, folder: RunFolder) -> Mapping[str, float]:
        heldout = trajectories.heldout
        if heldout is None:
            return {}
        passes = even_passes(len(heldout), recipe.training.train_batch_size)
        return step_sums(step, network, heldout.batch, passes, "trajectories").means()

    def save(trained: nn.Module, folder: Path) -> None:
        model.save(network.language_model, folder)
        value_heads.save_value_heads(network.heads, folder)

    return Session(
        data=trajectories,
        network=network,
        step=step,
        source=trajectories.source(),
        identity={"base": base_hash, "trajectories": trajectories_hash(trajectories.train)},
        evaluate=evaluate,
        save=save,
        written_files=[*model.written_files(), value_heads.FILE_NAME],
        card="value_learning",
        card_facts=lambda: {"is_chat": trajectories.are_conversations},
        notes=[*adapters, *describe_tokenizer(model), *_notes(trajectories.train, network)],
    )


def _notes(train: TrajectoryIndex, network: value_heads.ValueNetwork) -> list[str]:
    """How much is learnt from, and how large the heads are beside the model."""
    actions, returns = sum(train.counts), [float(each.rewards.sum()) for each in train.trajectories]
    heads = weight_bytes(network.heads.parameters()) / weight_bytes(network.parameters())
    return [
        f"actions          {actions:,} tokens with rewards; returns {min(returns):g} to {max(returns):g}, "
        f"mean {sum(returns) / len(returns):.3f}",
        f"value heads      {100 * heads:.0f} % of the network's weights, targets included",
    ]


@dataclass(frozen=True, slots=True)
class Trajectories(RunData):
    """The trajectories of a run as tokens."""

    setup: Setup
    train: TrajectoryIndex
    heldout: TrajectoryIndex | None
    order: EpochOrder
    are_conversations: bool

    @classmethod
    def load(cls, setup: Setup, model: CausalLM) -> Trajectories:
        """Read and tokenise training and held-out trajectories.

        Raises UserError for bad rows, and where the held-out trajectories are the training ones: two walks may well take
        the same path, but the same file twice is what must not be.
        """
        train, are_conversations = load_trajectories(setup, model)
        order = EpochOrder(len(train), setup.batch_size, setup.recipe.training.seed)
        if setup.data(heldout=True) is None:
            return cls(setup, train, None, order, are_conversations)
        heldout, _ = load_trajectories(setup, model, heldout=True)
        ids = ([each.example_id for each in index.trajectories] for index in (train, heldout))
        check_apart("trajectories", *ids, may_share=True)
        return cls(setup, train, heldout, order, are_conversations)

    def source(self) -> TokenSource:
        """Passes of like lengths, divided by the number of actions."""
        train, accelerator = self.train, self.setup.accelerator
        budget = budget_of(self.setup.recipe, train.lengths)
        processes, rank = accelerator.num_processes, accelerator.process_index
        return TokenSource(self.order, train.batch, train.lengths, budget, processes, rank, train.counts)


def load_trajectories(setup: Setup, model: CausalLM, *, heldout: bool = False) -> tuple[TrajectoryIndex, bool]:
    """The training or the held-out trajectories as tokens, and whether they are conversations."""
    recipe, data = setup.recipe, setup.only_data("trajectories", heldout=heldout)
    assert data is not None  # who has none does not read them
    reader = open_trajectories(data, **setup.reading(heldout=heldout))
    length = length_of(recipe, model)
    set_chat_template(recipe, model.tokenizer)
    # No tokenised trajectory is cut: one that is too long is refused by name.
    tokenization = Tokenization(model.tokenizer, UNCUT)
    turns: list[bool] = []

    def encode(records: Sequence[TextRecord]) -> list[TokenExample]:
        turns.extend(record.is_conversational for record in records[:1])
        return tokenization.encode(records)

    index = index_trajectories(
        reader, encode, max_length=length, max_completion_length=recipe.text.max_completion_length
    )
    note_skipped(reader.log.name, [reason for _, reason in reader.log.skipped])
    for note in [*reader.notes, *tokenization.counts.notes()]:
        log.warning("note             %s: %s", reader.log.name, note)
    return index.head(setup.limit(heldout=heldout)), any(turns)


def trajectories_hash(index: TrajectoryIndex) -> str:
    """Identity of the tokens and rewards that a run learns from."""
    parts = (
        part
        for each in index.trajectories
        for part in (each.sequence.ids.tobytes(), np.packbits(each.sequence.scored).tobytes(), each.rewards.tobytes())
    )
    return content_hash(*parts)
