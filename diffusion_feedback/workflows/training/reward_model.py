"""A run of a reward model on pairs of completions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ...likelihoods.rewards import SequenceRewards
from ...training.reward import RewardStep, reward_accuracy
from ...training.run_folder import RunFolder
from ...types.models import TextModel
from .base_model import base_model, make_trainable
from .card import tokenizer_facts
from .given import Setup
from .session import Session
from .steps import judging_settings
from .text_examples import examples_hash
from .token_batches import TokenBatches, passes_over


def reward_model_session(setup: Setup) -> Session:
    """Load the model (a head that it lacks is drawn from the recipe's seed) and the pairs. Raises UserError for bad input."""
    recipe, accelerator = setup.recipe, setup.accelerator
    model: TextModel = base_model(setup, seed=recipe.training.seed)
    base_hash = model.model_hash()
    texts = TokenBatches.load(setup, model, share_prompt=False)
    adapters = make_trainable(recipe, model)
    step = RewardStep(SequenceRewards(accelerator.device), **judging_settings(setup))
    step.check()

    def evaluate(step_number: int, network: nn.Module, folder: RunFolder) -> Mapping[str, float]:
        heldout = texts.data.heldout
        if heldout is None:
            return {}
        return reward_accuracy(step, network, heldout.batch, passes_over(recipe, heldout, share_prompt=False))

    return Session(
        recipe=recipe,
        accelerator=accelerator,
        network=model.network,
        step=step,
        train=texts.data.train,
        heldout=texts.data.heldout,
        order=texts.order,
        source=texts.source(),
        identity={"base": base_hash, "examples": examples_hash(texts.data.train.examples)},
        evaluate=evaluate,
        evaluates_first=True,
        save=model.save,
        written_files=model.written_files(),
        card="reward_model",
        card_facts=lambda: {"is_chat": texts.data.is_conversational, "tokenizer": tokenizer_facts(model)},
        notes=texts.notes(model, adapters),
        metrics_of=texts.num_tokens(),
        name_of=texts.name_of,
    )
