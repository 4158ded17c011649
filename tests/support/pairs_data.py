"""Small real pair data for tests: JPEG bytes in Pick-a-Pic parquet, brighter images preferred."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_feedback.data.pickapic import write_pickapic
from diffusion_feedback.records import PairRecord


def jpeg(level: int, seed: int, size: int = 16) -> bytes:
    """A noisy JPEG of mean brightness ``level``."""
    pixels = np.random.default_rng(seed).normal(level, 20, (size, size, 3)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_pairs(path: Path, count: int = 24, seed: int = 0) -> Path:
    """``count`` pairs, alternately with the brighter image first or second."""
    records = []
    for number in range(count):
        bright, dark = jpeg(180, seed + 2 * number), jpeg(70, seed + 2 * number + 1)
        first, second, label = (bright, dark, 1.0) if number % 2 == 0 else (dark, bright, 0.0)
        records.append(PairRecord(f"a picture number {number % 5}", first, second, label))
    write_pickapic(records, path)
    return path
