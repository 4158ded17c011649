"""What tests ask of a folder that ``dfb train`` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_feedback.cli.main import main
from diffusion_feedback.runs import checkpoint_steps
from diffusion_feedback.training.checkpoints import load_checkpoint

SGD = {"name": "adamw", "epsilon": 1.0}  # plain gradient descent in effect: AdamW's first steps only see signs


def train(recipe: Path, *flags: str) -> Path:
    """Train ``recipe``, which must succeed; its folder has the recipe's name."""
    assert main(["train", "--config", str(recipe), *flags]) == 0
    return recipe.with_suffix("")


def policy(folder: Path) -> dict[str, Tensor]:
    """The trained weights of the newest checkpoint."""
    newest = max(checkpoint_steps(folder))
    return policy_at(folder, newest)


def policy_at(folder: Path, step: int) -> dict[str, Tensor]:
    """The trained weights of the checkpoint of ``step``, as training goes on from them."""
    return load_checkpoint(checkpoint_steps(folder)[step])[1]["policy"]


def rows(folder: Path, key: str = "loss") -> list[dict[str, Any]]:
    """The lines of metrics that have ``key``, without their time: equal for equal runs."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [{name: value for name, value in row.items() if name not in ("time", "seconds")} for row in found]
    return [row for row in timeless if key in row]


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float) -> None:
    """The same names, and values within ``tolerance``."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=tolerance, rtol=tolerance)
