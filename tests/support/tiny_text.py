"""Tiny real language models, reward models and tokenizers with random weights, for whatever reads texts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

Family = Literal["llama", "gpt2"]

BOS, EOS, PAD, TURN, END_OF_TURN = "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"
SPECIAL = (BOS, EOS, PAD, TURN, END_OF_TURN)
POSITIONS = 128

# ChatML. The end of a turn is a token of its own, and not the tokenizer's end token.
CHATML = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ opening | default('') }}{% endif %}"
)
# The same, telling which tokens are the assistant's: its words and the end of its turn.
CHATML_GENERATION = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Leaves the assistant's last turn out.
DROPS_ASSISTANT = (
    "{% for message in messages if message['role'] != 'assistant' %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Counts the turns at the start, so that no conversation begins as its own first turns do.
COUNTS_TURNS = "{{ messages | length }} turns\n" + CHATML

CORPUS = (
    "a red circle on a blue background", "a small green square on a white background",
    "the cat sat on the mat and the dog ran away", "Question: what is the colour? Answer: the colour is yellow.",
    "system user assistant", "good better best bad worse worst", "hello there, how are you today?",
)  # fmt: skip


@lru_cache(maxsize=4)
def _spelling(vocab_size: int) -> str:
    """A byte-level BPE as JSON: the special tokens first, then all 256 bytes, then merges learnt from the corpus."""
    spelling = Tokenizer(models.BPE())
    spelling.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelling.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    spelling.train_from_iterator(CORPUS, trainer)
    return str(spelling.to_str())


def tokenizer(
    *,
    bos: bool = True,
    eos: bool = True,
    pad: bool = True,
    pad_is_eos: bool = False,
    chat_template: str | None = None,
    vocab_size: int = 400,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of some 380 tokens: reads and writes any text; "the " and "cat" merge where they meet.

    ``bos``: puts the beginning token first, as Llama's does, where GPT-2's does not. ``eos``, ``pad``: has such tokens;
    ``pad_is_eos``: pads with the end token. All ``SPECIAL`` tokens are in the vocabulary in any case.
    """
    spelling = Tokenizer.from_str(_spelling(vocab_size))
    if bos:
        spelling.post_processor = TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, spelling.token_to_id(BOS))]
        )
    named: dict[str, Any] = {"bos_token": BOS} if bos else {}
    if eos:
        named["eos_token"] = EOS
    if pad or pad_is_eos:
        named["pad_token"] = EOS if pad_is_eos else PAD
    found = PreTrainedTokenizerFast(tokenizer_object=spelling, additional_special_tokens=[TURN, END_OF_TURN], **named)
    if chat_template is not None:
        found.chat_template = chat_template
    return found


def _config(family: Family, *, tied: bool, positions: int, vocab_size: int, **more: Any) -> Any:
    # Weights are drawn wide, so that the next token's distribution is far from flat.
    ids = {"vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    common = {**ids, "tie_word_embeddings": tied, "initializer_range": 0.3, **more}
    if family == "gpt2":
        quiet = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
        return GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=positions, **{**quiet, **common})
    return LlamaConfig(
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        **common,
    )


def language_model(
    family: Family = "llama",
    *,
    seed: int = 0,
    tied: bool = False,
    positions: int = POSITIONS,
    vocab_size: int = 400,
    **more: Any,
) -> PreTrainedModel:
    """A model of 2 layers x 32 with random weights, in evaluation mode; ``more`` goes to its config."""
    torch.manual_seed(seed)
    config = _config(family, tied=tied, positions=positions, vocab_size=vocab_size, **more)
    build = GPT2LMHeadModel if family == "gpt2" else LlamaForCausalLM
    model: PreTrainedModel = build(config).eval()
    return model


def save_tiny_lm(
    folder: Path,
    *,
    family: Family = "llama",
    seed: int = 0,
    spelling: PreTrainedTokenizerFast | None = None,
    **more: Any,
) -> Path:
    """Write a tiny causal language model with its tokenizer (ChatML, when not given) to ``folder``."""
    spelling = spelling if spelling is not None else tokenizer(chat_template=CHATML)
    language_model(family, seed=seed, vocab_size=len(spelling), **more).save_pretrained(folder)
    spelling.save_pretrained(folder)
    return folder


def save_tiny_reward_model(
    folder: Path,
    *,
    family: Family = "llama",
    seed: int = 0,
    spelling: PreTrainedTokenizerFast | None = None,
    positions: int = POSITIONS,
    **more: Any,
) -> Path:
    """Write a tiny sequence classifier with one label and its tokenizer (ChatML, when not given) to ``folder``."""
    spelling = spelling if spelling is not None else tokenizer(chat_template=CHATML)
    torch.manual_seed(seed)
    config = _config(family, tied=False, positions=positions, vocab_size=len(spelling), num_labels=1, **more)
    build = GPT2ForSequenceClassification if family == "gpt2" else LlamaForSequenceClassification
    build(config).save_pretrained(folder)
    spelling.save_pretrained(folder)
    return folder


def sentences(count: int, *, seed: int = 0) -> Iterator[str]:
    """``count`` texts of two to nine words of the corpus."""
    words = sorted({word for text in CORPUS for word in text.split()})
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        length = int(torch.randint(2, 10, (), generator=generator))
        yield " ".join(words[int(i)] for i in torch.randint(len(words), (length,), generator=generator))
