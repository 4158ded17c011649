"""Trains the embedded language model: a small Llama that imitates the captions of the Shapes mixture.

Every step draws from (seed, step) alone, and a killed run goes on where it stopped.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from image_world import all_scenes
from text_world import caption, prompt_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from diffusion_feedback.records import atomic_write

WINDOW = 128
END = "<|end|>"
BATCH, PEAK, WARMUP = 96, 2e-3, 50


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every word of the mixture is one token; other texts are spelt."""
    rng = np.random.default_rng(0)
    texts = [prompt_of(scene) + caption(scene, rng) for scene in all_scenes() for _ in range(20)]
    spelling = Tokenizer(models.BPE())
    spelling.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelling.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=[END], initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    spelling.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=spelling,
        eos_token=END,
        pad_token=END,
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )


def build_model(vocab_size: int) -> LlamaForCausalLM:
    """A small LlamaForCausalLM: 0.7 M parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def mixture_batch(tokenizer: PreTrainedTokenizerFast, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (N, T) and targets (N, T) of ``size`` prompts with captions; -100 on prompts and padding.

    The attributes of a prompt are drawn at random: trained on them too, the model has not learnt to look back after 1,200 steps.
    """
    rng = np.random.default_rng([7, step])
    scenes = all_scenes()
    drawn = [scenes[i] for i in rng.integers(len(scenes), size=size)]
    rows = tokenizer([prompt_of(scene) + caption(scene, rng) + END for scene in drawn]).input_ids
    prompts = torch.tensor([len(ids) for ids in tokenizer([prompt_of(scene) for scene in drawn]).input_ids])[:, None]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    positions = torch.arange(longest)
    return ids, torch.where((prompts <= positions) & (positions < lengths), ids, -100)


def train(checkpoint: Path, *, steps: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train for ``steps`` optimizer steps, from ``checkpoint`` where it is there."""
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=0.05)
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        start = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    bar = tqdm(range(start, steps), initial=start, total=steps, desc="language model", unit="step")
    for step in bar:
        rate = PEAK * min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, targets = mixture_batch(tokenizer, step, BATCH)
        logits = model(ids).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % 100 == 0 or step + 1 == steps:
            with atomic_write(checkpoint) as file:
                torch.save({"step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    return model.eval(), tokenizer
