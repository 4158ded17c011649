"""What texts become as tokens: lengths, what is cut, and whether the model is taught to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import UserError
from ..likelihoods.tokenization import Tokenization
from ..records import TextRecord
from ..types.models import Tokenizer
from ..types.texts import TokenExample, TokenSequence

# The stop token may be followed by what the template puts between turns, such as a line break.
_TAIL = 3
_NO_LIMIT = 2**30


class TokenCheck:
    """A tally of examples as tokens; gathers the rows that cannot become tokens instead of stopping at them.

    ``tokenizer`` is one of transformers'; ``max_length`` is its own limit where it is not given. Raises UserError as
    ``Tokenization`` does.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        name: str,
        max_length: int | None = None,
        max_completion_length: int | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.name, self.has_template, self.num_plain = name, chat_template is not None, 0
        limit = min(int(tokenizer.model_max_length), _NO_LIMIT)
        self.max_length = limit if max_length is None else max_length
        self.tokenization = Tokenization(tokenizer, self.max_length, max_completion_length, chat_template)
        self.prompts: list[int] = []
        self.completions: list[int] = []
        self.refused: list[str] = []
        self.num_turns = 0
        self.num_stopping = 0

    @property
    def has_limit(self) -> bool:
        """Whether the number of tokens is limited at all."""
        return self.max_length < _NO_LIMIT

    @property
    def is_ready(self) -> bool:
        """Whether every example becomes tokens, and conversations end with a stop token."""
        return not self.refused and (self.num_stopping > 0 or not self.num_turns)

    def add(self, records: Sequence[TextRecord]) -> None:
        """Take in ``records``; those that cannot become tokens are noted."""
        counts = replace(self.tokenization.counts)
        try:
            examples = self.tokenization.encode(records)
        except UserError as error:
            self.tokenization.counts = counts
            if len(records) == 1:
                self.refused.append(f"{error.problem} -> {error.remedy}")
                return
            # Halves find the few bad rows among many in few calls.
            middle = len(records) // 2
            self.add(records[:middle])
            self.add(records[middle:])
            return
        for record, example in zip(records, examples, strict=True):
            self._count(record, example)

    def _count(self, record: TextRecord, example: TokenExample) -> None:
        self.prompts.append(example.chosen.prompt_length)
        self.num_plain += not record.is_conversational
        for sequence in (example.chosen, example.rejected):
            if sequence is not None:
                self.completions.append(sequence.num_scored)
                # Of a completion that was cut nothing can be said.
                if record.is_conversational and len(sequence) < self.max_length:
                    self.num_turns += 1
                    self.num_stopping += self._stops(sequence)

    def _stops(self, sequence: TokenSequence) -> bool:
        tokenizer = self.tokenization.tokenizer
        stops = {tokenizer.eos_token_id, *tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
        return any(int(token) in stops for token in sequence.ids[sequence.scored][-_TAIL:])
