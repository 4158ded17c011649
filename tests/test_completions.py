"""Files of completions that come out the same whatever kills their writer, and refuse to be mixed."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from diffusion_feedback.errors import UserError
from diffusion_feedback.generation.completions import Completion, complete_prompts, draw_seed, load_completions
from diffusion_feedback.records import CompletionRecord, Text

PROMPTS: list[Text] = ["a cat\u2028is", ({"role": "user", "content": "naïve “café”"},), "", "a dog"]
SETTINGS = {"temperature": 1.0, "stop": (1, 2)}


class CountingSampler:
    """A function of prompt and seed; fails like a killed process after ``limit`` batches."""

    def __init__(self, limit: int = 1000) -> None:
        self.limit = limit
        self.batches: list[int] = []

    def __call__(self, prompts: Sequence[Text], seeds: Sequence[int]) -> list[Completion]:
        if len(self.batches) == self.limit:
            raise KeyboardInterrupt
        self.batches.append(len(prompts))
        drawn = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            source = random.Random(f"{prompt}|{seed}")
            ids = tuple(source.randrange(100) for _ in range(source.randrange(4)))
            drawn.append(Completion(f"text {ids}", ids, source.random() < 0.5))
        return drawn


def run(path: Path, sampler: CountingSampler | None = None, **changes: Any) -> list[CompletionRecord]:
    options: dict[str, Any] = {"seeds": (0, 3), "num_samples": 2, "model_hash": "m1", "settings": SETTINGS}
    options |= {"prompts": PROMPTS, "batch_size": 3} | changes
    return complete_prompts(options.pop("prompts"), path, sampler=sampler or CountingSampler(), **options)


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    records = run(tmp_path / "completions.jsonl")
    assert load_completions(tmp_path) == load_completions(tmp_path / "completions.jsonl") == records
    assert [record.identity for record in records] == [(p, s, n) for p in range(4) for s in (0, 3) for n in range(2)]
    assert all(record.settings == {"temperature": 1.0, "stop": [1, 2]} for record in records)
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert rows[4]["prompt"] == [{"role": "user", "content": "naïve “café”"}]


def test_lines_that_are_no_completions_are_refused(tmp_path: Path) -> None:
    line = run(tmp_path / "completions.jsonl")[0].to_json()
    assert CompletionRecord.from_json(line).to_json() == line
    with pytest.raises(ValueError, match="completion is "):
        CompletionRecord.from_json(json.dumps(json.loads(line) | {"completion": ["a"]}))
    with pytest.raises(KeyError):
        CompletionRecord.from_json('{"prompt": "a"}')


def test_draws_are_functions_of_prompt_seed_and_sample(tmp_path: Path) -> None:
    first = {r.identity: r.completion for r in run(tmp_path / "a.jsonl")}
    other = run(tmp_path / "b.jsonl", prompts=PROMPTS[::-1], batch_size=16, num_samples=3, seeds=(3,))
    for record in other:
        identity = (3 - record.prompt_index, record.seed, record.sample)
        assert first.get(identity, record.completion) == record.completion
    assert len(set(first.values())) > 8
    seeds = {draw_seed(prompt, seed, sample) for prompt in PROMPTS for seed in (0, 1) for sample in range(3)}
    assert len(seeds) == 24
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("torn", [b"", b'{"completion": "ha', b"\xff"])
@pytest.mark.parametrize("limit", [0, 1, 3, 5])
def test_a_killed_run_ends_in_the_same_bytes(tmp_path: Path, limit: int, torn: bytes) -> None:
    run(tmp_path / "whole.jsonl")
    path = tmp_path / "part.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(path, CountingSampler(limit))
    with path.open("ab") as file:
        file.write(torn)
    (tmp_path / ".part.jsonl.123.tmp").write_text("left behind")
    sampler = CountingSampler()
    run(path, sampler)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sum(sampler.batches) == 16 - 3 * limit
    assert not list(tmp_path.glob(".*"))


def test_a_batch_that_is_half_there_is_drawn_whole(tmp_path: Path) -> None:
    """The rest of a batch alone would be another batch to a GPU."""
    run(tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_bytes().split(b"\n")
    (tmp_path / "part.jsonl").write_bytes(b"\n".join(lines[:5]) + b"\n")
    sampler = CountingSampler()
    run(tmp_path / "part.jsonl", sampler)
    assert sampler.batches == [3, 3, 3, 3, 1]
    assert (tmp_path / "part.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_hash": "m2"}, "completions of model 'm1', this run is of 'm2'"),
        ({"settings": {"temperature": 0.5}}, "made with stop = \\[1, 2\\]"),
        ({"settings": {**SETTINGS, "top_k": 3}}, "made with top_k = 'unset', this run has top_k = 3"),
        ({"prompts": [*PROMPTS[:3], "a bird"]}, "prompt 3 was 'a dog', this run has 'a bird'"),
        ({"seeds": (0,)}, "holds prompt 0, seed 3, sample 0 where this run has prompt 1, seed 0, sample 0"),
        ({"prompts": PROMPTS[:2]}, "holds 16 completions, this run requests 8"),
    ],
)
def test_other_runs_are_refused_and_may_be_replaced(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "completions.jsonl"
    run(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=message):
        run(path, **changes)
    assert path.read_bytes() == before
    assert load_completions(path) != run(path, overwrite=True, **changes)


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    with pytest.raises(UserError, match="no such file"):
        load_completions(path)
    run(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="its last line was cut off"):
        load_completions(path)
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(UserError, match="line 1: not the record of a completion: has no '"):
        load_completions(path)
