"""How long a training run takes to start, for the first time and again, with small and with large images.

    python -m benchmarks.start                          # about three minutes on one core
    python -m benchmarks.start --pairs 100 --sizes 64   # a quick look

Pairs of JPEG images, as one parquet file and as twin folders, are learnt from with the embedded Shapes model. Timed is
what grows with the data before the first step: the index of the pairs, and the caches of latents and texts; not loading
the model, which is the same for any data. The second start finds everything as it was, in a new cache object each time.
Sizes take turns, so that whatever else the machine does slows all alike; the second start is the best of ``--repeats``.

The exit code is 1 where a second start takes more than 1 ms of processor time a pair, or where large images make it
slower than small ones by more than half.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusion_feedback.config.recipe import DataConfig, ModelConfig, Recipe, TrainingConfig
from diffusion_feedback.data.pickapic import write_pickapic
from diffusion_feedback.records import PairRecord
from diffusion_feedback.workflows.training.accelerator import make_accelerator
from diffusion_feedback.workflows.training.base_model import load_model
from diffusion_feedback.workflows.training.given import Setup
from diffusion_feedback.workflows.training.image_caches import build_encoders, fill_caches
from diffusion_feedback.workflows.training.image_pairs import ImagePairs

MODEL = Path(__file__).resolve().parent.parent / "assets" / "shapes-sd"
BAR_MS = 1.0
BAR_RATIO = 1.5


def jpegs(count: int, size: int) -> Iterator[bytes]:
    """Smooth random pictures with some grain, about as large as photographs of ``size`` px are."""
    draws = np.random.default_rng(size)
    for _ in range(count):
        coarse = Image.fromarray(draws.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(np.int16)
        grain = draws.integers(-12, 13, pixels.shape, dtype=np.int16)
        buffer = io.BytesIO()
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def write_parquet(folder: Path, pairs: int, size: int) -> Path:
    """One file of pairs."""
    images = jpegs(2 * pairs, size)
    records = (PairRecord(f"picture {n % 50}", next(images), next(images), 1.0) for n in range(pairs))
    write_pickapic(records, folder / "pairs.parquet")
    return folder / "pairs.parquet"


def write_twins(folder: Path, pairs: int, size: int) -> Path:
    """Two folders of images, with captions beside the chosen ones."""
    images = jpegs(2 * pairs, size)
    for number in range(pairs):
        for side in ("chosen", "rejected"):
            (folder / side).mkdir(parents=True, exist_ok=True)
            (folder / side / f"{number}.jpg").write_bytes(next(images))
        (folder / "chosen" / f"{number}.txt").write_text(f"picture {number % 50}", "utf-8")
    return folder


FORMS: dict[str, Callable[[Path, int, int], Path]] = {"parquet": write_parquet, "twin folders": write_twins}


class Start:
    """One data set, to be started on any number of times."""

    def __init__(self, path: Path, cache: Path, pairs: int) -> None:
        self.pairs = pairs
        self.recipe = Recipe(
            model=ModelConfig(pretrained_model_name_or_path=str(MODEL)),
            data=DataConfig(train=str(path), cache_dir=str(cache)),
            output_dir=str(cache / "run"),
            training=TrainingConfig(max_train_steps=10 * pairs, train_batch_size=4),
        )
        self.accelerator = make_accelerator(self.recipe)
        self.denoiser = load_model(self.recipe, torch.device("cpu"))

    def seconds(self) -> tuple[float, float]:
        """Processor seconds of the index and of the caches, from nothing in memory."""
        encoders = build_encoders(self.recipe, self.denoiser)
        begin = time.process_time()
        pairs = ImagePairs.load(
            Setup(self.recipe, self.accelerator),
            resolution=self.denoiser.resolution,
            count_truncated=self.denoiser.count_truncated,
        )
        assert len(pairs.train) == self.pairs
        middle = time.process_time()
        fill_caches(encoders, pairs)
        encoders.close()
        return middle - begin, time.process_time() - middle


def measure(form: str, sizes: list[int], pairs: int, repeats: int, folder: Path) -> bool:
    """Print one line a size, in ms a pair; whether the second starts are quick and alike."""
    starts = {}
    for size in sizes:
        place = folder / form.replace(" ", "-") / str(size)
        starts[size] = Start(FORMS[form](place / "set", pairs, size), place / "cache", pairs)
    first = {size: start.seconds() for size, start in starts.items()}
    again: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    for _ in range(repeats):
        for size, start in starts.items():
            again[size].append(start.seconds())
    best = {size: min(taken, key=sum) for size, taken in again.items()}
    for size in sizes:
        cells = [1000 * part / pairs for part in (*first[size], *best[size])]
        print(
            f"{form:13} {size:5} px  first {cells[0]:7.2f} + {cells[1]:7.2f}   second {cells[2]:6.3f} + {cells[3]:6.3f}"
        )
    totals = [1000 * sum(best[size]) / pairs for size in sizes]
    return max(totals) <= BAR_MS and max(totals) <= BAR_RATIO * min(totals)


def main() -> int:
    """Measure both forms; 0 where all second starts are quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 768])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{arguments.pairs} pairs; ms of processor time a pair: index + caches")
    with tempfile.TemporaryDirectory() as folder:
        fine = [measure(form, arguments.sizes, arguments.pairs, arguments.repeats, Path(folder)) for form in FORMS]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    raise SystemExit(main())
