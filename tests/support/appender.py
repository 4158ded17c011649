"""A process that appends to a cache until it is done or killed: folder, first key, number of keys."""

import sys

import torch

from diffusion_feedback.data.cache import TensorCache


def main() -> None:
    """Append entries whose values are their numbers, and say so after each flush."""
    folder, first, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with TensorCache(folder, {"encoder": "test"}, flush_every=5) as cache:
        for i in range(first, first + number):
            cache.put(f"key{i}", {"latents": torch.full((64, 64), float(i)), "sizes": torch.arange(6)})
            if i % 5 == 4:
                print(i, flush=True)


if __name__ == "__main__":
    main()
