"""How far an image depends on its neighbours in the batch: the same prompts and seeds at several batch sizes.

    python -m benchmarks.batch_tolerance [MODEL]      # the embedded model unless given

Each image starts from its own generator, so only the rounding of batched kernels is left. Prints, against batch size 1,
the largest and the mean difference of pixel levels (0 to 255) and the share of levels that differ.
"""

from __future__ import annotations

import sys

import numpy as np

from diffusion_feedback.catalog import resolve
from diffusion_feedback.prompts import read_prompts

SETTINGS = {"num_inference_steps": 15, "guidance_scale": 2.0}
COUNT = 24


def main() -> None:
    """Sample at batch sizes 1, 3, 8 and 24 and print the differences."""
    model = sys.argv[1] if len(sys.argv) > 1 else "assets/shapes-sd"
    denoiser = resolve("family", "sd")(model)
    prompts = [record.prompt for record in read_prompts("assets/prompts/heldout.txt")][:COUNT]
    seeds = list(range(COUNT))
    levels = {}
    for size in (1, 3, 8, COUNT):
        images = []
        for start in range(0, COUNT, size):
            part = slice(start, start + size)
            images += denoiser.sample(denoiser.network, prompts[part], seeds[part], **SETTINGS)
        levels[size] = np.stack([np.asarray(image).astype(int) for image in images])
    print("batch size | largest difference | mean difference | share of levels that differ")
    for size, images in levels.items():
        difference = np.abs(images - levels[1])
        print(f"{size:10d} | {difference.max():18d} | {difference.mean():15.2e} | {np.mean(difference > 0):.2e}")


if __name__ == "__main__":
    main()
