"""Prompts that a policy's own completions begin with, and the texts that it must not unlearn."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...data.places import name_of_data
from ...data.texts import open_prompts, open_texts
from ...errors import UserError
from ...likelihoods.conversations import as_turns
from ...likelihoods.tokenization import Tokenization
from ...models.causal_lm import CausalLM
from ...objectives.policy_gradient import PolicyGradient
from ...records import Text, content_hash
from ...training.order import EpochOrder
from ...training.rollout_batches import Pretraining, RolloutBatch
from ...training.token_rollouts import drawn_sequence
from ...types.texts import TokenSequence
from ..sampling import plain_note
from .given import Setup
from .tokenization import length_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RolloutPrompts:
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

    def head(self, number: int | None) -> RolloutPrompts:
        """The first ``number`` prompts; all for None."""
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


def encode_prompts(
    texts: Sequence[Text], tokenization: Tokenization, algorithm: PolicyGradient, *, max_new_tokens: int
) -> RolloutPrompts:
    """``texts`` as a set, each once."""
    by_name = {text_name(text): text for text in texts}
    names = sorted(by_name)
    unique = [by_name[name] for name in names]
    ids = tokenization.encode_prompts(unique)
    for text, tokens in zip(unique, ids, strict=True):
        if not tokens:
            raise UserError(f"data: the prompt {text!r} has no tokens", "leave it out")
    return RolloutPrompts(unique, ids, names, max_new_tokens, algorithm.learns_values)


def load_prompts(
    setup: Setup, tokenization: Tokenization, algorithm: PolicyGradient, *, heldout: bool = False
) -> RolloutPrompts | None:
    """The prompts to train on, or the held-out ones; None where a recipe names no held-out ones.

    Notes what was left aside. Raises UserError for bad rows, and where there are fewer prompts than an iteration takes.
    """
    recipe, rollouts = setup.recipe, setup.recipe.rollouts
    given = setup.only_data("prompts", heldout=heldout)
    if given is None:
        return None
    path = name_of_data(given)
    texts = open_prompts(given, say=log.warning, **setup.reading(heldout=heldout))
    if recipe.text.chat_template is not None:
        texts = as_turns(texts)
    for note in plain_note(texts, tokenization.tokenizer, "text.chat_template, or "):
        log.warning("note             %s: %s", path, note)
    prompts = encode_prompts(texts, tokenization, algorithm, max_new_tokens=rollouts.max_new_tokens)
    prompts = prompts.head(setup.limit(heldout=heldout))
    if not heldout and len(prompts) < rollouts.num_prompts:
        problem = (
            f"rollouts.num_prompts: an iteration takes {rollouts.num_prompts}, and {path} has {len(prompts)} prompts"
        )
        raise UserError(problem, "lower rollouts.num_prompts, and raise num_generations for as many completions")
    return prompts


def load_pretraining(setup: Setup, model: CausalLM, updates: int) -> Pretraining[TokenSequence] | None:
    """The texts of ``rollouts.ptx_data``; of pairs the chosen completion. None where the recipe names none.

    ``updates`` is the number of completions of one update. Texts that recur are kept as often: they are a sample.
    Raises UserError for bad rows, and where there are fewer texts than an update takes.
    """
    recipe, rollouts = setup.recipe, setup.recipe.rollouts
    if rollouts.ptx_data is None:
        return None
    length = length_of(recipe, model)
    tokenization = Tokenization(model.tokenizer, length, chat_template=recipe.text.chat_template)
    reader = open_texts(rollouts.ptx_data, **{**setup.reading(heldout=False), "columns": None})
    records = [replace(record, rejected=None, label=None, margin=0.0) for record in reader if record.label is not False]
    examples = sorted(tokenization.encode(records), key=lambda example: example.example_id)
    size = rollouts.ptx_batch_size or updates
    if size > len(examples):
        problem = f"rollouts.ptx_batch_size: an update takes {size} texts, and {rollouts.ptx_data} has {len(examples)}"
        raise UserError(problem, "lower rollouts.ptx_batch_size, or give more texts")
    sequences = [example.chosen for example in examples]
    return Pretraining(sequences, EpochOrder(len(sequences), size, recipe.training.seed), rollouts.ptx_coef)


def sequences_hash(sequences: Sequence[TokenSequence]) -> str:
    """Identity of token sequences and of what is scored in them."""
    return content_hash(*(part for each in sequences for part in (each.ids.tobytes(), each.scored.tobytes())))
