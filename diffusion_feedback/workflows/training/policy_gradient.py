"""From a recipe to a run in which a language model learns from its own judged completions: PPO, GRPO, RLOO.

One network holds everything that is trained. Under PPO a value head of two layers reads the hidden states of the
policy's trunk; its gradient reaches the trunk, scaled by ``vf_coef``, and one optimizer trains both. Under adapters the
base is held once: it is the reference with the adapters switched off, and a reward model that grew from it shares its
weights. Under full tuning the reference is a frozen copy. What is saved is the policy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from torch import nn

from ...catalog import resolve
from ...config import Recipe
from ...errors import UserError
from ...likelihoods.tokens import TokenLikelihood
from ...models import lora
from ...models.actor_critic import ActorCritic
from ...objectives.policy_gradient import PolicyGradient
from ...records import Text, content_hash
from ...training.loop import Trainer
from ...training.order import PairOrder
from ...training.policy_gradient import PolicyGradientStep
from ...training.run_folder import RunFolder
from .card import tokenizer_facts, write_run_card
from .rollout_samples import Look
from .rollouts import (
    CompletionJudge,
    PromptSet,
    Sampler,
    build_source,
    build_tokenization,
    encode_prompts,
    load_pretraining,
    load_prompts,
    sequences_hash,
)
from .session import build_optimizer
from .text_setup import describe_tokenizer, frozen_reference, load_model, make_trainable

# Nats a token by which the log-probabilities of one and the same text differ between batches, by precision.
_ROUNDING = {"no": 1e-2, "bf16": 0.5, "fp16": 0.1}


class PolicyGradientSession:
    """One training run from rollouts: ``fit`` trains, ``finish`` writes the result."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        rollouts, device = recipe.rollouts, accelerator.device
        self.algorithm = _build_algorithm(recipe)
        self.model = load_model(recipe, recipe.model.pretrained_model_name_or_path, device)
        self.base_hash = self.model.model_hash()
        self.tokenization = build_tokenization(recipe, self.model)
        train = load_prompts(recipe, self.tokenization, self.algorithm, say=accelerator.print)
        assert train is not None
        self.train, self.heldout = (
            train,
            load_prompts(recipe, self.tokenization, self.algorithm, say=accelerator.print, heldout=True),
        )
        _check_apart(self.train, self.heldout)
        self.order = PairOrder(len(train), rollouts.num_prompts, recipe.training.seed)
        completions = rollouts.num_prompts * rollouts.num_generations // rollouts.num_mini_batches
        self.pretraining = load_pretraining(recipe, self.model, completions)
        needs_reference = self.algorithm.kl_coef > 0
        self.reference = frozen_reference(recipe, self.model, self.base_hash, device) if needs_reference else None
        self.adapters = make_trainable(recipe, self.model)
        self.judge = CompletionJudge(recipe, self.model, device)
        self._network: nn.Module = self.model.network
        if self.algorithm.learns_values:
            self._network = ActorCritic(self.model.network, seed=recipe.training.seed)
        self.step = self._build_step()
        self.sampler = Sampler(self.model, accelerator, rollouts.max_new_tokens, rollouts.temperature)
        self.optimizer = build_optimizer(recipe, self.parameters())

    def _build_step(self) -> PolicyGradientStep:
        accelerator, precision = self.accelerator, self.recipe.training.mixed_precision
        return PolicyGradientStep(
            self.algorithm,
            TokenLikelihood(accelerator.device, temperature=self.recipe.rollouts.temperature),
            TokenLikelihood(accelerator.device),
            None if self.reference is None else self.reference.give,
            language_model=lambda network: self.model.network,
            autocast=accelerator.autocast,
            starts_at_reference=self.reference is not None and self.reference.weights_hash == self.base_hash,
            gate_tolerance=_ROUNDING[precision],
        )

    @property
    def network(self) -> nn.Module:
        """The network that is trained: the policy, and under PPO its value head."""
        return self._network

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for _, parameter in lora.trainable(self.network)]

    def frozen_bytes(self) -> dict[str, int]:
        """The reference, where it is a model of its own, and what the judge takes."""
        reference = self.reference.num_bytes if self.reference is not None else 0
        found = {"reference": reference, "reward": self.judge.num_bytes}
        return {name: count for name, count in found.items() if count}

    def plan(self) -> list[str]:
        """Prompts, completions and updates of the run."""
        rollouts, steps = self.recipe.rollouts, self.recipe.training.max_train_steps
        completions = rollouts.num_prompts * rollouts.num_generations
        updates = rollouts.num_ppo_epochs * rollouts.num_mini_batches
        iterations = -(-steps // updates)
        held = "none held out" if self.heldout is None else f"{len(self.heldout)} held out"
        return [
            f"prompts          {len(self.train)} for training, {held}",
            f"iteration        {rollouts.num_prompts} prompts x {rollouts.num_generations} = {completions} completions",
            f"updates          {rollouts.num_ppo_epochs} epochs x {rollouts.num_mini_batches} parts of "
            f"{completions // rollouts.num_mini_batches} completions, over {self.accelerator.num_processes} processes",
            f"steps            {steps}: {iterations} iterations, {iterations * completions:,} completions",
        ]

    def notes(self) -> list[str]:
        """Lengths, what was cut, and who judges and compares."""
        longest = max(map(len, self.train.ids))
        lines = [
            *self.adapters,
            *describe_tokenizer(self.model),
            f"tokens           {longest} in the longest prompt, {self.recipe.rollouts.max_new_tokens} in a completion",
            f"reward           {self.judge.scorer.recipe_id}",
            f"reference        {self._reference_note()}",
        ]
        if self.pretraining is not None:
            texts, size = len(self.pretraining.samples), self.pretraining.order.batch_size
            lines.append(f"pretraining      {size} of {texts:,} texts an update, weight {self.pretraining.coef:g}")
        if self.tokenization.counts.cut_prompts:
            lines.append(f"cut              {self.tokenization.counts.cut_prompts:,} prompts at their beginning")
        return lines

    def _reference_note(self) -> str:
        if self.reference is None:
            return "none: the KL has no weight"
        model = self.recipe.model
        if model.reference_model_name_or_path is not None:
            return f"{model.reference_model_name_or_path}: a model of its own"
        how = "a frozen copy" if model.tuning == "full" else "the adapters switched off"
        return f"the model as loaded: {how}"

    def fit(self, folder: RunFolder) -> Trainer:
        """Draw, judge and learn to the end, in ``folder``."""
        recipe, accelerator = self.recipe, self.accelerator
        for line in [*self.plan(), *self.notes()]:
            accelerator.print(line)
        source = build_source(
            recipe, self.algorithm, self.train, self.step, self.network, self.judge, self.sampler, self.pretraining
        )
        look = Look(
            self._looked_at(),
            self.sampler,
            self.judge,
            lambda sequences: self.step.measure(self.network, sequences),
            folder,
            seed=recipe.validation.seed,
            batch_size=recipe.rollouts.batch_size,
            pages=recipe.validation.num_prompts,
        )
        trainer = Trainer(
            accelerator,
            recipe.training,
            folder,
            self.network,
            self.step,
            source,
            self.optimizer,
            look=look,
            look_every=recipe.validation.steps,
            identity=self._identity(),
            look_first=True,
        )
        trainer.fit()
        return trainer

    def _looked_at(self) -> PromptSet:
        """The recipe's own prompts, the held-out ones, or where there are none the first ones for training."""
        validation = self.recipe.validation
        if validation.prompts:
            chat = self.train.is_conversational
            texts: list[Text] = [({"role": "user", "content": text},) if chat else text for text in validation.prompts]
            new = self.recipe.rollouts.max_new_tokens
            return encode_prompts(texts, self.tokenization, self.algorithm, max_new_tokens=new)
        return self.heldout if self.heldout is not None else self.train.head(max(1, validation.num_prompts))

    def _identity(self) -> dict[str, str]:
        found = {
            "base": self.base_hash,
            "prompts": content_hash(*self.train.names),
            "reward": self.judge.scorer.recipe_id,
        }
        if self.reference is not None:
            found["reference"] = self.reference.weights_hash
        if self.pretraining is not None:
            found["pretraining texts"] = sequences_hash(self.pretraining.samples)
        return found

    def finish(self, trainer: Trainer) -> None:
        """Write the policy alone (or its adapter), tokenizer and model card, which marks the run as complete."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with trainer.result():
                self.model.save(self.model.network, trainer.folder.path)
            is_heldout, is_chat = self.heldout is not None, self.train.is_conversational
            facts = {"is_heldout": is_heldout, "is_chat": is_chat, "tokenizer": tokenizer_facts(self.model)}
            write_run_card("policy_gradient", trainer, self.recipe, **facts)
        self.accelerator.wait_for_everyone()


def _build_algorithm(recipe: Recipe) -> PolicyGradient:
    settings: Mapping[str, Any] = {key: value for key, value in recipe.objective.items() if key != "name"}
    algorithm: PolicyGradient = resolve("objective", recipe.objective["name"])(**settings)
    return algorithm


def _check_apart(train: PromptSet, heldout: PromptSet | None) -> None:
    shared = set(train.names) & set(heldout.names) if heldout is not None else set()
    if heldout is not None and shared:
        problem = f"data.validation: {len(shared)} of its {len(heldout)} prompts are training prompts too"
        raise UserError(problem, "give other files or another validation_split")
