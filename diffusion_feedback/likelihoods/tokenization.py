"""Texts to tokens: prompt and completion tokenised together, the end token exactly once, masks that come from lengths.

The prompt ends where its own tokens and those of prompt + completion part, on either side of a pair: a last token that
merges with the completion belongs to the completion, and neither text loses a character. Completions that a model has
drawn keep the tokens that it drew, after the prompt's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..records import Message, Text, TextRecord
from ..types.models import Tokenizer
from ..types.texts import TokenExample, TokenSequence
from .conversations import Conversations, SideText, read_template
from .token_counts import TokenCounts

UNCUT = 2**31  # a length that no text has
_AT_ONCE = 1024
_TAIL = 3  # tokens that may be white space behind a stop token


@dataclass(slots=True)
class _Side:
    """Tokens of one side, and the ``spans`` of them (from, to) that are scored; the first begins where the prompt ends.

    ``is_drawn``: a model drew the completion, and ended it or did not.
    """

    ids: list[int]
    spans: list[tuple[int, int]]
    is_moved: bool = False
    is_drawn: bool = False

    @property
    def prompt(self) -> int:
        """Tokens before the completion."""
        return self.spans[0][0]


class Tokenization:
    """Turns records of texts into tokens.

    ``tokenizer`` is one of transformers'. ``max_length`` >= 2 bounds prompt and completion together: prompts lose tokens
    at their beginning (not the beginning token), then completions at their end. ``max_completion_length`` >= 1 bounds
    completions alone. ``chat_template`` is a file with a Jinja template, in place of the tokenizer's own. ``vocab_size``:
    number of tokens that the model knows. ``counts`` tells what was cut and added so far.
    Raises UserError for values out of range and a template that cannot be read.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_length: int,
        max_completion_length: int | None = None,
        chat_template: str | Path | None = None,
        *,
        vocab_size: int | None = None,
    ) -> None:
        if max_length < 2:
            remedy = "2 or more: a prompt's last token and a completion's first"
            raise UserError(f"text.max_length: got {max_length!r}", f"allowed: {remedy}")
        if max_completion_length is not None and max_completion_length < 1:
            raise UserError(f"text.max_completion_length: got {max_completion_length!r}", "allowed: 1 or more")
        self.tokenizer, self.max_length, self.vocab_size = tokenizer, max_length, vocab_size
        self.max_completion_length = max_completion_length or max_length
        self.conversations = Conversations(tokenizer, read_template(chat_template))
        self.counts = TokenCounts()
        # The tokenizer would look them up each time.
        self._begin, self._end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._around = (0, 0)
        self._stops = _stop_tokens(tokenizer)
        self._doubled: set[str] = set()

    def encode(self, records: Sequence[TextRecord]) -> list[TokenExample]:
        """One example a record, in order.

        Raises UserError naming the row for an empty completion, chosen and rejected that are the same, a conversation
        that no chat template takes, and a plain text where the tokenizer has no end token.
        """
        examples: list[TokenExample] = []
        for start in range(0, len(records), _AT_ONCE):
            examples += self._encode(records[start : start + _AT_ONCE])
        return examples

    def encode_prompts(self, prompts: Sequence[Text]) -> list[list[int]]:
        """Token ids of each prompt, ready to be completed: conversations with the opening of the assistant's turn.

        Prompts lose tokens at their beginning, and are counted, where less than ``max_completion_length`` (1 where it is
        not given) tokens would be left for the completion.
        """
        space = self.max_completion_length if self.max_completion_length < self.max_length else 1
        encoded = []
        for ids, prompt in zip(self._open(prompts), prompts, strict=True):
            encoded.append(self._cut_left(ids, len(ids), max(0, len(ids) + space - self.max_length)))
            self.counts.cut_prompts += len(encoded[-1]) < len(ids)
            self.counts.doubled_begins += isinstance(prompt, str) and prompt in self._doubled
        return encoded

    def _open(self, prompts: Sequence[Text]) -> list[list[int]]:
        """Token ids of each prompt as a model completes it, of any length."""
        texts = [
            text
            if isinstance(text, str)
            else self.conversations.render(text, {}, f"prompt {str(text[-1]['content'])[:60]!r}", opening=True)
            for text in prompts
        ]
        plain = self._tokenize(text for text, prompt in zip(texts, prompts, strict=True) if isinstance(prompt, str))
        turns = self._tokenize(
            (text for text, prompt in zip(texts, prompts, strict=True) if not isinstance(prompt, str)), special=False
        )
        behind = self._around[1]
        return [
            plain[text][: len(plain[text]) - behind] if isinstance(prompt, str) else turns[text]
            for text, prompt in zip(texts, prompts, strict=True)
        ]

    def _encode(self, records: Sequence[TextRecord]) -> list[TokenExample]:
        planned = [self._plan(record) for record in records]
        texts: tuple[list[str], list[str]] = ([], [])
        for record, sides in zip(records, planned, strict=True):
            for side in sides:
                if isinstance(side, SideText):
                    texts[record.is_conversational].extend([side.full, *(text for span in side.spans for text in span)])
        plain, turns = self._tokenize(texts[False]), self._tokenize(texts[True], special=False)
        examples = []
        for record, sides in zip(records, planned, strict=True):
            has_turns = record.is_conversational
            tokens = turns if has_turns else plain
            examples.append(self._example(record, [self._side(side, tokens, is_rendered=has_turns) for side in sides]))
            if not has_turns:
                fulls = [side.full for side in sides if isinstance(side, SideText)]
                self.counts.doubled_begins += any(full in self._doubled for full in fulls)
        return examples

    def _plan(self, record: TextRecord) -> list[SideText | _Side]:
        """The sides of ``record``, chosen first, as texts, or as tokens where the template marks them."""
        completions = [record.chosen, *([record.rejected] if record.rejected is not None else [])]
        if len(completions) == 2 and completions[0] == completions[1]:
            raise UserError(f"{record.source}: chosen and rejected are the same", "leave the row out")
        for name, completion in zip(("chosen", "rejected"), completions, strict=False):
            if isinstance(completion, str) != isinstance(record.chosen, str):
                raise UserError(f"{record.source}: one side is a text, the other a conversation", "make both alike")
            if _is_empty(completion):
                raise UserError(f"{record.source}: {name} is empty", "give a completion, or leave the row out")
        return self._drawn(record) or [self._plan_side(record, completion) for completion in completions]

    def _drawn(self, record: TextRecord) -> list[SideText | _Side]:
        """The sides of a record with the tokens that a model drew; none where this tokenizer does not spell them so."""
        if record.token_ids is None:
            return []
        texts = [_single(side) for side in (record.chosen, record.rejected)]
        how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        spelt = [self.tokenizer.decode(list(ids), **how) for ids in record.token_ids]
        if spelt != texts or not all(record.token_ids) or record.template:
            self.counts.other_token_ids += 1
            return []
        (prompt,) = self._open([record.prompt])
        ends = [len(prompt) + len(ids) for ids in record.token_ids]
        return [
            _Side([*prompt, *ids], [(len(prompt), end)], is_drawn=True)
            for ids, end in zip(record.token_ids, ends, strict=True)
        ]

    def _plan_side(self, record: TextRecord, completion: Text) -> SideText | _Side:
        prompt = record.prompt
        if isinstance(completion, str):
            if not isinstance(prompt, str):
                raise UserError(
                    f"{record.source}: the prompt is a conversation, the completion is not", "make them alike"
                )
            return SideText(prompt + completion, [(prompt, prompt + completion)])
        if isinstance(prompt, str):
            if prompt:
                raise UserError(
                    f"{record.source}: the completion is a conversation, the prompt is not", "make them alike"
                )
            if self.conversations.marks_assistant(record):
                return self._marked(record, completion)
            prompt = ()
        side = self.conversations.side(record, prompt, completion)
        self.counts.skipped_answers += side.skipped
        return side

    def _marked(self, record: TextRecord, messages: Sequence[Message]) -> _Side:
        """A conversation whose template marks what the assistant says."""
        ids, mask = self.conversations.marked(record, messages)
        scored = np.array(mask, np.bool_)
        if not scored.any():
            remedy = "check the row's roles, and where {% generation %} stands in the template"
            raise UserError(f"{record.source}: the chat template marks nothing as the assistant's", remedy)
        # A turn whose stop token stands right behind the mark would teach everything but stopping.
        special = set(self.tokenizer.all_special_ids) | set(getattr(self.tokenizer, "added_tokens_decoder", {}))
        is_special = np.array([token in special for token in ids], np.bool_)
        stops = np.flatnonzero(scored[:-1] & ~scored[1:] & ~is_special[:-1] & is_special[1:]) + 1
        scored[stops] = True
        self.counts.added_stop_tokens += len(stops)
        borders = np.flatnonzero(np.diff(scored, prepend=False, append=False)).tolist()
        return _Side(ids, list(zip(borders[::2], borders[1::2], strict=True)))

    def _tokenize(self, texts: Iterable[str], *, special: bool = True) -> dict[str, list[int]]:
        """Token ids of the distinct ``texts``, in one call; ``special``: with what the tokenizer puts around a text."""
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return {}
        if special:
            self._around = added_tokens(self.tokenizer)
        given = self.tokenizer(
            distinct,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids = dict(zip(distinct, given["input_ids"], strict=True))
        if special and self._around[0]:
            front = self._around[0]
            # Texts that were rendered before come with what the tokenizer puts in front of them.
            self._doubled = {text for text, tokens in ids.items() if tokens[front : 2 * front] == tokens[:front]}
            ids |= {text: ids[text][front:] for text in self._doubled}
        return ids

    def _side(self, side: SideText | _Side, tokens: Mapping[str, list[int]], *, is_rendered: bool) -> _Side:
        if isinstance(side, _Side):
            return side
        ids = tokens[side.full]
        spans, is_moved = [], False
        behind = 0 if is_rendered else self._around[1]
        for opened, closed in side.spans:
            start, end = common_prefix(tokens[opened], ids), len(ids)
            is_moved |= start < len(tokens[opened]) - behind and side.full.startswith(opened)
            if closed != side.full:
                end = common_prefix(tokens[closed], ids)
                # A token that spans the border belongs to what comes before it here: the end of the turn is scored.
                end += end < len(tokens[closed])
            spans.append((start, end))
        return _Side(ids, spans, is_moved)

    def _example(self, record: TextRecord, sides: list[_Side]) -> TokenExample:
        if not record.is_conversational:
            for side in sides:
                if not side.is_drawn:
                    self._end_once(side, record)
        if record.prompt:
            # One border for both sides, so that they have the same prompt.
            border = min(side.prompt for side in sides)
            for side in sides:
                side.spans[0] = border, side.spans[0][1]
        for side in sides:
            if len(side.ids) <= side.prompt:
                raise UserError(
                    f"{record.source}: a completion has no token", "give a completion, or leave the row out"
                )
            if self.vocab_size is not None and max(side.ids) >= self.vocab_size:
                problem = f"{record.source}: token {max(side.ids)} is beyond the model's {self.vocab_size} tokens"
                raise UserError(problem, "use the tokenizer that the model was trained with")
        sequences = self._cut(record, sides)
        self.counts.examples += 1
        self.counts.moved_borders += any(side.is_moved for side in sides)
        return TokenExample(
            example_id=record.example_id,
            chosen=sequences[0],
            rejected=sequences[1] if len(sequences) == 2 else None,
            label=record.label,
            margin=record.margin,
            chosen_probability=record.chosen_probability,
            weight=record.weight,
        )

    def _end_once(self, side: _Side, record: TextRecord) -> None:
        """Let a plain completion end with exactly one end token."""
        end = self._end
        if end is None:
            remedy = "use one that has, or conversations, whose turns end by their chat template"
            raise UserError(f"{record.source}: a plain text, and the tokenizer has no end token", remedy)
        bare = len(side.ids)
        while bare > side.prompt and side.ids[bare - 1] == end:
            bare -= 1
        if bare == len(side.ids) and bare == side.prompt:
            return
        if len(side.ids) - bare <= self._around[1]:  # the text itself has none
            if self._is_closed(side.ids[side.prompt : bare]):
                self.counts.own_end_tokens += 1
                side.ids = side.ids[:bare]
                side.spans = [(side.prompt, bare)]
                return
            self.counts.added_end_tokens += bare == len(side.ids)
        side.ids = [*side.ids[:bare], end]
        side.spans = [(side.prompt, bare + 1)]

    def _cut(self, record: TextRecord, sides: list[_Side]) -> list[TokenSequence]:
        over = []
        for side in sides:
            kept = side.prompt + min(len(side.ids) - side.prompt, self.max_completion_length)
            over.append(max(0, kept - self.max_length))
        if len({tuple(side.ids[: side.prompt]) for side in sides}) == 1:
            over = [max(over)] * len(sides)
        before = [len(side.ids) for side in sides]
        cut = [self._cut_side(side, drop, record) for side, drop in zip(sides, over, strict=True)]
        lost = [was - len(sequence) for was, sequence in zip(before, cut, strict=True)]
        from_prompt = [side.prompt - sequence.prompt_length for side, sequence in zip(sides, cut, strict=True)]
        self.counts.cut_prompts += any(from_prompt)
        self.counts.cut_completions += sum(total > own for total, own in zip(lost, from_prompt, strict=True))
        self.counts.cut_alike += len(cut) == 2 and any(lost) and np.array_equal(cut[0].ids, cut[1].ids)
        return cut

    def _cut_side(self, side: _Side, drop: int, record: TextRecord) -> TokenSequence:
        ids = self._cut_left(side.ids, side.prompt, drop)
        prompt = side.prompt - (len(side.ids) - len(ids))
        stop = min(len(ids), self.max_length, prompt + self.max_completion_length)
        scored = np.zeros(stop, np.bool_)
        shift = side.prompt - prompt
        for start, end in side.spans:
            scored[start - shift : end - shift] = True
        scored[0] = False  # nothing predicts the first token
        if not scored.any():
            problem = f"{record.source}: no token of a completion of {len(side.ids) - side.prompt} can be scored"
            raise UserError(problem, "nothing predicts the first token of a text: give a prompt, or longer texts")
        return TokenSequence(np.array(ids[:stop], np.int32), scored, prompt)

    def _cut_left(self, ids: list[int], prompt: int, drop: int) -> list[int]:
        """``ids`` without ``drop`` tokens of its prompt, of which one is left; the beginning token stays."""
        begins = prompt > 0 and ids[0] == self._begin
        drop = min(drop, max(0, prompt - 1))
        return [*ids[:begins], *ids[begins + drop :]] if drop else ids

    def _is_closed(self, completion: Sequence[int]) -> bool:
        """Whether a completion ends by a stop token of a chat template, with white space behind it at most."""
        for token in reversed(completion[-_TAIL:]):
            if token in self._stops:
                return True
            if self.tokenizer.decode([token]).strip():
                return False
        return False


def added_tokens(tokenizer: Tokenizer) -> tuple[int, int]:
    """How many tokens the tokenizer puts in front of a text of its own accord, and how many behind it."""
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    front = next((n for n in range(len(whole) - len(bare) + 1) if whole[n : n + len(bare)] == bare), 0)
    return front, len(whole) - len(bare) - front


def _stop_tokens(tokenizer: Tokenizer) -> set[int]:
    """The special tokens that may end a text: a chat template's and the tokenizer's own."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).items()
    no_stops = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "unk", "mask")}
    special = {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}
    return (special - no_stops) | {number for number in (tokenizer.eos_token_id,) if number is not None}


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two lists have in common from the start."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    return next(position for position in range(most) if one[position] != other[position])


def _single(completion: Text | None) -> str | None:
    """A completion as a text: itself, or the content of its only turn; None for others."""
    if completion is None or isinstance(completion, str):
        return completion
    return completion[0].get("content") if len(completion) == 1 else None


def _is_empty(completion: Text) -> bool:
    """Whether a completion says nothing: no character, no turn, or turns with neither content nor calls of tools."""
    if isinstance(completion, str):
        return not completion
    return not any(value for message in completion for name, value in message.items() if name != "role")
