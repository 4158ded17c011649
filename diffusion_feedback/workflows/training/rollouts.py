"""From a recipe to what a policy's own completions are made of: prompts, judge, pretraining texts, rollouts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ...config import Recipe
from ...data.texts import open_prompts, open_texts
from ...errors import UserError
from ...likelihoods.conversations import as_turns
from ...likelihoods.tokenization import Tokenization
from ...models.sharing import share_frozen
from ...objectives.policy_gradient import PolicyGradient
from ...records import Text, content_hash
from ...scorers.texts.checking import finite
from ...scorers.texts.loading import load_text_scorer
from ...training.order import PairOrder
from ...training.policy_gradient import PolicyGradientStep
from ...training.rollout_batches import Pretraining, RolloutBatch, RolloutSource
from ...training.rollouts import RolloutSampler
from ...training.token_rollouts import TokenCodec, completion_ids, drawn_sequence, draws_sequences, ends_in
from ...types import GenerativeTextModel, TextScorer, TokenSequence
from ..completing import plain_note
from .memory import weight_bytes
from .text_setup import length_of, set_chat_template


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts as texts and as token ids, with their identities, sorted by these: the order of files never matters."""

    texts: Sequence[Text]
    ids: Sequence[Sequence[int]]
    names: Sequence[str]
    max_new_tokens: int
    learns_values: bool

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def is_conversational(self) -> bool:
        """Whether the prompts are turns of conversations."""
        return not isinstance(self.texts[0], str)

    def head(self, number: int) -> PromptSet:
        """The first ``number`` prompts."""
        return replace(self, texts=self.texts[:number], ids=self.ids[:number], names=self.names[:number])

    def batch(self, indices: Sequence[int], draw: int) -> RolloutBatch[TokenSequence]:
        """The longest completions that there can be, worth nothing: what a pass takes is measured on them."""
        new = [0] * self.max_new_tokens
        sequences = [drawn_sequence(self.ids[i], new) for i in indices]
        lengths = torch.full((len(sequences),), self.max_new_tokens)
        zeros = torch.zeros(int(lengths.sum()))
        values = zeros if self.learns_values else None
        return RolloutBatch(sequences, lengths, zeros, zeros, zeros, values, values, {})


def text_name(text: Text) -> str:
    """Identity of a prompt by its content."""
    return content_hash(json.dumps(text, ensure_ascii=False, sort_keys=True))


def build_tokenization(recipe: Recipe, model: GenerativeTextModel) -> Tokenization:
    """Prompts leave room for ``rollouts.max_new_tokens``. Raises UserError where that leaves none for the prompt."""
    length = length_of(recipe, model)
    new = recipe.rollouts.max_new_tokens
    if new >= length:
        problem = f"rollouts.max_new_tokens: {new} tokens leave no room for a prompt in {length}"
        raise UserError(problem, "lower it, or raise text.max_length up to the model's window")
    set_chat_template(recipe, model.tokenizer)
    return Tokenization(model.tokenizer, length, max_completion_length=new)


def encode_prompts(
    texts: Sequence[Text], tokenization: Tokenization, algorithm: PolicyGradient, *, max_new_tokens: int
) -> PromptSet:
    """``texts`` as a set, each once."""
    by_name = {text_name(text): text for text in texts}
    names = sorted(by_name)
    unique = [by_name[name] for name in names]
    ids = tokenization.encode_prompts(unique)
    for text, tokens in zip(unique, ids, strict=True):
        if not tokens:
            raise UserError(f"data: the prompt {text!r} has no tokens", "leave it out")
    return PromptSet(unique, ids, names, max_new_tokens, algorithm.learns_values)


def load_prompts(
    recipe: Recipe,
    tokenization: Tokenization,
    algorithm: PolicyGradient,
    *,
    say: Callable[[str], None],
    heldout: bool = False,
) -> PromptSet | None:
    """The prompts to train on, or the held-out ones; None where a recipe names no held-out ones.

    ``say`` is told what was left aside.

    Raises UserError for bad rows, and where there are fewer prompts than an iteration takes.
    """
    data, rollouts = recipe.data, recipe.rollouts
    path = data.validation if heldout else data.train
    if path is None:
        return None
    split = data.validation_split if heldout else data.split
    texts = open_prompts(path, split=split, revision=data.revision, on_bad_row=data.on_bad_row, say=say)
    if recipe.text.chat_template is not None:
        texts = as_turns(texts)
    for note in plain_note(texts, tokenization.tokenizer, "text.chat_template, or "):
        say(f"note             {path}: {note}")
    prompts = encode_prompts(texts, tokenization, algorithm, max_new_tokens=rollouts.max_new_tokens)
    limit = data.max_validation_pairs if heldout else data.max_train_pairs
    prompts = prompts.head(limit) if limit else prompts
    if not heldout and len(prompts) < rollouts.num_prompts:
        problem = (
            f"rollouts.num_prompts: an iteration takes {rollouts.num_prompts}, and {path} has {len(prompts)} prompts"
        )
        raise UserError(problem, "lower rollouts.num_prompts, and raise num_generations for as many completions")
    return prompts


def load_pretraining(recipe: Recipe, model: GenerativeTextModel, updates: int) -> Pretraining[TokenSequence] | None:
    """The texts of ``rollouts.ptx_data``; of pairs the chosen completion. None where the recipe names none.

    ``updates`` is the number of completions of one update. Texts that recur are kept as often: they are a sample.
    Raises UserError for bad rows, and where there are fewer texts than an update takes.
    """
    rollouts = recipe.rollouts
    if rollouts.ptx_data is None:
        return None
    length = length_of(recipe, model)
    tokenization = Tokenization(model.tokenizer, length, chat_template=recipe.text.chat_template)
    reader = open_texts(
        rollouts.ptx_data, split=recipe.data.split, revision=recipe.data.revision, on_bad_row=recipe.data.on_bad_row
    )
    records = [replace(record, rejected=None, label=None, margin=0.0) for record in reader if record.label is not False]
    examples = sorted(tokenization.encode(records), key=lambda example: example.pair_id)
    size = rollouts.ptx_batch_size or updates
    if size > len(examples):
        problem = f"rollouts.ptx_batch_size: an update takes {size} texts, and {rollouts.ptx_data} has {len(examples)}"
        raise UserError(problem, "lower rollouts.ptx_batch_size, or give more texts")
    sequences = [example.chosen for example in examples]
    return Pretraining(sequences, PairOrder(len(sequences), size, recipe.training.seed), rollouts.ptx_coef)


def sequences_hash(sequences: Sequence[TokenSequence]) -> str:
    """Identity of token sequences and of what is scored in them."""
    return content_hash(*(part for each in sequences for part in (each.ids.tobytes(), each.scored.tobytes())))


class CompletionJudge:
    """Scores completions, given as the policy's token ids, by a scorer that reads texts with a tokenizer of its own.

    Where policy and scorer have one frozen base, it is held once; ``num_bytes`` is what the scorer takes besides.
    """

    def __init__(self, recipe: Recipe, model: GenerativeTextModel, device: torch.device) -> None:
        self.scorer: TextScorer = load_text_scorer(recipe.rollouts.reward, device)
        self.spec, self.tokenizer = recipe.rollouts.reward, model.tokenizer
        self.end_token_ids = frozenset(model.end_token_ids)
        judge = getattr(getattr(self.scorer, "judge", None), "model", None)
        self.num_bytes = 0
        if judge is not None:
            self.shared_bytes = share_frozen(judge, model.transformer)
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
class Sampler:
    """Draws completions under the policy as it is, in the precision that it is trained in."""

    model: GenerativeTextModel
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
    prompts: PromptSet,
    step: PolicyGradientStep,
    network: nn.Module,
    judge: CompletionJudge,
    sampler: Sampler,
    pretraining: Pretraining[TokenSequence] | None,
) -> RolloutSource[TokenSequence]:
    """Rollouts, and the passes of each update."""
    rollouts, accelerator = recipe.rollouts, sampler.accelerator
    share: Mapping[str, int] = {"processes": accelerator.num_processes, "rank": accelerator.process_index}
    rollout_sampler = RolloutSampler(
        prompts.ids,
        prompts.names,
        PairOrder(len(prompts), rollouts.num_prompts, recipe.training.seed),
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
