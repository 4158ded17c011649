"""Tiny CLIP models with random weights on disk, in transformers' and open_clip's form, and what every CLIP scorer keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from diffusion_feedback.scorers.scorer import Scorer

SIDE = 32
STANDARD_VOCABULARY = 49408
PROMPTS = ["a red circle", "two cats & a dog, 8k", "naïve café", "", "x"]
OPEN_CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": STANDARD_VOCABULARY, "width": 32, "heads": 2, "layers": 2},
}


def pictures() -> list[Image.Image]:
    """Five pictures of different shapes, sizes and contents; none so tall that Pillow's versions scale it differently."""
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (100, 40), (45, 90), (32, 32), (36, 70)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def letters() -> CLIPTokenizer:
    """A CLIP tokenizer that spells words letter by letter; 190 tokens."""
    single = [chr(code) for code in range(33, 127)]
    tokens = [*single, *(f"{letter}</w>" for letter in single), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def _spread(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that features of different inputs differ well."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("logit_scale"):
                value.fill_(3.0)
            elif "norm" in name.lower() or "ln_" in name:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
            else:
                value.copy_(0.25 * torch.randn(value.shape, generator=generator))


def clip_model(vocabulary: int, seed: int = 0, **text: Any) -> CLIPModel:
    """A CLIPModel over pictures of 32 x 32; ``text`` is added to the text tower's configuration."""
    towers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": vocabulary, "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1} | towers | text
    vision = {"image_size": SIDE, "patch_size": 8} | towers
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    _spread(model, seed)
    return model


def save_clip(folder: Path, seed: int = 0, **text: Any) -> Path:
    """Write a tiny CLIPModel folder with its own tokenizer and preprocessing."""
    tokenizer = letters()
    clip_model(len(tokenizer), seed, **text).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    crop = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=crop).save_pretrained(folder)
    return folder


def save_bare_clip(folder: Path, seed: int = 0) -> Path:
    """Write a tiny CLIPModel of the standard vocabulary: config and weights alone, as PickScore's first upload."""
    clip_model(STANDARD_VOCABULARY, seed).save_pretrained(folder)
    return folder


def open_clip_model(seed: int = 0) -> Any:
    """An open_clip CLIP of OPEN_CLIP_CONFIG."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**OPEN_CLIP_CONFIG).eval()
    _spread(model, seed)
    return model


def save_open_clip(folder: Path, seed: int = 0) -> tuple[Path, str]:
    """Write a checkpoint as HPSv2 publishes them (half precision, under "state_dict"); file and architecture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP_CONFIG}))
    state = {name: value.half() for name, value in open_clip_model(seed).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, folder / "HPS_v2.1_compressed.pt")
    return folder / "HPS_v2.1_compressed.pt", f"local-dir:{folder}"


def check_rows_are_independent(scorer: Scorer) -> Tensor:
    """One by one, all at once and in another order, the scores are the same to 1e-5; returns them (5,)."""
    images = pictures()
    together = scorer.score(images, PROMPTS)
    assert together.shape == (len(images),)
    assert together.dtype == torch.float32
    scale = max(1.0, float(together.abs().max()))
    alone = torch.cat([scorer.score([image], [prompt]) for image, prompt in zip(images, PROMPTS, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-5 * scale, rtol=0)
    order = [3, 0, 4, 2, 1]
    again = scorer.score([images[i] for i in order], [PROMPTS[i] for i in order])
    torch.testing.assert_close(again, together[order], atol=1e-5 * scale, rtol=0)
    assert together.std() > 1e-2 * scale, "random weights that do not tell pictures apart prove nothing"
    return together


class Landmine:
    """Runs ``effect`` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)
