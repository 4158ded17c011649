"""Labels in Python: ``dfb.label`` on images and pairs, rules that users write, calibration, checking and converting."""

from __future__ import annotations

import json
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


def test_the_call_writes_the_command_s_bytes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache, own, other = str(tmp_path / "cache"), tmp_path / "own.parquet", tmp_path / "other.parquet"
    pairs = dfb.label(folder, scorers=SHAPES, ties="half", cache_dir=cache, output=own)
    argv = ["label", str(folder), "--scorer", SHAPES, "--ties", "half", "--cache_dir", cache, "--output", str(other)]
    assert capsys.readouterr() == ("", "")
    assert main(argv) == 0
    assert f"{other}: 3 pairs" in capsys.readouterr().out
    assert own.read_bytes() == other.read_bytes()
    whole = pq.read_table(own)
    assert pairs.to_list() == whole.drop_columns(["jpg_0", "jpg_1"]).to_pylist()
    assert whole["jpg_0"].to_pylist() == dfb.label(folder, scorers=SHAPES, ties="half", cache_dir=cache)["jpg_0"]
    with pytest.raises(dfb.UserError, match="(?s)exists already.*`overwrite`"):
        dfb.label(folder, scorers=SHAPES, cache_dir=cache, output=str(own))
    own.write_text("of before")
    dfb.label(folder, scorers=SHAPES, ties="half", cache_dir=cache, output=own, overwrite=True)
    assert own.read_bytes() == other.read_bytes()


def test_outputs_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    def refused(problem: str, images: Any, **keywords: Any) -> None:
        with pytest.raises(dfb.UserError, match=problem):
            dfb.label(images, **{"cache_dir": None, "overwrite": True, **keywords})

    (tmp_path / "pairs").mkdir()
    pairs, table = tmp_path / "pairs" / "train-0.parquet", tmp_path / "scores.parquet"
    pq.write_table(pq.read_table(PAIRS).slice(0, 8), pairs)
    before = pairs.read_bytes()
    dfb.score(folder, scorers=SHAPES, cache_dir=None, output=table)
    refused("is an input, and would be lost", pairs, scorers=SHAPES, output=pairs)
    refused("is an input, and would be lost", folder, scores=table, output=table)
    refused("lies in .*pairs, whose files are read", pairs.parent, scorers=SHAPES, output=pairs.parent / "new.parquet")
    refused("a name that ends in .parquet", folder, scorers=SHAPES, output=tmp_path / "pairs.csv")
    refused("`overwrite`: nothing is written without `output`", folder, scorers=SHAPES)
    assert pairs.read_bytes() == before


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
    assert dfb.label(folder, scores=table, use=SHAPES).to_list() == pairs.to_list()


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


def test_a_calibration_is_the_command_s_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, cache = tmp_path / "pairs.parquet", str(tmp_path / "cache")
    pq.write_table(pq.read_table(PAIRS).slice(0, 200), pairs)
    own, other = tmp_path / "own", tmp_path / "other"
    result = dfb.calibrate(str(pairs), scorers=SHAPES, cache_dir=cache, output_dir=own)
    assert capsys.readouterr() == ("", "")
    assert main(["calibrate", str(pairs), "--scorer", SHAPES, "--cache_dir", cache, "--output_dir", str(other)]) == 0
    assert f"{other}: calibration.json, report.html, README.md" in capsys.readouterr().out
    names = ["README.md", "calibration.json", "report.html"]
    assert sorted(path.name for path in own.iterdir()) == names
    assert [(own / name).read_bytes() for name in names] == [(other / name).read_bytes() for name in names]
    assert json.loads((own / "calibration.json").read_text()) == result.to_json()
    fitted = dfb.label(str(pairs), scorers=SHAPES, ties="soft", calibration=own / "calibration.json", cache_dir=cache)
    assert fitted["logit_scales"][0] == [result.scorers[0].fit.logit_scale]
    with pytest.raises(dfb.UserError, match="(?s)holds files already.*`overwrite`"):
        dfb.calibrate(str(pairs), scorers=SHAPES, cache_dir=cache, output_dir=str(own))
    with pytest.raises(dfb.UserError, match="is a file"):
        dfb.calibrate(str(pairs), scorers=SHAPES, cache_dir=cache, output_dir=pairs)
    with pytest.raises(dfb.UserError, match="`overwrite`: nothing is written without `output_dir`"):
        dfb.calibrate(str(pairs), scorers=SHAPES, cache_dir=cache, overwrite=True)
    (own / "report.html").write_text("of before")
    dfb.calibrate(str(pairs), scorers=SHAPES, cache_dir=cache, output_dir=own, overwrite=True)
    assert (own / "report.html").read_bytes() == (other / "report.html").read_bytes()


def test_the_split_to_tune_on_means_nothing_without_pairs_to_tune_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(dfb.UserError, match="`tune_split`: means nothing without `tune`"):
        dfb.calibrate(str(PAIRS), scorers=SHAPES, tune_split="validation")
    argv = ["calibrate", str(PAIRS), "--scorer", SHAPES, "--tune_split", "validation", "--output_dir", "nowhere"]
    assert main(argv) == 2
    assert "--tune_split: means nothing without --tune" in capsys.readouterr().err


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
