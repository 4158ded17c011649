"""A run of a reward model on pairs of completions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ...likelihoods.rewards import SequenceRewards
from ...models.reward_model import RewardModel
from ...training.judging import JudgingStep, judging_sums
from ...training.run_folder import RunFolder
from .base_model import base_model, make_trainable
from .given import Setup
from .session import Session, step_parts
from .text_examples import examples_hash
from .token_batches import TokenBatches, passes_over
from .tokenization import tokenizer_facts


def reward_model_session(setup: Setup) -> Session:
    """Load the model (a head that it lacks is drawn from the recipe's seed) and the pairs. Raises UserError for bad input."""
    recipe = setup.recipe
    model: RewardModel = base_model(setup, seed=recipe.training.seed)
    base_hash = model.model_hash()
    texts = TokenBatches.load(setup, model, share_prompt=False)
    adapters = make_trainable(setup, model)
    step = JudgingStep(step_parts(setup, SequenceRewards(setup.accelerator.device)))
    step.check()

    def evaluate(step_number: int, network: nn.Module, folder: RunFolder) -> Mapping[str, float]:
        heldout = texts.data.heldout
        if heldout is None:
            return {}
        passes = passes_over(recipe, heldout, share_prompt=False)
        sums = judging_sums(step, network, heldout.batch, passes)
        folder.log_heldout(step_number, [each.example_id for each in heldout.examples], sums.of_each(passes))
        means = sums.means()
        more = {"loss": means["loss"], "margin": means["rewards/margins"], "mean_reward": means["mean_reward"]}
        return sums.accuracy() | more

    return Session(
        data=texts,
        network=model.network,
        step=step,
        source=texts.source(),
        identity={"base": base_hash, "examples": examples_hash(texts.data.train.examples)},
        evaluate=evaluate,
        evaluates_first=True,
        save=model.save,
        written_files=model.written_files(),
        card="reward_model",
        card_facts=lambda: {"is_chat": texts.data.is_conversational, "tokenizer": tokenizer_facts(model)},
        notes=texts.notes(model, adapters),
    )
