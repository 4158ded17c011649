"""A language model to a sampler of texts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.texts import open_prompts
from ..errors import UserError, visible
from ..generation.completions import Completion
from ..likelihoods.conversations import as_turns, read_template
from ..likelihoods.prompt_ends import open_ended
from ..likelihoods.tokenization import Tokenization
from ..models.causal_lm import CausalLM
from ..prompts import check_prompts
from ..records import Message, Text
from ..types.models import Tokenizer
from .sampling import open_model
from .settings import CompletionSampling, GenerationSettings, ModelSource
from .training.base_model import recorded_family

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TextSampler:
    """A loaded language model that turns prompts and seeds into completions as ``sampling`` says."""

    model: CausalLM
    sampling: CompletionSampling

    @classmethod
    def over(cls, model: CausalLM, sampling: CompletionSampling) -> TextSampler:
        """A sampler of ``model``. Raises UserError where a completion leaves no room for a prompt."""
        most = sampling.max_new_tokens
        if most >= model.window:
            problem = f"{most} new tokens leave no room for a prompt in the model's window of {model.window}"
            raise UserError(problem, "draw fewer tokens")
        return cls(model, sampling)

    @property
    def settings(self) -> dict[str, object]:
        """What a file of completions records besides prompts, seeds and the hash of the model."""
        template = self.sampling.chat_template
        own = {"chat_template": read_template(template)} if template else {}
        return {**self._call, **own, "dtype": str(self.model.library_model.dtype).removeprefix("torch.")}

    @property
    def _call(self) -> dict[str, Any]:
        return {name: getattr(self.sampling, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p")}

    @property
    def _tokenization(self) -> Tokenization:
        own = self.sampling
        return Tokenization(self.model.tokenizer, self.model.window, own.max_new_tokens, own.chat_template)

    def encode(self, prompts: Sequence[Text]) -> list[list[int]]:
        """Token ids of ``prompts``, cut at their beginning where they leave no room for a completion."""
        return self._tokenization.encode_prompts(prompts)

    def notes(self, prompts: Sequence[Text]) -> list[str]:
        """What should be known of ``prompts`` before they are completed, in plain words."""
        tokenizer, tokenization = self.model.tokenizer, self._tokenization
        tokenization.encode_prompts(prompts)
        notes = [*plain_note(prompts, tokenizer, "`as_turns`, or "), *tokenization.counts.notes()]
        if ends := open_ended(tokenizer, prompts):
            words = f"{len(ends):,} prompts end inside what may be one token (the first: {visible(ends[0][-20:])!r})"
            notes.append(f"{words}: a model that learnt it whole cannot write its rest; leave a last space out")
        return notes

    def __call__(self, prompts: Sequence[Text], seeds: Sequence[int]) -> list[Completion]:
        """One completion of each prompt, under its own seed."""
        drawn = self.model.sample(self.model.network, self.encode(prompts), seeds, **self._call)
        ends = self.model.end_token_ids
        return [Completion(self.decode(ids), tuple(ids), bool(ids) and ids[-1] in ends) for ids in drawn]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a completion, without its end token and other special ones."""
        return self.model.tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def open_text_sampler(
    model: object,
    source: ModelSource,
    sampling: CompletionSampling,
    generation: GenerationSettings,
    *,
    tokenizer: Tokenizer | None = None,
) -> TextSampler:
    """A sampler of ``model``: a folder, a hub id, or a transformers model that is loaded, with its ``tokenizer``.

    Raises UserError where it cannot be used, and for one that writes no texts.
    """
    recorded = recorded_family(model) if isinstance(model, str) else None
    source = replace(source, family=source.family or recorded or "causal_lm")
    text_model: CausalLM = open_model(model, source, generation, tokenizer)
    if not hasattr(text_model, "sample"):
        name = model if isinstance(model, str) else type(model).__name__
        raise UserError(f"{name}: reads texts, and writes none", "give a causal language model")
    return TextSampler.over(text_model, sampling)


def text_prompts(prompts: str | Path | Sequence[str | Sequence[Message]], *, in_turns: bool = False) -> list[Text]:
    """The different ones of ``prompts``: a list of them, or a file in any of the formats that are trained on.

    ``in_turns``: plain ones become the user's turn. What was left aside is noted in the log. Raises UserError for none.
    """
    if isinstance(prompts, str | Path):
        texts = open_prompts(prompts, say=lambda line: logger.warning("%s", line))
    else:
        check_prompts(prompts, or_turns=True)
        given: list[Text] = [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in prompts]
        texts = list({repr(prompt): prompt for prompt in given}.values())
    if not texts or not all(texts):
        raise UserError(
            f"`prompts`: {'one is empty' if texts else 'none is given'}", "give at least one character each"
        )
    return as_turns(texts) if in_turns else texts


def plain_note(prompts: Sequence[Text], tokenizer: Tokenizer, remedy: str) -> list[str]:
    """The line on plain prompts for a model that may know conversations alone; none where there are none."""
    plain = sum(isinstance(prompt, str) for prompt in prompts)
    if not plain or not tokenizer.chat_template:
        return []
    what = f"{plain:,} prompts are plain texts, and go to the model as they are though it has a chat template"
    return [f'{what}: a chat model needs {remedy}turns ({{"prompt": [{{"role": "user", "content": ...}}]}})']
