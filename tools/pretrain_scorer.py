"""Pre-trains the CLIP model that the embedded scorer starts from: images of the Shapes mixture against their captions.

The mixture is used as it is, wrong captions and flawed pictures included; captions that differ in one attribute are
the hard negatives. As in ``pretrain``, every step draws from (seed, step) alone and a killed run goes on where it stopped.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pretrain
import pyarrow.parquet as pq
import torch
from image_world import all_scenes, render
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from diffusion_feedback.shapes.scenes import ATTRIBUTES, RESOLUTION

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
MAX_LOGIT_SCALE = 100.0
SHIFT = 3  # px; how far a training picture may be moved


def build_clip(vocab_size: int) -> CLIPModel:
    """A small CLIPModel over 64 x 64 pictures: 1.2 M parameters."""
    towers = {"projection_dim": 128}
    text = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": pretrain.MAX_TOKENS,
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": vocab_size - 1,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": RESOLUTION,
        "patch_size": 8,
    }
    return CLIPModel(CLIPConfig(text_config=text | towers, vision_config=vision | towers, **towers))


def normalise(pixels: Tensor) -> Tensor:
    """Pixels (N, H, W, 3) in [0, 1] to what the vision tower takes, (N, 3, H, W)."""
    return ((pixels - MEAN) / STD).permute(0, 3, 1, 2)


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror, move by up to ``SHIFT`` px, and faintly change brightness and grain of ``pixels`` (N, H, W, 3) in [0, 1]."""
    count = len(pixels)
    mirrored = torch.rand(count, generator=generator) < 0.5
    pixels = torch.where(mirrored[:, None, None, None], pixels.flip(2), pixels)
    moves = torch.randint(-SHIFT, SHIFT + 1, (count, 2), generator=generator)
    rows = (torch.arange(RESOLUTION) + moves[:, :1]).clamp(0, RESOLUTION - 1)
    columns = (torch.arange(RESOLUTION) + moves[:, 1:]).clamp(0, RESOLUTION - 1)
    pixels = pixels[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    gain = 1 + 0.06 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
    grain = 0.02 * torch.rand(count, 1, 1, 1, generator=generator) * torch.randn(pixels.shape, generator=generator)
    return (gain * pixels + grain).clamp(0, 1)


def features(model: CLIPModel, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Image and text features of unit length, (N, D) and (M, D)."""
    images = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    texts = model.text_projection(model.text_model(input_ids=tokens).pooler_output)
    return torch.nn.functional.normalize(images, dim=-1), torch.nn.functional.normalize(texts, dim=-1)


def contrastive_loss(model: CLIPModel, pixels: Tensor, tokens: Tensor, named: Tensor) -> Tensor:
    """Each image against every caption of the world, and its caption against the images of the batch.

    ``named`` (N,) is the caption of each image. Images under the same caption are no negatives of each other.
    """
    images, texts = features(model, pixels, tokens)
    logits = model.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE) * images @ texts.T
    alike = (named[:, None] == named[None, :]).fill_diagonal_(False)
    across = logits.T[named].masked_fill(alike, -torch.inf)
    own = torch.arange(len(named))
    return (torch.nn.functional.cross_entropy(logits, named) + torch.nn.functional.cross_entropy(across, own)) / 2


def train_clip(
    images: np.ndarray,
    captions: list[str],
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    *,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
) -> CLIPModel:
    """Fit both towers on ``images`` (N, 64, 64, 3) uint8 and ``captions``."""
    torch.manual_seed(seed + 3)
    model = build_clip(len(tokenizer))
    model.set_attn_implementation("eager")  # on short sequences and a CPU a third faster than the fused kernel
    every = [scene.caption for scene in all_scenes()]
    tokens = pretrain.tokenize(tokenizer, every)
    numbers = {caption: number for number, caption in enumerate(every)}
    named = torch.tensor([numbers[caption] for caption in captions])

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(((seed + 3) << 32) + step)
        chosen = torch.randint(len(images), (batch_size,), generator=generator)
        pixels = torch.from_numpy(np.stack([images[i] for i in chosen.tolist()])).float() / 255
        return contrastive_loss(model, normalise(augment(pixels, generator)), tokens, named[chosen])

    average = pretrain.fit(model, loss, steps=steps, peak_rate=1.5e-3, checkpoint=checkpoint, decay=0.998, name="clip")
    assert isinstance(average, CLIPModel)
    return average.eval()


def save_clip(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write ``model`` in half precision, with its tokenizer and image processor, as a CLIPModel folder."""
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = RESOLUTION
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        folder
    )


@torch.no_grad()
def attribute_accuracy(model: CLIPModel, tokenizer: CLIPTokenizer, count: int, seed: int = 1) -> dict[str, float]:
    """How often the best of all captions names each attribute of ``count`` clean pictures drawn for this."""
    scenes, rng = all_scenes(), np.random.default_rng([seed, 17])
    texts = pretrain.tokenize(tokenizer, [scene.caption for scene in scenes])
    shown = [scenes[int(number)] for number in rng.integers(len(scenes), size=count)]
    pixels = torch.from_numpy(np.stack([np.asarray(render(scene, rng)) for scene in shown])).float() / 255
    images, captions = features(model, normalise(pixels), texts)
    named = [scenes[number] for number in (images @ captions.T).argmax(1).tolist()]
    return {
        name: float(np.mean([getattr(a, name) == getattr(b, name) for a, b in zip(shown, named, strict=True)]))
        for name in ATTRIBUTES
    }


@torch.no_grad()
def judge_pairs(folder: Path, pairs: Path) -> dict[str, float]:
    """Accuracy and negative log-likelihood of a CLIPModel folder on decided ``pairs`` (parquet), by plain transformers."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor, tokenizer = CLIPImageProcessorPil.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    right, loss, rows = 0, 0.0, pq.read_table(pairs).to_pylist()
    for row in rows:
        images = [Image.open(io.BytesIO(row[name])).convert("RGB") for name in ("jpg_0", "jpg_1")]
        text = tokenizer([row["caption"]], truncation=True, return_tensors="pt")
        pixels = processor(images, return_tensors="pt")
        chances = model(input_ids=text.input_ids, **pixels).logits_per_text[0].log_softmax(0)
        chosen = 0 if row["label_0"] > 0.5 else 1
        right += int(chances[chosen] > chances[1 - chosen])
        loss -= float(chances[chosen])
    return {"accuracy": right / len(rows), "loss": loss / len(rows), "logit_scale": float(model.logit_scale.exp())}
