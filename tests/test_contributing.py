"""CONTRIBUTING tells the truth: its objective trains, its row is one, and its commands are run where a change is checked."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import objective_calls
import pytest

from diffusion_feedback.catalog.rows import ObjectiveRow
from diffusion_feedback.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
BLOCKS = [
    re.sub(r"^   ", "", block, flags=re.MULTILINE) for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
]
COMMANDS = [line.split("  #")[0].strip() for line in re.findall(r"^    (make .+|\.ci/run.*)$", TEXT, re.MULTILINE)]
# What no check can run: itself, and what asks the package index for today's releases.
NOT_RUN = {".ci/run", "make lock", "make newest", "make test INSTALLER=pip"}


def test_the_objective_trains_as_the_one_that_ships(
    make_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_losses.py").write_text(BLOCKS[0], "utf-8")
    losses = {}
    for folder, name in (("own", "my_losses.py:my_slic"), ("ours", "slic")):
        recipe = make_recipe(folder, objective={"name": name, "delta": 1e-3}, training={"max_train_steps": 2})
        assert main(["train", "--config", str(recipe)]) == 0
        rows = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        losses[folder] = [row["loss"] for row in rows if "loss" in row]
    assert len(losses["own"]) == 2
    assert losses["own"] == losses["ours"]


def test_the_row_is_one() -> None:
    name, row = eval("{" + BLOCKS[1] + "}", {"ObjectiveRow": ObjectiveRow}).popitem()
    assert name == "my_slic"
    assert row.kind == "pairwise"
    assert not row.reference


def test_files_that_are_named_exist() -> None:
    named = set(re.findall(r"`((?:tests|docs|tools|diffusion_feedback)/[\w./]+)`", TEXT))
    assert len(named) > 5
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    assert hasattr(objective_calls, "settings_for")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_run(command: str) -> None:
    """By .ci/run; what `make check` stands for is run target by target."""
    if command in NOT_RUN:
        return
    checked = (ROOT / ".ci" / "run").read_text("utf-8")
    steps = ["make lint", "make types", "make test"] if command == "make check" else [command]
    assert [step for step in steps if step not in checked] == []
    plan = subprocess.run(
        ["bash", "-c", command.replace("make", "make -n", 1)], cwd=ROOT, capture_output=True, text=True
    )
    assert plan.returncode == 0, plan.stderr
