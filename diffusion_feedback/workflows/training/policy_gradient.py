"""A run in which a language model learns from its own judged completions: PPO, GRPO, RLOO.

One network holds everything that is trained. Under PPO a value head of two layers reads the hidden states of the
policy's trunk; its gradient reaches the trunk, scaled by ``vf_coef``, and one optimizer trains both. Under adapters the
base is held once: it is the reference with the adapters switched off, and a reward model that grew from it shares its
weights. Under full tuning the reference is a frozen copy. What is saved is the policy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ...config.recipe import Recipe
from ...errors import plural
from ...likelihoods.tokenization import Tokenization
from ...likelihoods.tokens import TokenLikelihood
from ...models.actor_critic import ActorCritic
from ...models.causal_lm import CausalLM
from ...objectives.policy_gradient import PolicyGradient
from ...records import Text, content_hash
from ...training.order import EpochOrder
from ...training.policy_gradient import PolicyGradientStep
from ...training.rollout_batches import Pretraining
from ...types.texts import TokenSequence
from .base_model import FrozenReference, base_model, frozen_reference, make_trainable
from .drawn import source_of_prompts
from .examples import RunData, check_apart
from .given import Setup
from .rollout_evaluation import RolloutEvaluation
from .rollout_prompts import RolloutPrompts, encode_prompts, load_pretraining, load_prompts, sequences_hash
from .rollout_source import CompletionJudge, PolicySampler, build_source
from .session import Session
from .tokenization import build_tokenization, describe_tokenizer, tokenizer_facts

# Nats a token by which the log-probabilities of one and the same text differ between batches, by precision.
_ROUNDING = {"no": 1e-2, "bf16": 0.5, "fp16": 0.1}


@dataclass(frozen=True, slots=True)
class Prompts(RunData):
    """The prompts of a run, and how they are read."""

    setup: Setup
    tokenization: Tokenization
    algorithm: PolicyGradient
    train: RolloutPrompts
    heldout: RolloutPrompts | None
    order: EpochOrder

    @classmethod
    def load(cls, setup: Setup, model: CausalLM, algorithm: PolicyGradient) -> Prompts:
        """Raises UserError for bad rows, too few prompts, and held-out ones that are training prompts."""
        tokenization = build_tokenization(setup.recipe, model, room_for=setup.recipe.rollouts.max_new_tokens)
        train = load_prompts(setup, tokenization, algorithm)
        assert train is not None
        heldout = load_prompts(setup, tokenization, algorithm, heldout=True)
        if heldout is not None:
            check_apart("prompts", train.names, heldout.names)
        order = EpochOrder(len(train), setup.recipe.rollouts.num_prompts, setup.recipe.training.seed)
        return cls(setup, tokenization, algorithm, train, heldout, order)

    def prompts(self) -> Sequence[Text]:
        """Those that completions are drawn for."""
        return self.train.texts

    def evaluated(self) -> RolloutPrompts:
        """The recipe's own prompts, the held-out ones, or where there are none the first ones for training."""
        recipe, validation = self.setup.recipe, self.setup.recipe.validation
        if not validation.prompts:
            return self.heldout if self.heldout is not None else self.train.head(max(1, validation.num_prompts))
        chat = self.train.is_conversational
        texts: list[Text] = [({"role": "user", "content": text},) if chat else text for text in validation.prompts]
        new = recipe.rollouts.max_new_tokens
        return encode_prompts(texts, self.tokenization, self.algorithm, max_new_tokens=new)

    def plan(self) -> list[str]:
        """Lines on prompts, completions and updates of the run."""
        rollouts, steps = self.setup.recipe.rollouts, self.max_train_steps
        completions = rollouts.num_prompts * rollouts.num_generations
        iterations = -(-steps // (rollouts.num_ppo_epochs * rollouts.num_mini_batches))
        return [
            f"prompts          {len(self.train)} for training, {self.held_out()}",
            f"iteration        {rollouts.num_prompts} prompts x {rollouts.num_generations} = {completions} completions",
            f"updates          {rollouts.num_ppo_epochs} epochs x {rollouts.num_mini_batches} parts of "
            f"{completions // rollouts.num_mini_batches} completions, over {plural(self.setup.accelerator.num_processes, 'process')}",
            f"steps            {self.length}: {iterations} iterations, {iterations * completions:,} completions",
        ]

    @property
    def steps_per_epoch(self) -> int:
        """Updates in one pass through the prompts."""
        rollouts = self.setup.recipe.rollouts
        return self.order.steps_per_epoch * rollouts.num_ppo_epochs * rollouts.num_mini_batches


def policy_gradient_session(setup: Setup) -> Session:
    """Load the model, its reference, the prompts and the judge. Raises UserError for bad input."""
    recipe, accelerator = setup.recipe, setup.accelerator
    rollouts, device = recipe.rollouts, accelerator.device
    algorithm: PolicyGradient = setup.objective.function(**setup.objective_settings)
    model: CausalLM = base_model(setup)
    base_hash = model.model_hash()
    prompts = Prompts.load(setup, model, algorithm)
    completions = rollouts.num_prompts * rollouts.num_generations // rollouts.num_mini_batches
    pretraining = load_pretraining(setup, model, completions)
    reference = FrozenReference.none("the KL has no weight")
    if algorithm.kl_coef > 0:
        reference = frozen_reference(recipe, model, base_hash, device, model.tokenizer)
    adapters = make_trainable(setup, model, base_hash)
    judge = CompletionJudge(setup, model)
    network: nn.Module = model.network
    if algorithm.learns_values:
        network = ActorCritic(model.network, seed=recipe.training.seed)
    step = _step(setup, algorithm, model, reference, base_hash)
    sampler = PolicySampler(model, accelerator, rollouts.max_new_tokens, rollouts.temperature)

    evaluated, has_heldout = prompts.evaluated(), prompts.heldout is not None
    num_shown = min(recipe.validation.num_prompts, len(evaluated))

    return Session(
        data=prompts,
        network=network,
        step=step,
        source=build_source(recipe, algorithm, prompts.train, step, network, judge, sampler, pretraining),
        identity=_identity(base_hash, prompts, judge, reference, pretraining),
        evaluate=RolloutEvaluation(
            evaluated,
            sampler,
            judge,
            lambda sequences: step.measure(network, sequences),
            seed=recipe.validation.seed,
            batch_size=rollouts.batch_size,
            pages=recipe.validation.num_prompts,
            source=source_of_prompts(recipe, num_shown, has_heldout=has_heldout, are_spread=False),
        ),
        evaluates_first=True,
        save=lambda trained, folder: model.save(model.network, folder),
        written_files=model.written_files(),
        card="policy_gradient",
        card_facts=lambda: {
            "is_heldout": has_heldout,
            "is_chat": prompts.train.is_conversational,
            "tokenizer": tokenizer_facts(model),
        },
        notes=[*adapters, *describe_tokenizer(model), *_notes(recipe, prompts, judge, reference, pretraining)],
        frozen_bytes=_frozen_bytes(reference, judge),
    )


def _step(
    setup: Setup,
    algorithm: PolicyGradient,
    model: CausalLM,
    reference: FrozenReference,
    base_hash: str,
) -> PolicyGradientStep:
    recipe, accelerator = setup.recipe, setup.accelerator
    return PolicyGradientStep(
        algorithm,
        TokenLikelihood(accelerator.device, temperature=recipe.rollouts.temperature),
        TokenLikelihood(accelerator.device),
        reference.give,
        language_model=lambda network: model.network,
        autocast=accelerator.autocast,
        starts_at_reference=reference.is_start_of(recipe, base_hash),
        gate_tolerance=_ROUNDING[recipe.training.mixed_precision],
    )


def _identity(
    base_hash: str,
    prompts: Prompts,
    judge: CompletionJudge,
    reference: FrozenReference,
    pretraining: Pretraining[TokenSequence] | None,
) -> dict[str, str]:
    identity = {"base": base_hash, "prompts": content_hash(*prompts.train.names), "reward": judge.scorer.recipe_id}
    if pretraining is not None:
        identity["pretraining texts"] = sequences_hash(pretraining.samples)
    return identity | reference.identity()


def _frozen_bytes(reference: FrozenReference, judge: CompletionJudge) -> dict[str, int]:
    """The reference, where it is a model of its own, and what the judge takes."""
    held = {"reference": reference.num_bytes, "reward": judge.num_bytes}
    return {name: count for name, count in held.items() if count}


def _notes(
    recipe: Recipe,
    prompts: Prompts,
    judge: CompletionJudge,
    reference: FrozenReference,
    pretraining: Pretraining[TokenSequence] | None,
) -> list[str]:
    """Lengths, what was cut, and who judges and compares."""
    longest = max(map(len, prompts.train.ids))
    lines = [
        f"tokens           {longest} in the longest prompt, {recipe.rollouts.max_new_tokens} in a completion",
        f"reward           {judge.scorer.recipe_id}",
        f"reference        {reference.description}",
    ]
    if pretraining is not None:
        texts, size = len(pretraining.samples), pretraining.order.batch_size
        lines.append(f"pretraining      {size} of {texts:,} texts an update, weight {pretraining.coef:g}")
    if cut := prompts.tokenization.counts.cut_prompts:
        lines.append(f"cut              {plural(cut, 'prompt')} at the beginning")
    return lines
