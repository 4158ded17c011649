"""A tiny real CLIPModel with random weights to be trained as a scorer, with its tokenizer and image processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_models
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

SIDE = 16


def save_clip(folder: Path, *, seed: int = 0, max_tokens: int = 40, **text: Any) -> Path:
    """Write a tiny CLIPModel (16 px, patches of 8) to ``folder``; ``text`` changes the text tower's config."""
    torch.manual_seed(seed)
    tokenizer = tiny_models.tokenizer(folder / "spelling")
    tokenizer.model_max_length = max_tokens
    end = len(tokenizer) - 1
    common = {"projection_dim": 16, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    text_config = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 2,
        "max_position_embeddings": max_tokens,
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    vision_config = {"num_hidden_layers": 2, "image_size": SIDE, "patch_size": 8}
    config = CLIPConfig(
        text_config=common | text_config | text, vision_config=common | vision_config, projection_dim=16
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size, crop = {"shortest_edge": SIDE}, {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size=size, crop_size=crop).save_pretrained(folder)
    return folder
