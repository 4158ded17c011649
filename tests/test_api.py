"""The package as a library: its public names, and what they do with objects instead of names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import diffusion_feedback as dfb

ROOT = Path(__file__).resolve().parent.parent
BASE: dict[str, Any] = {
    "model": {"pretrained_model_name_or_path": "somewhere"},
    "data": {"train": "pairs.parquet"},
    "output_dir": "runs/x",
}


def test_editors_and_python_see_the_same_names() -> None:
    module = ast.parse(Path(dfb.__file__).read_text())
    block = next(node for node in module.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names if isinstance(node, ast.ImportFrom)}
    assert seen == dfb._HOMES
    assert sorted(dfb.__all__) == sorted(seen)


@pytest.mark.parametrize("name", dfb.__all__)
def test_public_names_are_documented(name: str) -> None:
    assert name in dir(dfb)
    assert getattr(dfb, name).__doc__


def test_a_name_that_is_none() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        dfb.trian  # noqa: B018


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, diffusion_feedback; print(len(dir(diffusion_feedback)), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split()[1] == "False"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**BASE, "objective": {"name": "dpo", "beta": 100}}))
    return path


def test_a_recipe_with_overrides(file: Path) -> None:
    plain = dfb.load_recipe(file)
    assert plain.objective == {"name": "dpo", "beta": 100.0}
    changes = {"training.learning_rate": 3, "objective.beta": 7, "data.validation": None, "output_dir": Path("runs/y")}
    changed = dfb.load_recipe(str(file), changes)
    assert changed.training.learning_rate == 3.0
    assert isinstance(changed.training.learning_rate, float)
    assert changed.objective == {"name": "dpo", "beta": 7.0}
    assert changed.output_dir == "runs/y"
    assert changed.data == plain.data
    assert dfb.load_recipe(file, {"objective": {"name": "sft"}}).objective == {"name": "sft"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.learning_rat", 1.0, "unknown key 'training.learning_rat'.*did you mean 'learning_rate'"),
        ("trainin.learning_rate", 1.0, "unknown key 'trainin.learning_rate'.*did you mean 'training.learning_rate'"),
        ("training.learning_rate", -1.0, r"training.learning_rate: got -1.0.*allowed: 0 "),
        ("training.learning_rate", "fast", r"training.learning_rate: got fast.*allowed: a number"),
        ("training", 3, "training: got 3"),
        ("model", {}, "missing: model.pretrained_model_name_or_path.*set it in the recipe"),
        ("objective.bata", 1.0, "objective 'dpo' does not take 'bata'.*did you mean 'beta'"),
        ("data.train", {1, 2}, "data.train"),
    ],
)
def test_an_override_that_cannot_be(key: str, value: object, message: str, file: Path) -> None:
    with pytest.raises(dfb.UserError, match=f"(?s){message}") as error:
        dfb.load_recipe(file, {key: value})
    assert "--" not in str(error.value)
