"""Recipes of tiny real runs on texts: a tiny language model, preference pairs in a file, and what joins them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

MakeTextRecipe = Callable[..., Path]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of which the chosen completion speaks of a cat and the rejected one of a dog, of unlike lengths."""
    import tiny_text

    texts = list(tiny_text.sentences(3 * count, seed=seed))
    return [
        {
            "prompt": f"{texts[i]} {seed}-{i}:",
            "chosen": f" the cat {texts[count + i]}",
            "rejected": f" the dog {texts[2 * count + i]}",
        }
        for i in range(count)
    ]


def write_recipe(folder: Path, path: Path, name: str = "run", **changes: Any) -> Path:
    """Write a recipe with changes such as ``training={"seed": 1}`` to a file in ``folder``, and return its path.

    A section that is None is left out.
    """
    recipe: dict[str, Any] = {
        "model": {"pretrained_model_name_or_path": str(path), "family": "causal_lm", "tuning": "full"},
        "data": {
            "train": str(folder / "train.jsonl"),
            "validation": str(folder / "validation.jsonl"),
            "cache_dir": str(folder / "cache"),
        },
        "output_dir": str(folder / name),
        "objective": {"name": "dpo", "beta": 0.1},
        "training": {"max_train_steps": 4, "train_batch_size": 4, "learning_rate": 1e-3, "checkpointing_steps": 2},
        "validation": {"num_prompts": 1},
        "rollouts": {"max_new_tokens": 4},
    }
    if not (folder / "train.jsonl").exists():
        write_jsonl(folder / "train.jsonl", pairs(24))
        write_jsonl(folder / "validation.jsonl", pairs(10, seed=1))
    for section, values in changes.items():
        is_whole = values is None or section in ("objective", "optimizer")
        recipe[section] = values if is_whole else {**recipe.get(section, {}), **values}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in recipe.items() if value is not None}))
    return path


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a ChatML tokenizer. Read only."""
    import tiny_text

    return tiny_text.save_tiny_lm(tmp_path_factory.mktemp("lm") / "model")


@pytest.fixture
def make_text_recipe(tmp_path: Path, tiny_lm: Path) -> MakeTextRecipe:
    """``write_recipe`` in the test's own folder, on the tiny language model."""

    def make(name: str = "run", **changes: Any) -> Path:
        return write_recipe(tmp_path, tiny_lm, name, **changes)

    return make
