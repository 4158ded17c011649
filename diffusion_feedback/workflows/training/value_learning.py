"""From a recipe to a training run that learns values of tokens: language model, heads, trajectories, step, trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ...catalog import resolve
from ...config import Recipe
from ...data.trajectories import TrajectoryIndex, index_trajectories, open_trajectories
from ...errors import UserError
from ...likelihoods.tokenization import UNCUT, Tokenization
from ...likelihoods.tokens import TokenLikelihood
from ...models import lora, value_heads
from ...records import TextRecord, content_hash
from ...training.loop import Trainer
from ...training.order import PairOrder
from ...training.run_folder import RunFolder
from ...training.sources import TokenSource
from ...training.value_learning import ValueLearningStep, heldout_figures
from ...types import GenerativeTextModel, TokenExample
from .card import write_run_card
from .memory import weight_bytes
from .session import build_optimizer
from .text_setup import budget_of, describe_tokenizer, length_of, load_model, make_trainable, set_chat_template


def load_network(
    recipe: Recipe, device: torch.device
) -> tuple[GenerativeTextModel, value_heads.ValueNetwork, str, list[str]]:
    """The language model, it and its value heads as the network to train, the hash of what training starts from, and lines
    on the adapters.
    """
    path = recipe.model.pretrained_model_name_or_path
    causal_lm = load_model(recipe, path, device)
    network = value_heads.attach(causal_lm.network, path, seed=recipe.training.seed)
    base_hash = content_hash(causal_lm.model_hash(), value_heads.heads_hash(network.heads))
    adapters = make_trainable(recipe, causal_lm)
    return causal_lm, network, base_hash, adapters


def load_trajectories(
    recipe: Recipe,
    causal_lm: GenerativeTextModel,
    accelerator: Accelerator,
    *,
    heldout: bool = False,
    turns: list[bool] | None = None,
) -> TrajectoryIndex | None:
    """The training or the held-out trajectories as tokens; None where a recipe names no held-out ones.

    ``turns`` is told whether they are conversations.
    """
    data, text = recipe.data, recipe.text
    path = data.validation if heldout else data.train
    if path is None:
        return None
    split = data.validation_split if heldout else data.split
    reader = open_trajectories(path, split=split, revision=data.revision, on_bad_row=data.on_bad_row)
    length = length_of(recipe, causal_lm)
    set_chat_template(recipe, causal_lm.tokenizer)
    # No tokenised trajectory is cut: one that is too long is refused by name.
    tokenization = Tokenization(causal_lm.tokenizer, UNCUT)

    def encode(records: Sequence[TextRecord]) -> list[TokenExample]:
        if turns is not None:
            turns.extend(record.is_conversational for record in records[:1])
        return tokenization.encode(records)

    index = index_trajectories(
        reader,
        encode,
        max_length=length,
        max_completion_length=text.max_completion_length,
    )
    if reader.skipped:
        accelerator.print(f"{len(reader.skipped)} bad rows skipped in {path}; the first of them:")
        for _, reason in reader.skipped[:20]:
            accelerator.print(f"  {reason}")
    for note in [*reader.notes(), *tokenization.counts.notes()]:
        accelerator.print(f"note             {path}: {note}")
    limit = data.max_validation_pairs if heldout else data.max_train_pairs
    return index.head(limit) if limit else index


def check_apart(train: TrajectoryIndex, heldout: TrajectoryIndex | None) -> None:
    """Raise UserError where the held-out trajectories are the training ones."""
    if heldout is None:
        return
    known, asked = ({each.pair_id for each in index.trajectories} for index in (train, heldout))
    # Two walks may well take the same path; the same file twice is what must not be.
    if asked <= known:
        problem = f"data.validation: all of its {len(heldout)} trajectories are training trajectories too"
        raise UserError(problem, "give other files or another validation_split")


def trajectories_hash(index: TrajectoryIndex) -> str:
    """Identity of the tokens and rewards that a run learns from."""
    parts = (
        part
        for each in index.trajectories
        for part in (each.sequence.ids.tobytes(), np.packbits(each.sequence.scored).tobytes(), each.rewards.tobytes())
    )
    return content_hash(*parts)


class ValueLearningSession:
    """One training run of a language model and its value heads: ``fit`` trains, ``finish`` writes the result."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.causal_lm, self._network, self.base_hash, self.adapters = load_network(recipe, accelerator.device)
        self.step = ValueLearningStep(
            resolve("objective", recipe.objective["name"]),
            {key: value for key, value in recipe.objective.items() if key != "name"},
            TokenLikelihood(accelerator.device),
            self._network.heads,
            weighted=recipe.data.prompt_weights,
            autocast=accelerator.autocast,
        )
        self.step.check()
        self.optimizer = build_optimizer(recipe, self.parameters())
        turns: list[bool] = []
        train = load_trajectories(recipe, self.causal_lm, accelerator, turns=turns)
        assert train is not None
        self.is_chat = any(turns)
        self.train = train
        self.heldout = load_trajectories(recipe, self.causal_lm, accelerator, heldout=True)
        check_apart(self.train, self.heldout)
        size = recipe.training.train_batch_size * recipe.training.gradient_accumulation_steps
        self.order = PairOrder(len(train), size * accelerator.num_processes, recipe.training.seed)

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self._network

    def parameters(self) -> list[nn.Parameter]:
        """What is trained: the language model or its adapters, and the heads without their targets."""
        return [parameter for _, parameter in lora.trainable(self.network)]

    def frozen_bytes(self) -> dict[str, int]:
        """Nothing is held besides the network, which contains the targets."""
        return {}

    def notes(self) -> list[str]:
        """How much is learnt from, and how large the heads are beside the model."""
        actions, returns = sum(self.train.counts), [float(each.rewards.sum()) for each in self.train.trajectories]
        heads = weight_bytes(self._network.heads.parameters()) / weight_bytes(self._network.parameters())
        return [
            *self.adapters,
            *describe_tokenizer(self.causal_lm),
            f"actions          {actions:,} tokens with rewards; returns {min(returns):g} to {max(returns):g}, "
            f"mean {sum(returns) / len(returns):.3f}",
            f"value heads      {100 * heads:.0f} % of the network's weights, targets included",
        ]

    def source(self) -> TokenSource:
        """The passes of each optimizer step: like lengths together, divided by the number of actions."""
        recipe, accelerator, lengths = self.recipe, self.accelerator, self.train.lengths
        return TokenSource(
            self.order,
            self.train.batch,
            lengths,
            budget_of(recipe, lengths),
            accelerator.num_processes,
            accelerator.process_index,
            counts=self.train.counts,
        )

    def fit(self, folder: RunFolder) -> Trainer:
        """Train to the end, in ``folder``."""
        recipe = self.recipe
        trainer = Trainer(
            self.accelerator,
            recipe.training,
            folder,
            self.network,
            self.step,
            self.source(),
            self.optimizer,
            look=self.look,
            look_every=recipe.validation.steps,
            identity={"base": self.base_hash, "trajectories": trajectories_hash(self.train)},
        )
        trainer.fit()
        return trainer

    def look(self, step: int, network: nn.Module) -> Mapping[str, float]:
        """Losses and values on the held-out trajectories."""
        if self.heldout is None:
            return {}
        size = self.recipe.training.train_batch_size
        return heldout_figures(
            self.step, network, self.heldout.batch, num_trajectories=len(self.heldout), batch_size=size
        )

    def finish(self, trainer: Trainer) -> None:
        """Write the language model (or its adapter), the heads, and the model card, which marks the run as complete."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            folder: Path = trainer.folder.path
            with trainer.result():
                self.causal_lm.save(self._network.language_model, folder)
                value_heads.save(self._network.heads, folder)
            write_run_card("value_learning", trainer, self.recipe, is_chat=self.is_chat)
        self.accelerator.wait_for_everyone()
