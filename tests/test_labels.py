"""Labels in Python: ``dfb.label`` on images and pairs, rules that users write, calibration, checking and converting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import shapes_images
from PIL import Image

import diffusion_feedback as dfb
from diffusion_feedback.cli.main import main

SHAPES = "shapes"
PAIRS = Path("assets/pairs/validation-00000.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shapes_images.write_folder(tmp_path / "set", 3, 4)


def test_the_command_and_the_call_give_the_same_pairs(folder: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    pairs = dfb.label(folder, scorers=SHAPES, rule="all_pairs", ties="half", cache_dir=cache)
    output = tmp_path / "pairs.parquet"
    argv = ["label", str(folder), "--scorer", SHAPES, "--rule", "all_pairs", "--ties", "half", "--cache_dir", cache]
    assert main([*argv, "--output", str(output)]) == 0
    assert pairs.to_list() == pq.read_table(output).to_pylist()
    pairs.to_parquet(tmp_path / "own.parquet")
    assert dfb.check(str(tmp_path / "own.parquet")).is_ready


def test_pictures_in_memory_are_paired(folder: Path) -> None:
    table = dfb.score(folder, scorers=SHAPES, cache_dir=None)
    pictures = []
    for name in table["image"]:
        with Image.open(folder / name) as image:
            pictures.append(image.copy())
    pairs = dfb.label(pictures, table["prompt"], scorers=SHAPES, cache_dir=None)
    other = dfb.label(folder, scorers=SHAPES, cache_dir=None)
    assert sorted(pairs["caption"]) == sorted(other["caption"])
    scores = [sorted((row["score_0_shapes"], row["score_1_shapes"])) for row in pairs]
    assert scores == [sorted((row["score_0_shapes"], row["score_1_shapes"])) for row in other]


def test_scores_of_before_judge(folder: Path) -> None:
    table = dfb.score(folder, scorers=[SHAPES, "other:shapes"][:1], cache_dir=None)
    pairs = dfb.label(folder, scores=table, use=[SHAPES])
    assert pairs.to_list() == dfb.label(folder, scorers=SHAPES, cache_dir=None).to_list()


def second_best(standing: Any, *, place: int = 1) -> list[tuple[int, int]]:
    return [(0, place)]


def test_own_rules(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.py").write_text("def best(standing, *, place=1):\n    return [(0, place)]\n")
    given = dfb.label(folder, scorers=SHAPES, rule=second_best, ties="half", cache_dir=None)
    named = dfb.label(folder, scorers=SHAPES, rule=f"{tmp_path / 'rules.py'}:best", ties="half", cache_dir=None)
    last = dfb.label(folder, scorers=SHAPES, rule=f"{tmp_path / 'rules.py'}:best,place=3", ties="half", cache_dir=None)
    worst = dfb.label(folder, scorers=SHAPES, rule="best_worst", ties="half", cache_dir=None)
    assert given["jpg_0"] == named["jpg_0"]
    assert given["rule"][0].endswith(":second_best")
    assert last["jpg_0"] == worst["jpg_0"]


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (lambda standing: [(0, 4)], r"picks \(0, 4\) of 4 candidates"),
        (lambda standing: [(1, 1)], r"picks \(1, 1\)"),
        (lambda standing: [(0, 0.5)], "TypeError"),
        (lambda standing: 1 / 0, "ZeroDivisionError"),
        ("best_wurst", "did you mean 'best_worst'"),
    ],
)
def test_rules_that_fail_are_one_error(folder: Path, rule: Any, problem: str) -> None:
    with pytest.raises(dfb.UserError, match=problem):
        dfb.label(folder, scorers=SHAPES, rule=rule, cache_dir=None)


def test_pairs_get_new_labels(tmp_path: Path) -> None:
    pairs = datasets.Dataset(pq.read_table(PAIRS).slice(0, 8))
    labelled = dfb.label(pairs, scorers=SHAPES, ties="half", cache_dir=None)
    assert set(labelled["rule"]) == {"relabel"}
    assert labelled["jpg_0"] == pairs["jpg_0"]
    assert labelled["human_label_0"] == pairs["label_0"]
    for row in labelled:
        first, second = row["score_0_shapes"], row["score_1_shapes"]
        assert row["label_0"] == (first > second) + 0.5 * (first == second)


def test_a_calibration_is_a_result(tmp_path: Path) -> None:
    pairs = datasets.Dataset(pq.read_table(PAIRS).slice(0, 200))
    result = dfb.calibrate(pairs, scorers=SHAPES, cache_dir=str(tmp_path), ceiling_scorer=SHAPES)
    [scorer] = result.scorers
    decided = [
        row
        for row in dfb.label(pairs, scorers=SHAPES, ties="half", cache_dir=str(tmp_path))
        if row["human_label_0"] != 0.5
    ]
    right = sum(
        0.5 if row["label_0"] == 0.5 else (row["label_0"] > 0.5) == (row["human_label_0"] > 0.5) for row in decided
    )
    assert scorer.accuracy.value == pytest.approx(right / len(decided))
    scales = {scorer.recipe_id: scorer.fit.logit_scale}
    soft = dfb.label(pairs, scorers=SHAPES, ties="soft", calibration=scales, cache_dir=str(tmp_path))
    assert set(soft["logit_scales"][0]) == {scorer.fit.logit_scale}


def test_converting_gives_its_result(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    done = dfb.convert(str(tmp_path / "a.jsonl"), tmp_path / "b.parquet")
    assert (done.num, done.unit) == (1, "example")
    with pytest.raises(dfb.UserError, match="exists already"):
        dfb.convert(str(tmp_path / "a.jsonl"), tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("keywords", "problem"),
    [
        ({"ties": "keep"}, "`ties`: got 'keep'"),
        ({"tie_margin": 0.7}, "`tie_margin`: got 0.7"),
        ({"scorers": None}, "neither scorers nor `scores`"),
        ({"rule": "best_worst", "relabel": True}, "`relabel`: keeps the pairs"),
        ({"tie_margn": 0.1}, "`tie_margn`: is no setting"),
    ],
)
def test_bad_calls_name_the_parameter(folder: Path, keywords: dict[str, Any], problem: str) -> None:
    with pytest.raises(dfb.UserError, match=problem):
        dfb.label(folder, **{"scorers": SHAPES, "cache_dir": None, **keywords})
