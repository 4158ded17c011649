"""Diffusion-DPO as one flat loop of plain torch, to be read from top to bottom and changed.

    python examples/dpo_loop.py                         # from the root of a clone; writes runs/dpo_loop

The settings are those of configs/shapes_dpo_lora.yaml, and so are the losses and the weights, bit for bit: `dfb train`
adds caches, checkpoints, held-out pairs, several processes and a model card, and changes no number.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from diffusion_feedback.data.cache import CachedImageEncoder, CachedTextEncoder
from diffusion_feedback.data.index import PairIndex
from diffusion_feedback.data.readers import open_pairs
from diffusion_feedback.likelihoods.denoising import DenoisingLikelihood
from diffusion_feedback.models import lora, sd
from diffusion_feedback.models.reference import AdaptersOff
from diffusion_feedback.objectives.pairwise import dpo
from diffusion_feedback.training.optimizers import learning_rate_at
from diffusion_feedback.training.order import EpochOrder
from diffusion_feedback.types.models import AdapterSettings
from diffusion_feedback.types.training import PairLogps


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Train, write the LoRA weights as diffusers reads them, and return the loss of each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_train_steps", type=int, default=150)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/dpo_loop"))
    given = parser.parse_args(argv)
    seed, batch_size, beta = 0, 32, 1000.0

    # The model: the policy is the UNet with adapters, the reference the same UNet with its adapters off.
    denoiser = sd.load("assets/shapes-sd")
    network, reference = denoiser.network, AdaptersOff()
    targets = ["attention", "feed_forward", "convolutions"]
    lora.add(network, AdapterSettings(rank=8, alpha=8.0, targets=targets, seed=seed))
    weights = [weight for _, weight in lora.trainable(network)]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.01, fused=True)

    # The data: pairs of images, of which a batch reads its own; None stands for no cache of latents and embeddings.
    pairs = PairIndex.build(open_pairs("assets/pairs", split="train"))
    order = EpochOrder(len(pairs), batch_size, seed)
    images = CachedImageEncoder(denoiser.encode_images, denoiser.resolution, None)
    texts = CachedTextEncoder(denoiser.encode_prompts, None)

    # log p(image | prompt) is minus half the denoising error, at a timestep and a noise that the pair shares.
    likelihood = DenoisingLikelihood(denoiser, images, texts, seed=seed)
    losses = []
    network.train()
    for step in range(given.max_train_steps):
        batch = pairs.batch(order.indices(step), draw=order.epoch(step))
        inputs = likelihood.prepare(batch)  # every random draw, made once for policy and reference
        with torch.no_grad(), reference(network) as frozen:
            reference_chosen, reference_rejected = likelihood.logps(frozen, inputs).chunk(2)
        policy_chosen, policy_rejected = likelihood.logps(network, inputs).chunk(2)
        logps = PairLogps(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
        loss = (dpo(logps, beta=beta) * batch.weight).mean()

        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate_at(
            step, peak=2e-4, scheduler="cosine", warmup_steps=10, max_steps=given.max_train_steps
        )
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step + 1}: loss {loss.item():.4f}")

    denoiser.save(network, given.output_dir)
    return losses


if __name__ == "__main__":
    main()
