"""Pre-trains the embedded Stable Diffusion on the Shapes mixture: first the VAE, then text encoder and UNet together.

Every step draws from (seed, step) alone, and a checkpoint holds weights, averages and optimizer, so a killed run goes
on where it stopped and ends with the same weights.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from image_world import all_scenes, mixture_sample
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MAX_TOKENS = 16
START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Train a byte-pair vocabulary in CLIP's form on the captions; any other text still splits into known pieces."""
    tokenizer = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        initial_alphabet=alphabet,
        special_tokens=[START, END],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([scene.caption for scene in all_scenes()], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = {token: index for token, index in model["vocab"].items() if token not in (START, END)}
    tokens = sorted(vocab, key=lambda token: vocab[token])
    tokens += [f"{letter}</w>" for letter in alphabet if f"{letter}</w>" not in vocab]
    tokens += [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}), "utf-8")
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS, pad_token=END)


def build_vae() -> AutoencoderKL:
    """A small AutoencoderKL, 64 x 64 x 3 to 16 x 16 x 4."""
    return AutoencoderKL(
        block_out_channels=(24, 48, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
    )


def build_unet() -> UNet2DConditionModel:
    """A small UNet2DConditionModel over 16 x 16 latents with cross-attention on the two lower levels."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(vocab_size: int, end_token: int) -> CLIPTextModel:
    """A small CLIPTextModel, hidden size 128."""
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=end_token - 1,
        eos_token_id=end_token,
        pad_token_id=end_token,
    )
    return CLIPTextModel(config)


def build_scheduler() -> DDPMScheduler:
    """The forward process of the embedded model, that of Stable Diffusion: 1000 steps, noise prediction."""
    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)


def render_pool(path: Path, count: int) -> tuple[np.ndarray, list[str]]:
    """Render (or read back) ``count`` pictures of the mixture: uint8 (count, 64, 64, 3) and their captions."""
    captions_path = path.with_suffix(".json")
    if not captions_path.exists():
        images = np.empty((count, 64, 64, 3), np.uint8)
        captions = []
        for index in tqdm(range(count), desc="render"):
            image, caption, _ = mixture_sample(index)
            images[index] = np.asarray(image)
            captions.append(caption)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, images)
        captions_path.write_text(json.dumps(captions), "utf-8")
    return np.load(path, mmap_mode="r"), json.loads(captions_path.read_text("utf-8"))


def cosine_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Learning rate at ``step``: linear warm-up, then a half cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / (steps - warmup))))


def fit(
    network: nn.Module,
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    peak_rate: float,
    checkpoint: Path,
    decay: float,
    name: str,
) -> nn.Module:
    """Minimise ``loss(step)`` with AdamW and return the averaged network; goes on from ``checkpoint`` where there is one."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=peak_rate, betas=(0.9, 0.99), weight_decay=1e-2)
    average = copy.deepcopy(network).requires_grad_(False)
    start = 0
    if checkpoint.exists():
        state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    progress = tqdm(range(start, steps), desc=name, initial=start, total=steps, mininterval=5)
    running = None
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step, steps, peak_rate, 100)
        value = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        weight = min(decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - weight)
        running = value.item() if running is None else 0.98 * running + 0.02 * value.item()
        progress.set_postfix(loss=f"{running:.4f}", refresh=False)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            state = {"network": network.state_dict(), "average": average.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
    return average


def train_vae(
    images: np.ndarray, checkpoint: Path, *, steps: int, batch_size: int = 32, seed: int = 0
) -> AutoencoderKL:
    """Fit the VAE: absolute plus squared error with a faint KL term; the latents are then scaled to unit deviation."""
    torch.manual_seed(seed)
    vae = build_vae().to(memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed((seed << 32) + step)
        chosen = torch.randint(len(images), (batch_size,), generator=generator).tolist()
        pixels = torch.from_numpy(np.stack([images[i] for i in chosen])).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        error = decoded.float() - pixels
        return (
            error.abs().mean()
            + 2 * error.square().mean()
            + 2e-5 * posterior.kl().float().mean() / posterior.mean[0].numel()
        )

    average = fit(vae, loss, steps=steps, peak_rate=2e-3, checkpoint=checkpoint, decay=0.995, name="vae")
    assert isinstance(average, AutoencoderKL)
    average = average.eval().to(memory_format=torch.contiguous_format)
    average.register_to_config(scaling_factor=round(1 / float(encode_pool(average, images[:2000]).std()), 5))
    return average


def refine_decoder(
    vae: AutoencoderKL, images: np.ndarray, latents: Tensor, checkpoint: Path, *, steps: int, batch_size: int = 48
) -> AutoencoderKL:
    """Train the decoder alone on the latents of the finished encoder: sharper edges, and the latents stay as they are."""
    vae = copy.deepcopy(vae).to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed((2 << 32) + step)
        chosen = torch.randint(len(images), (batch_size,), generator=generator)
        pixels = (
            torch.from_numpy(np.stack([images[i] for i in chosen.tolist()])).permute(0, 3, 1, 2).float() / 127.5 - 1
        )
        with torch.autocast("cpu", torch.bfloat16):
            decoded = vae.decode(latents[chosen]).sample
        return (decoded.float() - pixels).abs().mean()

    average = fit(vae, loss, steps=steps, peak_rate=1e-3, checkpoint=checkpoint, decay=0.99, name="decoder")
    assert isinstance(average, AutoencoderKL)
    return average.eval().to(memory_format=torch.contiguous_format)


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, images: np.ndarray, batch_size: int = 64) -> Tensor:
    """Posterior means of ``images``, unscaled, (N, 4, 16, 16) float32."""
    parts = []
    for start in tqdm(range(0, len(images), batch_size), desc="encode", mininterval=5):
        pixels = torch.from_numpy(np.array(images[start : start + batch_size])).permute(0, 3, 1, 2).float() / 127.5 - 1
        parts.append(vae.encode(pixels).latent_dist.mean)
    return torch.cat(parts)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids (N, MAX_TOKENS)."""
    return torch.tensor(tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True).input_ids)


class TextAndUNet(nn.Module):
    """Text encoder and UNet as one trainable module."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet


def train_unet(
    latents: Tensor,
    captions: list[str],
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    *,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
) -> TextAndUNet:
    """Fit text encoder and UNet by denoising scaled ``latents``; one caption in ten is left empty, for guidance."""
    torch.manual_seed(seed + 1)
    end = tokenizer.convert_tokens_to_ids(END)
    model = TextAndUNet(build_text_encoder(len(tokenizer), end), build_unet())
    scheduler = build_scheduler()
    tokens = torch.tensor(
        tokenizer(["", *captions], padding="max_length", max_length=MAX_TOKENS, truncation=True).input_ids
    )

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(((seed + 1) << 32) + step)
        chosen = torch.randint(len(latents), (batch_size,), generator=generator)
        noise = torch.randn(latents[chosen].shape, generator=generator)
        # Stratified over the batch, and leaning towards high noise, where captions decide.
        uniform = (torch.arange(batch_size) + torch.rand(batch_size, generator=generator)) / batch_size
        timesteps = (uniform**0.75 * scheduler.config.num_train_timesteps).long()
        kept = torch.rand(batch_size, generator=generator) >= 0.1
        hidden = model.text_encoder(tokens[torch.where(kept, chosen + 1, 0)]).last_hidden_state
        noisy = scheduler.add_noise(latents[chosen], noise, timesteps)
        return nn.functional.mse_loss(model.unet(noisy, timesteps, hidden).sample, noise)

    average = fit(model, loss, steps=steps, peak_rate=1e-3, checkpoint=checkpoint, decay=0.998, name="unet")
    assert isinstance(average, TextAndUNet)
    return average.eval()
