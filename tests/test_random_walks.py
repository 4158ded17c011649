"""The world of experiments/random_walks.py: its shortest paths, its rewards, and its 23 tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diffusion_feedback.likelihoods.tokenization import Tokenization
from diffusion_feedback.records import TextRecord
from experiments import random_walks
from experiments.random_walks import GOAL, LONGEST, NODES, Graph


@pytest.mark.parametrize("seed", range(4))
def test_shortest_paths_by_powers_of_the_edges(seed: int) -> None:
    """A path of k edges exists where the k-th power of the edges' matrix is above 0."""
    graph = Graph.draw(np.random.default_rng(seed))
    reached = np.eye(NODES, dtype=int)
    expected = np.zeros(NODES, dtype=int)
    for edges in range(NODES):
        expected[(reached[:, GOAL] > 0) & (expected == 0)] = edges + 1
        reached = np.minimum(reached @ graph.edges, 1)
    assert graph.shortest.tolist() == expected.tolist()
    assert graph.shortest.max() < LONGEST
    assert not graph.edges.diagonal().any()


def test_rewards() -> None:
    edges = np.zeros((NODES, NODES), dtype=bool)
    for node in range(1, NODES):
        edges[node, node - 1] = True  # down to the goal, one at a time
    edges[1, 2] = edges[5, 1] = True
    shortest = np.array([1, 2, 3, 4, 5, 3, *range(4, 4 + NODES - 6)])
    graph = Graph(edges, shortest)
    assert graph.optimality([1, 0]) == 1
    assert graph.optimality([5, 1, 0]) == 1
    assert graph.optimality([5, 4, 3, 2, 1, 0]) == pytest.approx(1 - 3 / 7)
    assert graph.optimality([1, 2, 1, 2, 1, 2, 1, 2, 1, 0]) == 0  # arrives, as late as can be
    assert graph.optimality([3, 2, 1]) == 0  # does not arrive
    assert graph.optimality([3, 0]) == 0  # takes an edge that is not there
    assert graph.optimality([1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 0]) == 0  # too late


def test_what_is_written(tmp_path: Path) -> None:
    graph = random_walks.prepare(tmp_path, 7)
    spelling = random_walks.tokenizer()
    assert len(spelling) == 23
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 1000
    for row in rows[:200]:
        (example,) = Tokenization(spelling, 20).encode([TextRecord(row["prompt"], row["completion"])])
        *path, end = example.chosen.ids.tolist()
        assert end == spelling.eos_token_id
        assert random_walks.spell(path) == row["prompt"] + row["completion"]
        assert example.chosen.prompt_length == 1
        assert graph.optimality(path) == row["reward"]
        assert (path[-1] == GOAL) == (len(path) < LONGEST or row["completion"].endswith("a"))
    assert 0.05 < float(np.mean([row["reward"] for row in rows])) < 0.7
    before = (tmp_path / "train.jsonl").read_bytes()
    random_walks.prepare(tmp_path, 7)
    assert (tmp_path / "train.jsonl").read_bytes() == before
