"""The experiment on the frontier, whole, on a world of 27 completions; and its report against numbers by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from experiments.exact_frontier import bench, methods
from experiments.exact_frontier.__main__ import run_seed
from experiments.exact_frontier.methods import METHODS
from experiments.exact_frontier.report import (
    LABELS,
    bars,
    draw,
    interval,
    learned_against_dpo,
    read_rows,
    table,
    write_docs,
)
from experiments.exact_frontier.training import Course
from experiments.exact_frontier.world import ExactWorld


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> ExactWorld:
    """Courses of a few updates, and a world to go with them."""
    for module, name, value in (
        (bench, "SFT_SAMPLES", 64),
        (bench, "NUM_PROMPTS", 16),
        (bench, "HELD_OUT", 50),
        (bench, "SFT_COURSE", Course(3, 8, 1e-2)),
        (bench, "PAIR_COURSE", Course(3, 4, 1e-2)),
        (methods, "PAIR_COURSE", Course(3, 4, 1e-2)),
        (methods, "BASE_COURSE", Course(3, 4, 1e-2)),
        (methods, "ROUND_COURSE", Course(2, 4, 1e-2)),
        (methods, "ROUND_PROMPTS", 8),
        (methods, "ROUNDS", 2),
        (methods, "PPO_ITERATIONS", 2),
        (methods, "PPO_COMPLETIONS", 6),
    ):
        monkeypatch.setattr(module, name, value)
    few = {name: dataclasses.replace(method, settings=method.settings[:1]) for name, method in METHODS.items()}
    monkeypatch.setattr("experiments.exact_frontier.__main__.METHODS", few)
    return ExactWorld.draw(5, vocabulary=3, length=3)


@pytest.mark.slow
def test_every_method_gives_its_figures_and_is_not_run_twice(small: ExactWorld, tmp_path: Path) -> None:
    run_seed(small, 0, list(METHODS), tmp_path)
    rows = read_rows(tmp_path, [0])
    assert {row["method"] for row in rows} == set(METHODS)
    for row in rows:
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float)), row
        if "best_reward" in row:
            assert row["kl"] > 0
            assert row["reward"] <= row["best_reward"] + 1e-9
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "seed-0").glob("*.json")}
    file = tmp_path / "seed-0" / "dpo-2.json"
    first = json.loads(file.read_text())
    file.unlink()
    run_seed(small, 0, list(METHODS), tmp_path)
    again = {name: value for name, value in json.loads(file.read_text()).items() if name != "cpu_seconds"}
    assert again == {name: value for name, value in first.items() if name != "cpu_seconds"}  # from its checkpoint
    assert {each: each.stat().st_mtime_ns for each in written if each != file} == {
        each: time for each, time in written.items() if each != file
    }
    whole = table(rows) + bars(rows)
    assert set(LABELS) == set(METHODS) - {"sft", "reward_model"}
    assert all(label in whole for label in LABELS.values())
    draw(rows, small, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_interval_is_students() -> None:
    mean, half = interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert half == pytest.approx(4.302652729911275 * 1.5275252316519468 / math.sqrt(3))  # t of 2 degrees, deviation
    assert math.isnan(interval([1.0])[1])


def test_dpo_is_compared_at_the_divergence_of_ppo() -> None:
    rows = [
        {"seed": 0, "method": "sft", "setting": 0, "reward": 0.5},
        {"seed": 0, "method": "dpo", "setting": 1.0, "kl": 1.0, "share": 1.0},
        {"seed": 0, "method": "dpo", "setting": 0.5, "kl": 3.0, "share": 0.8},
        {"seed": 1, "method": "dpo", "setting": 1.0, "kl": 1.5, "share": 0.1},  # another seed's
        {"seed": 0, "method": "ppo_learned", "setting": 1.0, "kl": 1.5, "reward": 1.0, "best_reward": 2.5},
        {"seed": 0, "method": "ppo_learned", "setting": 0.1, "kl": 4.0, "reward": 1.0, "best_reward": 2.5},
    ]
    found = learned_against_dpo(rows)
    assert found[1.0] == [pytest.approx(0.5 + 0.95 * 2.0 - 1.0)]
    assert math.isnan(found[0.1][0])


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- tables: experiments.exact_frontier -->\nold\n<!-- end of tables -->\nafter\n")
    row = {"seed": 0, "method": "dpo", "setting": 2.0, "kl": 0.5, "reward": 1.25, "best_reward": 1.5, "share": 0.75}
    write_docs(page, [{**row, "optimum_kl": 0.4, "optimum_reward": 1.0}])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- end of tables -->\nafter\n")
    assert "old" not in text
    assert "| DPO | beta 2 | 0.500 | 1.250 | 1.500 | 0.750 | 0.400, 1.000 |" in text
    assert "KL 25.0%, reward 25.0%" in text
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="put the tables"):
        write_docs(page, [])
