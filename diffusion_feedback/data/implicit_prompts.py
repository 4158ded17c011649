"""The prompt that chosen and rejected share, where a data set does not say where it ends."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from ..records import Message

_HUMAN = re.compile(r"(?:^|\n\n)(?:Human|人間):")
_ASSISTANT = "\n\nAssistant:"
_JOINS = ".,'\u2019-"
# Scripts that do not put spaces between words: each character stands for itself.
_WITHOUT_SPACES = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    r"""Prompt, chosen and rejected completion of two whole texts; prompt + completion is each text again.

    A dialogue of "\n\nHuman:" and "\n\nAssistant:" (Anthropic HH) is cut behind the last "\n\nAssistant:" that both share.
    Any other text is cut at the last word boundary of what both share, and before the space there, as tokenizers join a
    space to the word behind it; both completions keep at least one visible character, unless a text has none.
    """
    shared = _shared_length(chosen, rejected)
    end = chosen.rfind(_ASSISTANT, 0, shared)
    if end >= 0 and _HUMAN.search(chosen, 0, end + 1):
        cut = end + len(_ASSISTANT)
    else:
        cut = max(0, min(shared, len(chosen.rstrip()) - 1, len(rejected.rstrip()) - 1))
        while cut and (_inside_word(chosen, cut) or _inside_word(rejected, cut)):
            cut -= 1
        cut -= cut > 0 and chosen[cut - 1] == " "
    return chosen[:cut], chosen[cut:], rejected[cut:]


def split_turns(
    chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """The common leading turns of two conversations, and what is left of each: at least one turn of both."""
    most = max(0, min(len(chosen), len(rejected)) - 1)
    pairs = zip(chosen, rejected, strict=False)
    shared = next((number for number, (one, other) in enumerate(pairs) if one != other), most)
    cut = min(shared, most)
    return tuple(chosen[:cut]), tuple(chosen[cut:]), tuple(rejected[cut:])


def unescape_dialogue(text: str) -> str:
    r"""``text`` with real line breaks, where it is a dialogue whose breaks were written out as ``\n``.

    Translations of Anthropic HH hold such texts, some with a space behind each break that the translator put there.
    """
    return re.sub(r"\\n ?", "\n", text) if text.startswith((r"\n\n", r"\n \n")) else text


def _shared_length(one: str, other: str) -> int:
    """Length of the longest common prefix, by bisection: comparing slices is quick."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _inside_word(text: str, at: int) -> bool:
    """Whether a cut before ``text[at]`` would part a word, a number, a character from its accents, or a line break."""
    before, after = text[at - 1], text[at]
    if _is_word(before) and _is_word(after):
        return not (_WITHOUT_SPACES.match(before) or _WITHOUT_SPACES.match(after))
    if before in _JOINS and _is_word(after) and at > 1:
        return _is_word(text[at - 2])
    if after in _JOINS and _is_word(before) and at + 1 < len(text):
        return _is_word(text[at + 1])
    if before == "\r" and after == "\n":
        return True
    # Accents, variation selectors, skin tones; a zero-width joiner ties both its sides.
    is_modifier = unicodedata.category(after).startswith("M") or "\U0001f3fb" <= after <= "\U0001f3ff"
    return is_modifier or "\u200d" in (before, after)
