"""Several data sets in the place of one: which examples an epoch draws, how often, and what is said of each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from support.pairs_data import jpeg, write_pairs

import diffusion_feedback as dfb
from diffusion_feedback.cli.main import main
from diffusion_feedback.config.data_lists import data_parts, named
from diffusion_feedback.data.index import PairIndex
from diffusion_feedback.data.readers import open_pairs
from diffusion_feedback.data.token_index import TokenIndex, unpair
from diffusion_feedback.errors import UserError
from diffusion_feedback.training.order import EpochOrder
from diffusion_feedback.types.texts import TokenExample, TokenSequence

MakeRecipe = Callable[..., Path]

# --- order -----------------------------------------------------------------------------------------------------------


def drawn(order: EpochOrder, epochs: int) -> list[Counter[int]]:
    steps = order.steps_per_epoch
    return [Counter(i for s in range(e * steps, (e + 1) * steps) for i in order.indices(s)) for e in range(epochs)]


def test_repeats_are_exact_and_weights_are_on_average() -> None:
    times = (1.0,) * 10 + (3.0,) * 4 + (0.5,) * 6 + (2.5,) * 2
    order = EpochOrder(22, 1, 7, times)
    assert order.num_draws == order.steps_per_epoch == 10 + 12 + 3 + 5
    epochs = drawn(order, 4)
    for epoch in epochs:
        assert [epoch[i] for i in range(14)] == [1] * 10 + [3] * 4
        assert sum(epoch[i] for i in range(14, 20)) == 3
    total = sum(epochs, Counter[int]())
    assert [total[i] for i in range(14, 22)] == [2] * 6 + [10] * 2
    assert [order.indices(s) for s in (5, 31, 5)] == [EpochOrder(22, 1, 7, times).indices(s) for s in (5, 31, 5)]
    assert [EpochOrder(22, 1, 8, times).indices(s) for s in range(30)] != [order.indices(s) for s in range(30)]


def test_every_stretch_of_an_epoch_has_the_mixture() -> None:
    order = EpochOrder(1100, 10, 0, (1.0,) * 1000 + (10.0,) * 100)
    shares = [np.mean(np.asarray(order.indices(step)) >= 1000) for step in range(order.steps_per_epoch)]
    assert np.mean(shares) == 0.5
    assert np.std(shares) < 0.11  # of draws at random it is 0.158
    batches = [order.indices(step) for step in range(order.steps_per_epoch)]
    assert all(len(set(batch)) == 10 for batch in batches)
    assert [order.draw(step) for step in (0, 1, 250)] == [0, 1, 250]  # the same example has other noise each time


def test_one_data_set_has_the_order_of_before() -> None:
    plain = EpochOrder(10, 3, 5)
    assert plain.indices(4) == np.random.default_rng([5, 1]).permutation(10)[3:6].tolist()
    assert plain.draw(4) == 1
    with pytest.raises(UserError, match="batch of 9 examples is larger than the 8 usable ones"):
        EpochOrder(4, 9, 0, (2.0,) * 4)


# --- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "data.train: an empty list"),
        ([3], "data.train, item 1: got 3"),
        (["a", {"weight": 2}], "data.train, item 2: no path"),
        ([{"path": "a", "wieght": 2}], "unknown key 'wieght'\n  -> did you mean 'weight'"),
        ([{"path": "a", "repeats": 1.5}], "repeats: got 1.5\n  -> give a whole number"),
        ([{"path": "a", "repeats": 0}], "repeats: got 0"),
        ([{"path": "a", "weight": -1}], "weight: got -1"),
        ([{"path": "a", "weight": "much"}], "weight: got 'much'"),
        (["a", {"path": "a"}], "a stands in the list twice"),
    ],
)
def test_lists_that_make_no_sense(given: list[Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        data_parts(given, "data.train", weighted=True)


def test_lists_that_do() -> None:
    given = [{"path": "a", "weight": 2}, {"path": "b", "repeats": 3}, "c"]
    parts = data_parts(given, "data.train", weighted=True)
    assert [(part.place, part.times) for part in parts] == [("a", 2.0), ("b", 3.0), ("c", 1.0)]
    assert named(given) == "a (weight 2), b (repeats 3), c"
    assert named("a") == "a"
    with pytest.raises(UserError, match="data.validation, item 1: weight: means nothing here"):
        data_parts(given, "data.validation", weighted=False)


# --- indexes ---------------------------------------------------------------------------------------------------------


def test_tables_in_a_list_are_as_tables_in_a_folder(tmp_path: Path) -> None:
    one, two = write_pairs(tmp_path / "set/a.parquet", 6), write_pairs(tmp_path / "set/b.parquet", 4, 300)
    joined = PairIndex.build(open_pairs(tmp_path / "set"), quiet=True)
    listed = PairIndex.build(open_pairs(one), open_pairs(two), quiet=True)
    assert [(pair.example_id, pair.label_0) for pair in listed.pairs] == [
        (p.example_id, p.label_0) for p in joined.pairs
    ]
    assert (listed.times, listed.part_sizes) == (None, [6, 4])
    for index in (joined, listed):
        batch = index.batch(range(10), 0)
        assert all(image.open().size == (16, 16) for image in (*batch.chosen, *batch.rejected))
    assert [p.key for p in listed.batch(range(10), 0).chosen] == [p.key for p in joined.batch(range(10), 0).chosen]


def votes(folder: Path, name: str, shares: list[tuple[int, str]]) -> Path:
    for number in {n for n, _ in shares}:
        for side in "ab":
            (folder / f"{number}{side}.jpg").write_bytes(jpeg(40 * number, ord(side)))
    rows = [{"prompt": f"p{n}", "image_a": f"{n}a.jpg", "image_b": f"{n}b.jpg", "vote": vote} for n, vote in shares]
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return folder / name


def test_votes_on_one_pair_are_joined_over_data_sets(tmp_path: Path) -> None:
    one = votes(tmp_path, "one.jsonl", [(1, "a"), (1, "a"), (2, "a")])
    two = votes(tmp_path, "two.jsonl", [(1, "b"), (3, "b")])
    index = PairIndex.build(open_pairs(one), open_pairs(two), times=[2.0, 3.0], quiet=True)
    strength = {p.prompt: (round(max(p.label_0, 1 - p.label_0), 3), p.times) for p in index.pairs}
    assert strength == {"p1": (0.667, 3.0), "p2": (1.0, 2.0), "p3": (1.0, 3.0)}
    assert index.part_sizes == [2, 2]
    assert any("1 pair stands in several of them" in note for note in index.notes)


def test_repeated_texts() -> None:
    def example(name: int, times: float, *, is_turned: bool = False) -> TokenExample:
        sides = [TokenSequence(np.array([1, name, n], np.int32), np.array([0, 0, 1], bool), 2) for n in (5, 6)]
        chosen, rejected = sides[::-1] if is_turned else sides
        return TokenExample(f"{name} {is_turned}", chosen, rejected, times=times)

    index = TokenIndex([example(1, 1.0), example(2, 3.0), example(1, 2.0), example(3, 1.0)])
    assert {each.example_id: each.times for each in index.examples} == {"1 False": 2.0, "2 False": 3.0, "3 False": 1.0}
    assert index.times is not None
    assert TokenIndex([example(1, 1.0)]).times is None
    assert [each.times for each in unpair([example(2, 3.0)])] == [3.0, 3.0]


# --- runs ------------------------------------------------------------------------------------------------------------


def weights(folder: Path) -> dict[str, Any]:
    return {name: value.tolist() for name, value in load_file(folder / "pytorch_lora_weights.safetensors").items()}


def test_a_run_on_a_list_goes_on_where_it_was(
    make_recipe: MakeRecipe, pair_files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = write_pairs(tmp_path / "small.parquet", 5, 900)
    data = {"train": [str(pair_files["train"]), {"path": str(small), "repeats": 3}]}
    whole = make_recipe("whole", data=data, training={"max_train_steps": 4})
    assert main(["train", "--config", str(whole)]) == 0
    said = capsys.readouterr().out
    assert f"{pair_files['train']}: 24 pairs: 61.5% of the draws" in said
    assert f"{small}: 5 pairs, each 3 times an epoch: 38.5% of the draws" in said
    half = make_recipe("half", data=data, training={"max_train_steps": 2})
    assert main(["train", "--config", str(half)]) == 0
    assert main(["train", "--config", str(half), "--training.max_train_steps", "4", "--resume"]) == 0
    assert weights(tmp_path / "half") == weights(tmp_path / "whole")
    assert (
        f"on {pair_files['train']}, {small} (repeats 3), 4 optimizer steps"
        in (tmp_path / "whole/README.md").read_text()
    )


def test_a_list_in_python_and_as_a_flag(
    make_recipe: MakeRecipe, pair_files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = dfb.load_recipe(make_recipe(training={"max_train_steps": 1}))
    own = datasets.Dataset(pq.read_table(write_pairs(tmp_path / "own.parquet", 6, 700)))
    parts: list[Any] = [{"path": own, "weight": 0.5}, str(pair_files["train"])]
    run = dfb.train(recipe, train_data=parts, dry_run=True)
    assert any(line.startswith("examples         30 for training") for line in run.plan)
    assert run.recipe.data.train == f"<datasets.Dataset, given in Python, 6 rows x 0.5 and {pair_files['train']}>"
    with pytest.raises(UserError, match="train_data, item 1: got 3"):
        dfb.train(recipe, train_data=[3], dry_run=True)
    listed = f"[{pair_files['train']}, {{path: {tmp_path / 'own.parquet'}, weight: 2}}]"
    assert main(["train", "--config", str(make_recipe()), "--data.train", listed, "--dry_run"]) == 0
    assert "6 pairs, each 2 times an epoch: 33.3% of the draws" in capsys.readouterr().out


def test_a_list_of_texts(make_text_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"p{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(12)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows[:8])))
    ballots = [
        {"prompt": r["prompt"], "response_a": r["chosen"], "response_b": r["rejected"], "vote": "a"} for r in rows
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, ballots[8:])))
    data = {"train": [str(tmp_path / "a.jsonl"), {"path": str(tmp_path / "b.jsonl"), "repeats": 2}], "validation": None}
    recipe = make_text_recipe(data=data, training={"max_train_steps": 2, "train_batch_size": 4})
    assert main(["train", "--config", str(recipe), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "b.jsonl: 4 rows, each 2 times an epoch: 50.0% of the draws" in said
    assert main(["train", "--config", str(recipe)]) == 0
