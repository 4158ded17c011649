"""Conversations through a chat template: their text, and which parts of it the assistant says.

What the assistant says begins after the template's opening of its turn and goes to the end of the turn, its mark
included: a model that is not taught the mark does not stop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..documents import read_text
from ..errors import UserError, first_line
from ..foreign import apply_template
from ..records import Message, Text, TextRecord
from ..types.models import Tokenizer

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# What the template is called with; a row's own arguments must not take their place.
_OURS = frozenset({
    "conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "return_dict",
    "return_assistant_tokens_mask", "padding", "truncation", "max_length", "return_tensors", "tokenizer_kwargs",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class SideText:
    """One side of an example as text: ``spans`` are its scored parts, each from the end of one beginning of ``full`` to
    the end of another; ``skipped`` counts the assistant's turns that are not scored.
    """

    full: str
    spans: Sequence[tuple[str, str]]
    skipped: int = 0


def read_template(path: str | Path | None) -> str | None:
    """The Jinja template in the file ``path``. Raises UserError where it cannot be read, or holds nothing."""
    if path is None:
        return None
    try:
        template = read_text(Path(path), "give a text file with a Jinja chat template")
    except UserError as error:
        raise UserError(f"text.chat_template: {error.problem}", error.remedy) from error
    if not template.strip():
        # Every conversation would be an empty text.
        raise UserError(f"text.chat_template: {path} is empty", "give a text file with a Jinja chat template")
    return template


@dataclass(frozen=True, slots=True)
class Conversations:
    """Renders conversations with ``template``, or the tokenizer's own."""

    tokenizer: Tokenizer
    template: str | None = None

    def marks_assistant(self, record: TextRecord) -> bool:
        """Whether the template itself says which tokens are the assistant's."""
        return _GENERATION.search(self._template(record.template, record.source)) is not None

    def render(
        self, messages: Sequence[Message], arguments: Mapping[str, object], where: str, *, opening: bool = False
    ) -> str:
        """The text of ``messages``; ``opening``: and the beginning of an answer. Raises UserError naming ``where``."""
        text = self._apply(messages, arguments, where, add_generation_prompt=opening, tokenize=False)
        assert isinstance(text, str)
        return text

    def side(self, record: TextRecord, prompt: Sequence[Message], completion: Sequence[Message]) -> SideText:
        """``completion`` after ``prompt``; scored is what the assistant says in it, turn by turn.

        Some templates render earlier turns otherwise than the last one (Qwen3 drops their thoughts), so that the model
        will never be where such a turn was said: of a demonstration only the turns that stand in the whole as they were
        said are scored, the last one at least. Raises UserError for a completion in which the assistant says nothing, a
        template that drops its turn, and for preferences under a template that rewrites one of its turns.
        """
        where, arguments = record.source, record.template
        messages = [*prompt, *completion]
        turns = [n for n in range(len(prompt), len(messages)) if messages[n].get("role") == "assistant"]
        if not turns:
            remedy = "a completion holds at least one message of the role assistant, with content"
            raise UserError(f"{where}: the assistant says nothing", remedy)
        full = self.render(messages, arguments, where)
        spans: list[tuple[str, str]] = []
        may_skip = record.rejected is None and record.label is None
        for turn in turns:
            opened = self.render(messages[:turn], arguments, where, opening=True)
            closed = full if turn + 1 == len(messages) else self.render(messages[: turn + 1], arguments, where)
            if not closed.startswith(opened):
                # Some templates open a turn with words that it need not have, such as an empty thought.
                before = self.render(messages[:turn], arguments, where) if turn else ""
                self._check(before, closed, where)
            if full.startswith(closed):
                spans.append((opened, closed))
            elif not may_skip:
                raise _prefix_error(where)
        if not spans:
            raise _prefix_error(where)
        return SideText(full, spans, len(turns) - len(spans))

    def _check(self, before: str, closed: str, where: str) -> None:
        if closed == before:
            remedy = "give another template with text.chat_template"
            raise UserError(f"{where}: the chat template leaves the assistant's turn out", remedy)
        if not closed.startswith(before):
            raise _prefix_error(where)

    def marked(self, record: TextRecord, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Token ids of ``messages``, and 1 for each that the template says is the assistant's."""
        given = self._apply(
            messages,
            record.template,
            record.source,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return list(given["input_ids"]), list(given["assistant_masks"])

    def _template(self, arguments: Mapping[str, object], where: str) -> str:
        try:
            return str(self.tokenizer.get_chat_template(self.template, arguments.get("tools")))
        except ValueError as error:
            remedy = "give one with text.chat_template, or use a model that was tuned on conversations"
            raise UserError(f"{where}: a conversation, and the tokenizer has no chat template", remedy) from error

    def _apply(self, messages: Sequence[Message], arguments: Mapping[str, object], where: str, **how: object) -> Any:
        template = self._template(arguments, where)
        for name in arguments:
            if name in _OURS:
                remedy = "a row's arguments are tools, documents, and what its chat template reads"
                raise UserError(f"{where}: {name!r} cannot be an argument of the chat template", remedy)
        turns = [dict(message) for message in messages]
        try:
            return apply_template(self.tokenizer, turns, chat_template=template, **how, **arguments)
        except Exception as error:
            # A template is a program: it may divide by zero, call itself for ever, or ask for all memory there is.
            problem = f"{where}: the chat template does not take this conversation: {first_line(error)}"
            raise UserError(problem, "change the row, or give another template with text.chat_template") from error


def as_turns(prompts: Sequence[Text]) -> list[Text]:
    """``prompts`` as conversations: a plain text becomes the user's turn."""
    return [({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt for prompt in prompts]


def _prefix_error(where: str) -> UserError:
    problem = f"{where}: the chat template renders the beginning of this conversation otherwise than the whole"
    remedy = "give a template that only appends, or that marks the assistant's words with {% generation %}"
    return UserError(problem, f"{remedy} (text.chat_template); or end the completion with its first answer")
