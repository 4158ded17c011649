"""Completions that a policy draws, who judges them, and the updates that are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ...config.recipe import Recipe
from ...models.causal_lm import CausalLM
from ...objectives.policy_gradient import PolicyGradient
from ...records import Text
from ...scorers.texts.completion_scorer import finite
from ...scorers.texts.loading import load_text_scorer
from ...training.order import EpochOrder
from ...training.policy_gradient import PolicyGradientStep
from ...training.rollout_batches import Pretraining, RolloutSource
from ...training.rollouts import RolloutSampler
from ...training.token_rollouts import TokenCodec, completion_ids, draws_sequences, ends_in
from ...types.texts import TextScorer, TokenSequence
from ...weights import share_frozen
from .given import Setup
from .memory import weight_bytes
from .rollout_prompts import RolloutPrompts


class CompletionJudge:
    """Scores completions, given as the policy's token ids, by a scorer that reads texts with a tokenizer of its own.

    Where policy and scorer have one frozen base, it is held once; ``num_bytes`` is what the scorer takes besides.
    """

    def __init__(self, setup: Setup, model: CausalLM) -> None:
        self.spec, self.tokenizer = setup.recipe.rollouts.reward, model.tokenizer
        own: TextScorer | None = setup.given.reward
        self.scorer = own if own is not None else load_text_scorer(self.spec, setup.accelerator.device)
        self.end_token_ids = frozenset(model.end_token_ids)
        judge = getattr(self.scorer, "network", None)
        self.num_bytes = 0
        if judge is not None:
            self.shared_bytes = share_frozen(judge, model.library_model)
            self.num_bytes = weight_bytes(judge.parameters()) - self.shared_bytes

    def text(self, completion: Sequence[int], prompt: Text) -> Text:
        """The completion as text, or as the assistant's turn where the prompt is a conversation."""
        words = str(
            self.tokenizer.decode(list(completion), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
        return words if isinstance(prompt, str) else ({"role": "assistant", "content": words},)

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Sequence[int]]) -> list[float]:
        """One finite score a completion. Raises UserError naming prompt and completion where there is none."""
        texts = [self.text(ids, prompt) for ids, prompt in zip(completions, prompts, strict=True)]
        finished = [bool(ids) and ids[-1] in self.end_token_ids for ids in completions]
        return finite(self.scorer.score(prompts, texts, finished), prompts, texts, self.spec)


@dataclass(frozen=True, slots=True)
class PolicySampler:
    """Draws completions under the policy as it is, in the precision that it is trained in."""

    model: CausalLM
    accelerator: Accelerator
    max_new_tokens: int
    temperature: float

    def __call__(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[list[int]]:
        """One completion for each prompt and seed."""
        with self.accelerator.autocast():
            drawn: list[list[int]] = self.model.sample(
                self.model.network,
                prompts,
                seeds,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
            )
        return drawn


def build_source(
    recipe: Recipe,
    algorithm: PolicyGradient,
    prompts: RolloutPrompts,
    step: PolicyGradientStep,
    network: nn.Module,
    judge: CompletionJudge,
    sampler: PolicySampler,
    pretraining: Pretraining[TokenSequence] | None,
) -> RolloutSource[TokenSequence]:
    """Rollouts, and the passes of each update."""
    rollouts, accelerator = recipe.rollouts, sampler.accelerator
    share: Mapping[str, int] = {"processes": accelerator.num_processes, "rank": accelerator.process_index}
    rollout_sampler = RolloutSampler(
        prompts.ids,
        prompts.names,
        EpochOrder(len(prompts), rollouts.num_prompts, recipe.training.seed),
        rollouts.num_generations,
        draw=draws_sequences(sampler),
        is_finished=ends_in(sampler.model.end_token_ids),
        judge=lambda indices, samples: judge([prompts.texts[i] for i in indices], list(map(completion_ids, samples))),
        measure=lambda sequences: step.measure(network, sequences),
        seed=recipe.training.seed,
        batch_size=rollouts.batch_size,
        missing_eos_penalty=rollouts.missing_eos_penalty,
        reward_clip=rollouts.reward_clip,
        gather=gather_object if accelerator.num_processes > 1 else list,
        **share,
    )
    return RolloutSource(
        rollout_sampler,
        TokenCodec(),
        algorithm,
        rollouts.num_prompts * rollouts.num_generations,
        rollouts.num_generations,
        num_ppo_epochs=rollouts.num_ppo_epochs,
        num_mini_batches=rollouts.num_mini_batches,
        seed=recipe.training.seed,
        pass_size=recipe.training.train_batch_size,
        max_tokens=recipe.text.max_tokens_per_pass,
        pretraining=pretraining,
        **share,
    )
