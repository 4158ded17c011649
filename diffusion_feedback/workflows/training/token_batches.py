"""The passes of a run on texts: like lengths under a budget of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...config.recipe import Recipe
from ...data.token_index import TokenIndex
from ...errors import UserError
from ...likelihoods.tokenization import Tokenization
from ...models.text_network import TokenModel
from ...scorers.texts.completion_scorer import quote
from ...training.order import EpochOrder
from ...training.sources import TokenSource, UnpairedSource, under_budget
from ...types.texts import TokenExample, UnpairedBatch
from .examples import Examples, RunData
from .given import Setup
from .text_examples import TextData, load_texts
from .tokenization import build_tokenization, describe_tokenizer


@dataclass(frozen=True, slots=True)
class TokenBatches(RunData):
    """The texts of a run as tokens, in passes.

    ``lengths`` are the tokens that each training example takes in a pass, ``num_tokens`` those that are seen up to the end
    of each update, padding not counted.
    """

    setup: Setup
    train: Examples
    heldout: Examples | None
    order: EpochOrder
    tokenization: Tokenization
    data: TextData
    lengths: Sequence[int]
    num_tokens: Sequence[int]

    @classmethod
    def load(cls, setup: Setup, model: TokenModel, *, share_prompt: bool) -> TokenBatches:
        """Read and tokenise training and held-out texts. Raises UserError as ``load_texts`` does, for a length beyond the
        model's window, and for a batch larger than the data, saying what became of the rows.
        """
        tokenization, training = build_tokenization(setup.recipe, model), setup.recipe.training
        data = load_texts(setup, tokenization)
        try:
            order = EpochOrder(len(data.train), setup.batch_size, training.seed, data.train.times)
        except UserError as error:
            reasons = [" ".join(note.split()) for note in data.notes]
            raise UserError("; ".join([error.problem, *reasons]), error.remedy) from error
        sizes = [
            sum(len(side) for side in (each.chosen, each.rejected) if side is not None) for each in data.train.examples
        ]
        seen = np.cumsum(
            [sum(sizes[i] for i in order.indices(step)) for step in range(training.steps(order.steps_per_epoch))]
        )
        is_unpaired = setup.objective.learns_from == "labels"
        train = MismatchedCompletions(data.train) if is_unpaired else data.train
        heldout = MismatchedCompletions(data.heldout) if is_unpaired and data.heldout is not None else data.heldout
        lengths = lengths_of(data.train, share_prompt=share_prompt)
        return cls(setup, train, heldout, order, tokenization, data, lengths, seen.tolist())

    def source(self) -> TokenSource | UnpairedSource:
        """The passes of each optimizer step, as the objective takes them.

        One on chosen samples alone is a mean over the tokens of the whole step, every other one a mean over its examples.
        """
        accelerator, learns_from = self.setup.accelerator, self.setup.objective.learns_from
        budget, train = budget_of(self.setup.recipe, self.lengths), self.data.train
        processes, rank = accelerator.num_processes, accelerator.process_index
        counts = [float(each.chosen.num_scored) for each in train.examples] if learns_from == "chosen" else None
        passes = TokenSource(self.order, train.batch, self.lengths, budget, processes, rank, counts)
        return UnpairedSource(passes, train.unpaired) if learns_from == "labels" else passes

    def metrics_of(self, number: int) -> Mapping[str, float]:
        """Tokens seen up to an update (number from 0), that one included."""
        return {"num_tokens": self.num_tokens[number]}

    def name_of(self, example_id: str) -> str:
        """The example of an id by the words that it begins with, for a message: its row is not kept."""
        example = next(each for each in self.data.train.examples if each.example_id == example_id)
        words = self.tokenization.tokenizer.decode(example.chosen.ids[:64].tolist(), skip_special_tokens=True)
        return f"pair {example_id}, {quote(words)}"

    def notes(self, model: TokenModel, adapters: Sequence[str]) -> list[str]:
        """What was left out or cut, what is adapted, and lengths."""
        examples = self.data.train.examples
        longest, mean = max(each.length for each in examples), sum(each.length for each in examples) / len(examples)
        # An example that is longer than the budget is a pass alone.
        most = max(budget_of(self.setup.recipe, self.lengths), *self.lengths)
        return [
            *self.data.notes,
            *adapters,
            *describe_tokenizer(model),
            f"tokens           {longest:,} in the longest example, {mean:.0f} on average; {most:,} per pass at most",
            *(f"note             {note}" for note in self.tokenization.counts.notes()),
        ]


@dataclass(frozen=True)
class MismatchedCompletions:
    """Labelled completions, each prompt beside a completion of the next other prompt of the index, around its end.

    Which one that is depends on the index alone, not on passes. Where all prompts are one, it is the next completion's.
    """

    index: TokenIndex

    @cached_property
    def partners(self) -> Sequence[int]:
        """Of each example, the number of the one whose completion its prompt meets."""
        prompts = [each.chosen.ids[: each.chosen.prompt_length].tobytes() for each in self.index.examples]
        number = len(prompts)
        partners = [(place + 1) % number for place in range(number)]
        if len(set(prompts)) == 1:
            return partners
        following = next(place for place in range(number) if prompts[place] != prompts[-1])
        for place in reversed(range(number)):
            after = partners[place]
            following = after if prompts[after] != prompts[place] else following
            partners[place] = following
        return partners

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, indices: Sequence[int], draw: int) -> UnpairedBatch:
        """The completions at ``indices``."""
        return self.index.unpaired(indices, [self.partners[index] for index in indices], draw)


def lengths_of(index: TokenIndex, *, share_prompt: bool) -> list[int]:
    """Tokens that each example takes in a pass: both sides of a pair, padded to the longer one."""

    def length(example: TokenExample) -> int:
        if example.rejected is None:
            return len(example.chosen)
        if share_prompt:
            return len(example.chosen) + len(example.rejected) - example.chosen.prompt_length
        return 2 * example.length

    return [length(example) for example in index.examples]


def budget_of(recipe: Recipe, lengths: Sequence[int]) -> int:
    """Tokens of one pass: ``train_batch_size`` examples as long as the longest, unless the recipe gives a number."""
    return recipe.text.max_tokens_per_pass or recipe.training.train_batch_size * max(lengths)


def passes_over(recipe: Recipe, index: TokenIndex, *, share_prompt: bool) -> list[list[int]]:
    """All examples of ``index``, longest first, in passes of like lengths."""
    lengths = lengths_of(index, share_prompt=share_prompt)
    by_length = sorted(range(len(index)), key=lambda number: (-lengths[number], number))
    return under_budget(by_length, lengths, budget_of(recipe, lengths))
