"""Prompts that end where a token may go on: a model that learnt the whole token never has to predict its rest."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from ..records import Text
from ..types.models import Tokenizer
from .tokenization import common_prefix

_TRIED = 8  # words that a prompt is tried with
_MOST_PROMPTS = 2000


def open_ended(tokenizer: Tokenizer, prompts: Sequence[Text]) -> list[str]:
    """Those of the plain ``prompts`` (of the first 2,000) whose last token may go on in what is written next.

    A space goes to the word behind it with most tokenizers, and without spaces between words (Japanese, Chinese) a word
    may be one token: "東" and "京" are 東京. Each prompt is tried with a letter, or with what the vocabulary holds behind
    its last character. A prompt that ends with any other letter or sign ends as texts do, and is not checked.
    """
    prompts_open: list[str] = []
    words: dict[str, list[str]] = {}
    for prompt in prompts[:_MOST_PROMPTS]:
        if not isinstance(prompt, str) or not prompt:
            continue
        last = prompt[-1]
        if last in " \t\u3000":
            rests = ["a"]
        elif unicodedata.east_asian_width(last) == "W" and last.isalpha():
            words = words or _words(tokenizer)
            rests = words.get(last, [])[:_TRIED]
        else:
            continue
        own = _ids(tokenizer, prompt)
        if any(common_prefix(own, _ids(tokenizer, prompt + rest)) < len(own) for rest in rests):
            prompts_open.append(prompt)
    return prompts_open


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _words(tokenizer: Tokenizer) -> dict[str, list[str]]:
    """What stands behind each wide character within the vocabulary's tokens, the shortest first."""
    rests_of: dict[str, set[str]] = {}
    for text in tokenizer.batch_decode([[number] for number in range(len(tokenizer))]):
        wide = text.strip()
        if len(wide) > 1 and "\ufffd" not in wide:
            for at in range(len(wide) - 1):
                if unicodedata.east_asian_width(wide[at]) == "W":
                    rests_of.setdefault(wide[at], set()).add(wide[at + 1 :])
    return {character: sorted(rests, key=lambda rest: (len(rest), rest)) for character, rests in rests_of.items()}
