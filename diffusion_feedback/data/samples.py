"""What a model has generated, as a ``datasets.Dataset``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..records import CompletionRecord, ImageRecord

if TYPE_CHECKING:
    from datasets import Dataset


def image_samples(images: Sequence[tuple[ImageRecord, Path]], *, in_memory: bool) -> Dataset:
    """A row for each image: prompt, seed, image.

    ``in_memory``: the files, as they are, become part of the data set; else they are read when a row is requested.
    """
    import datasets

    # A path beside the bytes would be taken in their place.
    files = [{"bytes": p.read_bytes()} if in_memory else {"path": str(p)} for _, p in images]
    columns = {"prompt": [r.prompt for r, _ in images], "seed": [r.seed for r, _ in images], "image": files}
    kinds = {"prompt": datasets.Value("string"), "seed": datasets.Value("int64"), "image": datasets.Image()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def text_samples(records: Sequence[CompletionRecord]) -> Dataset:
    """A row for each completion: prompt, completion, seed, sample, is_finished.

    Conversations among plain prompts stand as JSON, as a column holds one kind.
    """
    import datasets

    are_mixed = len({isinstance(record.prompt, str) for record in records}) > 1
    rows = [
        {
            "prompt": record.prompt if isinstance(record.prompt, str) or not are_mixed else json.dumps(record.prompt),
            "completion": record.completion,
            "seed": record.seed,
            "sample": record.sample,
            "is_finished": record.is_finished,
        }
        for record in records
    ]
    return datasets.Dataset.from_list(rows)
