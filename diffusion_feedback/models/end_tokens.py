"""Which tokens end what a model says, and which token may stand for padding without being taken for one of them."""

from __future__ import annotations

import re

from ..foreign import apply_template
from ..types.models import Tokenizer

_PROBE = "Zqx"  # words that no template writes of its own accord
_RESERVED = re.compile(r"pad|reserved|unused|extra_id", re.IGNORECASE)
# The byte 0xFF, which no text in UTF-8 holds, as tokenizers with byte fallback and byte-level tokenizers write it.
_NO_TEXT = ("<0xFF>", "ÿ")


def closing_token_id(tokenizer: Tokenizer) -> int | None:
    """The token by which the tokenizer's chat template closes the assistant's turn; None where it closes with none.

    A template that takes no plain exchange of a question and an answer tells nothing.
    """
    tail = _closing(tokenizer)
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    for token in tokenizer(tail.lstrip(), add_special_tokens=False, verbose=False)["input_ids"] if tail else ():
        return token if token in special else None
    return None


def _closing(tokenizer: Tokenizer) -> str:
    """What the chat template writes behind an answer; nothing where there is no template, or it refuses."""
    if not tokenizer.chat_template:
        return ""
    turns = [{"role": "user", "content": f"{_PROBE}?"}, {"role": "assistant", "content": f"{_PROBE}!"}]
    try:
        text = apply_template(tokenizer, turns, tokenize=False)
    except Exception:  # a stranger's template may fail in any way; whoever renders with it says so
        return ""
    return str(text).rpartition(f"{_PROBE}!")[2]


def adds_end(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts its end token behind a text of its own accord."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    return bool(ids) and ids[-1] == tokenizer.eos_token_id


def padding_token(tokenizer: Tokenizer, num_rows: int) -> str | None:
    """A token that no text ends in, for padding: whoever looks for the last token that is no padding finds the true one.

    The tokenizer's own padding token where it is such a one; else one that is reserved for such uses, an unknown token,
    a special token that begins things, or a byte that is in no text. ``num_rows``: tokens that the model knows.
    None where there is none of these.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    closing = tokenizer(_closing(tokenizer), add_special_tokens=False, verbose=False)["input_ids"]
    ends = {tokenizer.eos_token_id, tokenizer.bos_token_id, *closing}
    added = sorted(getattr(tokenizer, "added_tokens_decoder", {}).items())
    special = [str(token) for _, token in added if token.special]
    candidates = [
        tokenizer.pad_token,
        *(token for token in special if _RESERVED.search(token)),
        _NO_TEXT[0],
        tokenizer.unk_token,
        *special,
        _NO_TEXT[1],
    ]
    for token in candidates:
        number = vocabulary.get(token, num_rows) if token is not None else num_rows
        if number < num_rows and number not in ends:
            return str(token)
    return None
