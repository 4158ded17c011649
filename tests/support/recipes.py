"""Fixtures of small real runs: a tiny pipeline, real parquet pairs, and a recipe that joins them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pairs_data
import pytest
import yaml


@pytest.fixture(scope="session")
def pair_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Parquet files of 24 training and 10 held-out pairs. Read only."""
    folder = tmp_path_factory.mktemp("pairs")
    return {
        "train": pairs_data.write_pairs(folder / "train.parquet"),
        "validation": pairs_data.write_pairs(folder / "validation.parquet", 10, 500),
    }


MakeRecipe = Callable[..., Path]


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps one state a process; a test may want another precision than the one before."""
    yield
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is not None:
        accelerate.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def make_recipe(tmp_path: Path, tiny_pipelines: dict[str, Path], pair_files: dict[str, Path]) -> MakeRecipe:
    """Write a recipe with changes such as ``training={"seed": 1}`` to a file, and return its path."""

    def make(name: str = "run", family: str = "sd", **changes: dict[str, Any]) -> Path:
        recipe: dict[str, Any] = {
            "model": {"pretrained_model_name_or_path": str(tiny_pipelines[family]), "family": family},
            "data": {
                "train": str(pair_files["train"]),
                "validation": str(pair_files["validation"]),
                "cache_dir": str(tmp_path / "cache"),
            },
            "output_dir": str(tmp_path / name),
            "objective": {"name": "dpo", "beta": 500},
            "training": {
                "max_train_steps": 6,
                "train_batch_size": 4,
                "learning_rate": 1e-3,
                "checkpointing_steps": 2,
            },
            "validation": {"num_prompts": 2, "num_inference_steps": 2},
        }
        for section, values in changes.items():
            recipe[section] = {**recipe[section], **values} if section not in ("objective", "optimizer") else values
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return make
