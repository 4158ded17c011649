"""``dfb label`` end to end: pictures of the Shapes world to pairs, pairs to new labels, tables, kills, and bad input."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import killing
import pyarrow.parquet as pq
import pytest
import shapes_images
from image_world import exact_scores
from PIL import Image
from scored import logistic

from diffusion_feedback.cli.main import main
from diffusion_feedback.data.pickapic import write_pickapic
from diffusion_feedback.data.readers import open_pairs
from diffusion_feedback.data.scores import read_scores, write_scores
from diffusion_feedback.records import PairRecord, ScoreRecord
from diffusion_feedback.workflows import labeling

Label = Callable[..., list[dict[str, Any]]]
SHAPES = ["--scorer", "shapes"]
RECIPE = "shapes.1/box-64/fp32"
SCALE = 3.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 prompts with 4 pictures each, and the verifier's scores of them in a cache; read only."""
    root = tmp_path_factory.mktemp("world")
    shapes_images.write_folder(root / "set", 4, 4)
    (root / "calibration.json").write_text(json.dumps({"scorers": {RECIPE: {"logit_scale": SCALE}}}))
    return root


@pytest.fixture
def label(world: Path, tmp_path: Path) -> Label:
    """Run the command and return the rows of its output."""

    def run(source: str | Path, *flags: str, output: str = "pairs.parquet") -> list[dict[str, Any]]:
        argv = ["label", str(source), "--output", str(tmp_path / output), "--cache_dir", str(world / "cache"), *flags]
        assert main(argv) == 0
        rows: list[dict[str, Any]] = pq.read_table(tmp_path / output).to_pylist()
        return rows

    return run


@pytest.fixture(scope="module")
def scores(world: Path) -> dict[str, dict[str, float]]:
    """The verifier's score of each picture by caption and name, without any of the command's code."""
    found: dict[str, dict[str, float]] = {}
    for line in (world / "set" / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        image = Image.open(world / "set" / row["file_name"])
        found.setdefault(row["prompt"], {})[row["file_name"]] = float(exact_scores([image], [row["prompt"]])[0])
    return found


def test_best_against_worst(label: Label, world: Path, scores: dict[str, dict[str, float]]) -> None:
    rows = label(world / "set", *SHAPES)
    assert [row["caption"] for row in rows] == sorted(scores)
    for row in rows:
        own = scores[row["caption"]]
        names = (row["image_0_name"], row["image_1_name"])
        chosen, rejected = names if row["label_0"] == 1 else names[::-1]
        assert own[chosen] == max(own.values()) > own[rejected] == min(own.values())
        assert row["label_0"] + row["label_1"] == row["num_example_per_prompt"] == 1
        assert [row["jpg_0"], row["jpg_1"]] == [(world / "set" / name).read_bytes() for name in names]
        assert [row["score_0_shapes"], row["score_1_shapes"]] == pytest.approx([own[name] for name in names])
        assert (row["rule"], row["scorers"], row["recipe_ids"]) == ("best_worst", ["shapes"], [RECIPE])
        assert (row["probability_0"], row["logit_scales"]) == (None, [None])
        assert row["label_source"] == "shapes; ties=drop, tie_margin=0.0, min_probability=0.5"


def test_calibrated_soft_labels_that_train(
    label: Label, world: Path, scores: dict[str, dict[str, float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = label(
        world / "set",
        *SHAPES,
        "--rule",
        "all_pairs",
        "--ties",
        "soft",
        "--calibration",
        str(world / "calibration.json"),
    )
    assert len(rows) == 4 * 6
    for row in rows:
        own = scores[row["caption"]]
        chance = logistic(SCALE * (own[row["image_0_name"]] - own[row["image_1_name"]]))
        assert row["label_0"] == row["probability_0"] == pytest.approx(chance, abs=1e-6)
        assert (row["num_example_per_prompt"], row["logit_scales"]) == (6, [SCALE])
    out = capsys.readouterr().out
    chances = [max(row["probability_0"], 1 - row["probability_0"]) for row in rows]
    assert f"mean probability  {sum(chances) / 24:.4f}" in out
    assert "pairs             24" in out
    records = list(open_pairs(tmp_path / "pairs.parquet", ties="soft"))
    assert [(r.label_0, r.weight) for r in records] == [(row["label_0"], 1 / 6) for row in rows]
    assert main(["data", "check", str(tmp_path / "pairs.parquet")]) == 0


def test_rule_settings_margin_and_cap(label: Label, world: Path) -> None:
    calibrated = [*SHAPES, "--calibration", str(world / "calibration.json")]
    drawn = label(world / "set", *calibrated, "--rule", "random,pairs_per_prompt=3,margin=0.2,seed=5")
    assert all(abs(row["probability_0"] - 0.5) >= 0.2 for row in drawn)
    every = label(world / "set", *calibrated, "--rule", "all_pairs", "--min_probability", "0.7", output="b.parquet")
    pairs = {(row["image_0_name"], row["image_1_name"]) for row in every}
    assert {(row["image_0_name"], row["image_1_name"]) for row in drawn} <= pairs
    assert len(drawn) == sum(
        min(3, sum(a["caption"] == caption for a in every)) for caption in {r["caption"] for r in every}
    )
    capped = label(world / "set", *calibrated, "--rule", "all_pairs", "--max_pairs_per_prompt", "1", output="c.parquet")
    best = label(world / "set", *calibrated, output="d.parquet")
    assert [{**row, "rule": ""} for row in capped] == [{**row, "rule": ""} for row in best]


def table_of(world: Path, *scorers: tuple[str, Callable[[float], float], float | None]) -> list[ScoreRecord]:
    """A score table: the verifier's under its name, and scorers whose raw score is a function of the verifier's."""
    path = world / "scores.parquet"
    if not path.exists():
        argv = ["score", str(world / "set"), *SHAPES, "--output", str(path), "--cache_dir", str(world / "cache")]
        assert main(argv) == 0
    base = read_scores(path)
    return [
        replace(r, scorer=name, recipe_id=f"{name}.1", raw=f(r.raw), score=f(r.score), logit_scale=scale)
        for name, f, scale in scorers
        for r in base
    ]


def test_score_tables_give_the_same_bytes(label: Label, world: Path, tmp_path: Path) -> None:
    table_of(world)
    label(world / "set", *SHAPES)
    label(world / "set", "--scores", str(world / "scores.parquet"), output="b.parquet")
    assert (tmp_path / "b.parquet").read_bytes() == (tmp_path / "pairs.parquet").read_bytes()
    # The order of the table, rows of other images, and the order and the names of the images are no matter.
    table = read_scores(world / "scores.parquet")
    foreign = replace(table[0], sample_key="0" * 32, recipe_id="shapes.0")
    write_scores([foreign, *table[::-1]], tmp_path / "reversed.parquet")
    label(world / "set", "--scores", str(tmp_path / "reversed.parquet"), output="c.parquet")
    assert (tmp_path / "c.parquet").read_bytes() == (tmp_path / "pairs.parquet").read_bytes()


def test_ensembles_of_a_table(
    label: Label, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], scores: dict[str, dict[str, float]]
) -> None:
    """Two scorers of one mind, and a surer one that sees all the other way round: of small differences it wins the mean."""
    scorers = [("a", lambda x: x, 2.0), ("b", lambda x: 3 * x, 1.0), ("c", lambda x: -x, 10.0)]
    write_scores(table_of(world, *scorers), tmp_path / "s.parquet")
    flags = ["--scores", str(tmp_path / "s.parquet"), "--rule", "all_pairs", "--ensemble"]
    truth = {name: score for own in scores.values() for name, score in own.items()}
    labels: dict[str, dict[tuple[str, str], float]] = {}
    for ensemble in ("vote", "mean"):
        for row in label(world / "set", *flags, ensemble, output=f"{ensemble}.parquet"):
            names = (row["image_0_name"], row["image_1_name"])
            difference = truth[names[0]] - truth[names[1]]
            chance = sum(logistic(s * difference) for s in (2, 3, -10)) / 3
            assert row["probability_0"] == pytest.approx(chance, abs=1e-6)
            assert row["label_0"] == ((difference > 0) if ensemble == "vote" else (chance > 0.5))
            assert row["scorers"] == ["a", "b", "c"]
            assert row["score_0_c"] == -row["score_0_a"]
            assert row["label_source"].startswith(f"{ensemble} of a, b, c; ")
            labels.setdefault(ensemble, {})[names] = row["label_0"]
    assert labels["vote"].keys() == labels["mean"].keys()
    assert 0 < sum(labels["vote"][names] != found for names, found in labels["mean"].items()) < len(labels["mean"])
    chosen = label(world / "set", *flags, "mean", "--use", "c", output="c.parquet")
    assert {tuple(row["scorers"]) for row in chosen} == {("c",)}
    capsys.readouterr()
    argv = ["label", str(world / "set"), *flags, "mean", "--output", str(tmp_path / "d.parquet"), "--use", "aa"]
    assert main(argv) == 2
    assert "has no scores of 'aa'\n  -> did you mean 'a'? known: a, b, c" in capsys.readouterr().err
    output = tmp_path / "abstain.parquet"
    assert main(["label", str(world / "set"), *flags, "abstain", "--output", str(output)]) == 2
    # Every pair but those whose scores are equal, which all three see as ties.
    assert f"abstained         {len(labels['vote'])}" in capsys.readouterr().err
    assert not output.exists()


def test_identical_images_and_lonely_prompts(
    label: Label, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world / "set", tmp_path / "set")
    rows = [json.loads(line) for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
    shutil.copy(tmp_path / "set" / rows[0]["file_name"], tmp_path / "set" / "images" / "copy.png")
    kept = [{**rows[0], "file_name": "images/copy.png"}, *rows[:-3]]
    (tmp_path / "set" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert len(label(tmp_path / "set", *SHAPES)) == 3
    out = capsys.readouterr().out
    assert "prompts           4 (1 with fewer than two candidates)" in out
    assert "candidates        14 (1 identical one removed)" in out
    names = [name for row in pq.read_table(tmp_path / "pairs.parquet").to_pylist() for name in (row["image_0_name"],)]
    assert set(names) <= {row["file_name"] for row in rows}


@pytest.fixture
def pairs(world: Path, tmp_path: Path, scores: dict[str, dict[str, float]]) -> tuple[Path, list[float | None]]:
    """The clean picture of each prompt against each noisy one; labels right, wrong, tied and missing in turn."""
    records: list[PairRecord] = []
    labels: list[float | None] = []
    for prompt, own in scores.items():
        (first, better), *others = own.items()
        for number, (other, worse) in enumerate(others):
            assert better > worse
            labels.append((1.0, 0.0, 0.5)[number])
            images = [(world / "set" / name).read_bytes() for name in (first, other)]
            records.append(PairRecord(prompt, images[0], images[1], labels[-1] or 0.0, 1 / 3))
    path = tmp_path / "human.parquet"
    write_pickapic(records, path)
    table = pq.read_table(path)
    has_label = [number != 1 for number in range(len(records))]
    table = table.set_column(table.column_names.index("has_label"), "has_label", [has_label])
    pq.write_table(table, path)
    labels[1] = None
    return path, labels


def test_relabelled_pairs(
    label: Label, pairs: tuple[Path, list[float | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    """12 pairs, the verifier is for image 0 each time: 4 old labels say so, 3 do not, 4 are ties, 1 is none."""
    path, labels = pairs
    rows = label(path, *SHAPES)
    before = pq.read_table(path).to_pylist()
    for column in ("caption", "jpg_0", "jpg_1", "num_example_per_prompt"):
        assert [row[column] for row in rows] == [row[column] for row in before]
    assert [row["label_0"] for row in rows] == [1.0] * 12
    assert [row["human_label_0"] for row in rows] == labels
    assert {row["rule"] for row in rows} == {"relabel"}
    assert rows[4]["image_1_name"] == f"{path}, row 4, image 1"
    out = capsys.readouterr().out
    # Wilson's interval of 4 out of 7 by its formula with z = 1.959964: 0.2505 and 0.8418.
    assert "agreement         57.1% of 7 pairs that both decide (95 % interval 25.0% to 84.2%)" in out
    assert "pairs judged      12 (1 without an old label)" in out
    assert "ties              4 old, 0 new, 0 both" in out


def test_relabelling_is_asked_for_or_not(
    label: Label, pairs: tuple[Path, list[float | None]], world: Path, tmp_path: Path
) -> None:
    path, _ = pairs
    label(path, *SHAPES)
    label(path, *SHAPES, "--relabel", output="b.parquet")
    assert (tmp_path / "pairs.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    made = label(path, *SHAPES, "--rule", "best_worst", output="c.parquet")
    assert len(made) == 4
    assert "human_label_0" not in made[0]


def test_bad_images_may_be_left_out(
    label: Label, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world / "set", tmp_path / "set")
    (tmp_path / "set" / "images" / "00001-s0.png").write_bytes(b"no image")
    rows = label(tmp_path / "set", *SHAPES, "--rule", "all_pairs", "--on_bad_image", "skip")
    names = {row[column] for row in rows for column in ("image_0_name", "image_1_name")}
    assert "images/00001-s0.png" not in names
    assert "candidates        15" in capsys.readouterr().out
    first = PairRecord(rows[0]["caption"], b"no image", rows[0]["jpg_1"], 1.0)
    second = PairRecord(rows[0]["caption"], rows[0]["jpg_0"], rows[0]["jpg_1"], 1.0)
    write_pickapic([first, second], tmp_path / "human.parquet")
    assert len(label(tmp_path / "human.parquet", *SHAPES, "--on_bad_image", "skip", output="b.parquet")) == 1
    assert "not scored        1 pair left out" in capsys.readouterr().out


def test_nothing_half_written(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command breaks down at the fourth image."""
    calls: Iterator[int] = iter(range(3))
    whole = labeling.encoded_bytes

    def breaks(item: Any) -> bytes:
        if next(calls, None) is None:
            raise OSError("the disk is gone")
        return whole(item)

    monkeypatch.setattr(labeling, "encoded_bytes", breaks)
    table_of(world)
    argv = ["label", str(world / "set"), "--scores", str(world / "scores.parquet")]
    assert main([*argv, "--output", str(tmp_path / "pairs.parquet")]) == 2
    assert "the disk is gone" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_and_repeated_equals_uninterrupted(tmp_path: Path) -> None:
    folder = shapes_images.write_folder(tmp_path / "set", 40, 4)
    base = ["label", str(folder), *SHAPES, "--rule", "all_pairs", "--batch_size", "2"]
    whole, broken = tmp_path / "whole.parquet", tmp_path / "broken.parquet"
    assert main([*base, "--output", str(whole), "--cache_dir", str(tmp_path / "one")]) == 0
    own = [*base, "--output", str(broken), "--cache_dir", str(tmp_path / "two"), "--overwrite"]
    hits = killing.kill_often(own, kills=3, begun=(tmp_path / "two" / "scores").exists, span=0.3, seed="label")
    assert hits >= 1
    assert not broken.exists() or broken.read_bytes() == whole.read_bytes()
    assert main(own) == 0
    assert broken.read_bytes() == whole.read_bytes()


def fails(capsys: pytest.CaptureFixture[str], argv: list[str], *words: str) -> None:
    capsys.readouterr()
    assert main(argv) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message, message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([*SHAPES, "--rule", "best_wurst"], ["unknown rule 'best_wurst'", "did you mean 'best_worst'"]),
        ([*SHAPES, "--rule", "random,pairs=3"], ["rule 'random' does not take 'pairs'"]),
        ([*SHAPES, "--rule", "random,margin=0.6"], ["margin is 0.6", "below 0.5"]),
        ([*SHAPES, "--rule", "random,3"], ["'3' is no setting"]),
        ([*SHAPES, "--rule", "random,seed=]"], ["']' is no value"]),
        ([*SHAPES, "--min_probability", "1.2"], ["--min_probability: got 1.2", "below 1"]),
        ([*SHAPES, "--min_probability", "0.3"], ["--min_probability: got 0.3"]),
        ([*SHAPES, "--tie_margin", "0.5"], ["--tie_margin: got 0.5"]),
        ([*SHAPES, "--max_pairs_per_prompt", "0"], ["--max_pairs_per_prompt: got 0"]),
        ([*SHAPES, "--min_probability", "0.7"], ["has no logit scale", "--min_probability 0.7", "--calibration"]),
        ([*SHAPES, "--ties", "soft"], ["has no logit scale", "--ties soft"]),
        ([*SHAPES, "--rule", "random,margin=0.1"], ["has no logit scale", "margin above 0"]),
        ([*SHAPES, "--calibration", "absent.json"], ["absent.json: cannot be read"]),
        ([*SHAPES, "--relabel"], ["--relabel: is for pairs, and single images are given"]),
        ([*SHAPES, "--relabel", "--rule", "adjacent"], ["--relabel: keeps the pairs"]),
        ([*SHAPES, "--scores", "s.parquet"], ["both scorers and --scores are given"]),
        ([*SHAPES, "--use", "shapes"], ["--use: chooses among the scorers of a table"]),
        ([], ["neither scorers nor --scores are given"]),
        (["--scores", "absent.parquet"], ["absent.parquet: no such file"]),
        ([*SHAPES, "--output", "pairs.csv"], ["pairs.csv: the output is a parquet file"]),
    ],
)
def test_bad_flags(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: list[str]
) -> None:
    output = tmp_path / "pairs.parquet"
    argv = ["label", str(world / "set"), "--output", str(output), "--cache_dir", str(world / "cache"), *flags]
    fails(capsys, argv, *words)
    assert list(tmp_path.iterdir()) == []


def test_bad_input(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pairs: tuple[Path, list[float | None]]
) -> None:
    output = tmp_path / "pairs.parquet"
    flags = ["--output", str(output), "--cache_dir", str(world / "cache"), *SHAPES]
    (tmp_path / "empty").mkdir()
    fails(capsys, ["label", str(tmp_path / "empty"), *flags], "no pairs in this folder")
    (tmp_path / "plain").mkdir()
    shutil.copy(world / "set" / "images" / "00000-s0.png", tmp_path / "plain" / "a.png")
    fails(capsys, ["label", str(tmp_path / "plain"), *flags], "1 image has no prompt; the first: a.png")
    (tmp_path / "plain" / "a.txt").write_text("a small red circle on a blue background")
    fails(capsys, ["label", str(tmp_path / "plain"), *flags], "no pairs to write", "at least two different images")
    fails(capsys, ["label", str(pairs[0]), *flags, "--max_pairs_per_prompt", "1"], "kept as they are")
    (tmp_path / "other.json").write_text((world / "calibration.json").read_text().replace("shapes.1", "shapes.0"))
    calibration = ["--calibration", str(tmp_path / "other.json")]
    fails(capsys, ["label", str(world / "set"), *flags, *calibration], "of other recipes (shapes.0/box-64/fp32)")
    assert not output.exists()
    output.write_bytes(b"mine")
    fails(capsys, ["label", str(world / "set"), *flags], "exists already", "--overwrite")
    assert output.read_bytes() == b"mine"


def test_bad_tables(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table_of(world)
    good = read_scores(world / "scores.parquet")
    path = tmp_path / "scores.parquet"
    argv = ["label", str(world / "set"), "--scores", str(path), "--output", str(tmp_path / "pairs.parquet")]
    mixed = replace(good[-1], recipe_id="shapes.2/box-64/fp32")
    write_scores([*good[:-1], mixed], path)
    fails(capsys, argv, "two recipes: 'shapes.1/box-64/fp32', 'shapes.2/box-64/fp32'")
    write_scores([*good[:-1], replace(good[-1], score=math.nan)], path)
    fails(capsys, argv, f"{path}, row 15, column 'score': found nan")
    write_scores([row for row in good if "s3" not in row.sample], path)
    fails(capsys, argv, "4 samples have no score", "the first: images/00000-s3.png, by scorer 'shapes'")
    write_scores([replace(row, prompt=f"{row.prompt}s") for row in good], path)
    fails(capsys, argv, "no score for any of the 16 images", "score these images")
    assert not (tmp_path / "pairs.parquet").exists()


def test_bad_pairs(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pairs: tuple[Path, list[float | None]]
) -> None:
    table = pq.read_table(pairs[0])
    labels = [7.0, *table["label_0"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.column_names.index("label_0"), "label_0", [labels]), tmp_path / "bad.parquet")
    argv = ["label", str(tmp_path / "bad.parquet"), *SHAPES, "--cache_dir", str(world / "cache")]
    fails(
        capsys, [*argv, "--output", str(tmp_path / "o.parquet")], "bad.parquet, row 0, column 'label_0': found 7.0",
        "converting the pairs can leave bad rows out",
    )  # fmt: skip
    twins = table.set_column(table.column_names.index("jpg_1"), "jpg_1", table["jpg_0"])
    pq.write_table(twins, tmp_path / "twins.parquet")
    argv[1] = str(tmp_path / "twins.parquet")
    fails(capsys, [*argv, "--output", str(tmp_path / "o.parquet")], "no pairs to write", "identical images  12 pairs")
    assert not (tmp_path / "o.parquet").exists()
