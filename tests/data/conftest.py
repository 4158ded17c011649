"""Real image bytes and real parquet files, made on the spot."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

Picture = Callable[..., bytes]
Rows = list[dict[str, Any]]
Table = Callable[..., Path]


def make_picture(number: int = 0, format: str = "PNG", size: tuple[int, int] = (12, 8)) -> bytes:
    """A picture of random pixels, another for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def make_rows(number: int, **changes: Any) -> Rows:
    """Pick-a-Pic rows; ``changes`` replace a column's value in all rows, None as a callable's result too."""
    formats = ("PNG", "JPEG", "WEBP")
    rows: Rows = []
    for i in range(number):
        row: dict[str, Any] = {
            "caption": f"prompt {i % 3}",
            "jpg_0": make_picture(2 * i, formats[i % 3]),
            "jpg_1": make_picture(2 * i + 1, formats[i % 3]),
            "label_0": float(i % 2),
            "label_1": 1.0 - i % 2,
            "has_label": True,
            "are_different": True,
            "num_example_per_prompt": 1 + i % 3,
        }
        rows.append(row | changes)
    return rows


@pytest.fixture(scope="session")
def picture() -> Picture:
    return make_picture


@pytest.fixture(scope="session")
def pickapic_rows() -> Callable[..., Rows]:
    return make_rows


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Write rows to a parquet file and return its path."""

    def write(rows: Rows, name: str = "pairs.parquet", group: int = 4, schema: pa.Schema | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=group)
        return path

    return write
