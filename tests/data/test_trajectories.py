"""Completions with rewards: every form of rewards, where they are placed, and every row that is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_text

from diffusion_feedback.data.trajectories import TrajectoryIndex, index_trajectories, open_trajectories
from diffusion_feedback.errors import UserError
from diffusion_feedback.likelihoods.tokenization import Tokenization

TURNS = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "the cat"},
    {"role": "user", "content": "better"},
    {"role": "assistant", "content": "a dog"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def index(path: str, *, on_bad_row: Any = "error", max_length: int = 100, **more: Any) -> TrajectoryIndex:
    tokenization = Tokenization(tiny_text.tokenizer(chat_template=tiny_text.CHATML), 10_000)
    reader = open_trajectories(path, on_bad_row=on_bad_row)
    return index_trajectories(reader, tokenization.encode, max_length=max_length, **more)


def test_a_reward_comes_with_the_last_token(tmp_path: Path) -> None:
    found = index(write(tmp_path / "a.jsonl", [{"prompt": "the cat", "completion": " sat on the mat", "reward": -2}]))
    (trajectory,) = found.trajectories
    assert trajectory.sequence.ids[-1] == 1  # the end token
    assert trajectory.rewards.tolist() == [0.0] * (trajectory.sequence.num_scored - 1) + [-2.0]
    assert trajectory.rewards.dtype == np.float32


def test_rewards_of_tokens_and_of_the_end_token(tmp_path: Path) -> None:
    row = {"prompt": "the cat", "completion": " sat on"}
    count = index(write(tmp_path / "a.jsonl", [{**row, "reward": 1}])).counts[0]
    each = [float(number) for number in range(1, count + 1)]
    found = index(write(tmp_path / "b.jsonl", [{**row, "rewards": each}]))
    assert found.trajectories[0].rewards.tolist() == each
    found = index(write(tmp_path / "c.jsonl", [{**row, "rewards": each[:-1]}]))
    assert found.trajectories[0].rewards.tolist() == [*each[:-1], 0.0]
    with pytest.raises(UserError, match=rf"line 1, column 'rewards': {count + 1} numbers, expected 1 .* or {count} "):
        index(write(tmp_path / "d.jsonl", [{**row, "rewards": [*each, 0.0]}]))


def test_rewards_of_turns(tmp_path: Path) -> None:
    found = index(write(tmp_path / "a.jsonl", [{"messages": TURNS, "rewards": [0.5, 2.0]}]))
    (trajectory,) = found.trajectories
    scored = np.flatnonzero(trajectory.sequence.scored)
    ends = np.flatnonzero(trajectory.rewards)
    assert trajectory.rewards[ends].tolist() == [0.5, 2.0]
    assert ends[-1] == len(scored) - 1
    assert scored[ends[0] + 1] > scored[ends[0]] + 1  # between them stands the user's turn
    total = index(write(tmp_path / "b.jsonl", [{"messages": TURNS, "reward": 2.0}])).trajectories[0]
    assert np.flatnonzero(total.rewards).tolist() == [len(scored) - 1]


def test_parquet_and_jsonl_are_the_same_whatever_the_order(tmp_path: Path) -> None:
    rows = [{"prompt": word, "completion": " best", "reward": float(n)} for n, word in enumerate(("a", "the", "cat"))]
    pq.write_table(pa.Table.from_pylist(rows[::-1]), tmp_path / "a.parquet")
    first, second = index(str(tmp_path / "a.parquet")), index(write(tmp_path / "b.jsonl", rows))
    for one, other in zip(first.trajectories, second.trajectories, strict=True):
        assert one.example_id == other.example_id
        assert np.array_equal(one.sequence.ids, other.sequence.ids)
        assert np.array_equal(one.rewards, other.rewards)
    twice = index(write(tmp_path / "c.jsonl", [*rows, rows[0]]))
    assert len(twice) == 4  # what was seen twice counts twice
    batch = twice.batch([2, 0], 5)
    assert batch.draw == 5
    assert [len(rewards) for rewards in batch.rewards] == [twice.counts[2], twice.counts[0]]
    assert len(twice.head(2)) == 2


GOOD = {"prompt": "the cat", "completion": " sat", "reward": 1.0}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"reward": float("nan")}, ["column 'reward'", "nan", "not a finite number"]),
        ({"reward": float("inf")}, ["column 'reward'", "inf"]),
        ({"reward": "high"}, ["column 'reward'", "'high'"]),
        ({"reward": True}, ["column 'reward'", "True"]),
        ({"reward": None}, ["neither of the columns 'reward' and 'rewards'"]),
        ({"rewards": [1.0]}, ["both of the columns 'reward' and 'rewards'"]),
        ({"reward": None, "rewards": [0.0, float("nan")]}, ["rewards[1]", "nan"]),
        ({"reward": None, "rewards": [None]}, ["'rewards'", "item 0 is empty"]),
        ({"reward": None, "rewards": []}, ["'rewards'", "[]", "not a list of numbers"]),
        ({"reward": None, "rewards": 3}, ["'rewards'", "'3'"]),
        ({"completion": ""}, ["column 'completion'", "empty text"]),
        ({"completion": 7}, ["column 'completion'", "found 7"]),
        ({"completion": " the" * 200}, ["tokens, more than the 100 of text.max_length"]),
    ],
)
def test_bad_rows(tmp_path: Path, changes: dict[str, Any], named: list[str]) -> None:
    path = write(tmp_path / "a.jsonl", [GOOD, {**GOOD, **changes}])
    with pytest.raises(UserError) as caught:
        index(path)
    assert f"{path}, line 2" in str(caught.value)
    for words in named:
        assert words in str(caught.value)
    assert len(index(path, on_bad_row="skip")) == 1


def test_skipped_rows_are_listed(tmp_path: Path) -> None:
    broken = [{"role": "assistant", "content": "a"}]
    rows = [{"messages": TURNS, "reward": 1}, {"messages": TURNS, "reward": float("nan")}]
    path = write(tmp_path / "a.jsonl", rows)
    reader = open_trajectories(path, on_bad_row="skip")
    assert len(list(reader)) == 1
    assert [source for source, _ in reader.log.skipped] == [f"{path}, line 2"]
    bare = Tokenization(tiny_text.tokenizer(), 100)  # no chat template: no conversation can be tokenised
    reader = open_trajectories(write(tmp_path / "b.jsonl", [{"messages": broken, "reward": 1}]), on_bad_row="skip")
    with pytest.raises(UserError, match=r"0 usable trajectories .*; the first: .*b.jsonl, line 1"):
        index_trajectories(reader, bare.encode, max_length=100)


def test_completions_that_are_too_long(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [GOOD, {**GOOD, "completion": " sat on the mat and the dog"}])
    with pytest.raises(
        UserError, match=r"line 2: a completion of \d+ tokens, more than the 4 of text.max_completion_l"
    ):
        index(path, max_completion_length=4)
    assert len(index(path, max_completion_length=4, on_bad_row="skip")) == 1


def test_data_of_another_kind(tmp_path: Path) -> None:
    pairs = write(tmp_path / "a.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c", "reward": 1}])
    with pytest.raises(UserError, match="one completion is needed in each row"):
        index(pairs)
    with pytest.raises(UserError, match="columns: reward"):
        index(write(tmp_path / "b.jsonl", [{"reward": 1}]))
    with pytest.raises(UserError, match="no such file or folder"):
        open_trajectories(str(tmp_path / "none.jsonl"))
