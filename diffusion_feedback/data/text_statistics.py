"""Numbers that a completion says of itself without anybody reading it: length, punctuation, markdown, repetition."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

TEXT_STATISTICS: Mapping[str, tuple[str, str, str]] = {
    "characters": ("longer", "shorter", "logarithm of the number of characters"),
    "words": ("wordier", "terser", "logarithm of the number of words"),
    "tokens": ("longer", "shorter", "logarithm of the number of tokens"),
    "lines": ("more divided", "less divided", "logarithm of the number of lines"),
    "punctuation": (
        "more punctuated",
        "less punctuated",
        "share of the characters that are neither letters, digits nor blanks",
    ),
    "digits": ("more numeric", "less numeric", "share of the characters that are digits"),
    "capitals": ("more capitalized", "less capitalized", "share of the letters that are capitals"),
    "markdown": (
        "more formatted",
        "less formatted",
        "logarithm of the number of headings, list items, bold words, code and tables",
    ),
    "repetition": ("more repetitive", "less repetitive", "share of the words that came before"),
    "echo of the prompt": (
        "more echoing",
        "less echoing",
        "share of the words that stand in the prompt",
    ),
}
"""For each number the words for a text that has more of it, and less, and what it is."""

_MARKDOWN = re.compile(r"^\s{0,3}(?:#{1,6}\s|[-*+]\s|\d+[.)]\s|>|\|)|\*\*|```|`[^`\n]+`", re.MULTILINE)
_WORD = re.compile(r"\w+")


def text_statistics(text: str, prompt: str) -> dict[str, float]:
    """The TEXT_STATISTICS of ``text``, without tokens, which need a tokenizer; NaN for the echo of no prompt."""
    words, length = [word.lower() for word in _WORD.findall(text)], max(1, len(text))
    letters = sum(map(str.isalpha, text))
    of_prompt = {word.lower() for word in _WORD.findall(prompt)}
    return {
        "characters": math.log1p(len(text)),
        "words": math.log1p(len(text.split())),
        "lines": math.log1p(text.count("\n")),
        "punctuation": len(re.findall(r"[^\w\s]", text)) / length,
        "digits": sum(map(str.isdigit, text)) / length,
        "capitals": sum(map(str.isupper, text)) / max(1, letters),
        "markdown": math.log1p(len(_MARKDOWN.findall(text))),
        "repetition": 1 - len(set(words)) / max(1, len(words)),
        "echo of the prompt": sum(word in of_prompt for word in words) / max(1, len(words)) if of_prompt else math.nan,
    }
