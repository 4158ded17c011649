"""``dfb score`` end to end: the table, the cache, kills, processes, and bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import killing
import pairs_data
import pytest
import shapes_images
import tiny_clip
from image_world import exact_scores
from PIL import Image

from diffusion_feedback.cli.main import main
from diffusion_feedback.data.scores import read_scores
from diffusion_feedback.shapes import scorer

Score = Callable[..., int]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """``dfb score`` on a small folder, with a cache of its own."""
    folder = shapes_images.write_folder(tmp_path / "set", 4, 2)
    where = ["--output", str(tmp_path / "scores.parquet"), "--cache_dir", str(tmp_path / "cache")]
    return ["score", str(folder), "--scorer", "shapes", *where]


def test_the_table_holds_the_verifier_s_numbers(arguments: list[str], tmp_path: Path) -> None:
    assert main(arguments) == 0
    rows = read_scores(tmp_path / "scores.parquet")
    assert [row.sample for row in rows] == [f"images/{p:05d}-s{n}.png" for p in range(4) for n in range(2)]
    for row in rows:
        image = Image.open(tmp_path / "set" / row.sample)
        assert row.score == pytest.approx(float(exact_scores([image], [row.prompt])[0]), abs=1e-7)
        assert row.recipe_id == "shapes.1/box-64/fp32"
    assert {round(row.score, 2) for row in rows if row.sample.endswith("s0.png")} != {0.0}


def test_what_is_cached_is_not_scored_again(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(arguments) == 0
    first = (tmp_path / "scores.parquet").read_bytes()
    monkeypatch.setattr(scorer, "_judge", lambda *_: pytest.fail("scored again"))
    assert main([*arguments, "--overwrite"]) == 0
    assert (tmp_path / "scores.parquet").read_bytes() == first


def test_two_processes_equal_one(arguments: list[str], tmp_path: Path) -> None:
    assert main(arguments) == 0
    first = (tmp_path / "scores.parquet").read_bytes()
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0", "-m", "diffusion_feedback"]
    other = [*arguments, "--overwrite", "--cache_dir", str(tmp_path / "other")]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *other], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scores.parquet").read_bytes() == first
    shards = list((tmp_path / "other" / "scores").rglob("*.safetensors"))
    assert len(shards) == 2  # each process has scored its share


@pytest.mark.slow
def test_killed_and_repeated_equals_uninterrupted(tmp_path: Path) -> None:
    folder = shapes_images.write_folder(tmp_path / "set", 60, 4)
    base = ["score", str(folder), "--scorer", "shapes", "--batch_size", "2"]
    whole, broken = tmp_path / "whole.parquet", tmp_path / "broken.parquet"
    assert main([*base, "--output", str(whole), "--cache_dir", str(tmp_path / "one")]) == 0
    own = [*base, "--output", str(broken), "--cache_dir", str(tmp_path / "two")]
    hits = killing.kill_often(own, kills=4, begun=(tmp_path / "two" / "scores").exists, span=0.3, seed="score")
    assert hits >= 2
    assert not list(tmp_path.glob(".*.tmp")) or not broken.exists()
    assert main([*own, "--overwrite"]) == 0
    assert broken.read_bytes() == whole.read_bytes()


def test_pairs_are_scored_on_both_sides(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    pairs = root / "assets" / "pairs" / "validation-00000.parquet"
    output = tmp_path / "s.parquet"
    assert main(["score", str(pairs), "--scorer", "shapes", "--output", str(output), "--cache_dir", str(tmp_path)]) == 0
    rows = read_scores(output)
    assert len(rows) == 2 * 672
    assert len({row.sample for row in rows}) == 2 * 672


def fails(capsys: pytest.CaptureFixture[str], argv: list[str], *words: str) -> None:
    assert main(argv) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message, message


def test_bad_input(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "scores.parquet"
    fails(capsys, [*arguments[:3], "shaped", *arguments[4:]], "unknown scorer 'shaped'", "did you mean 'shapes'")
    fails(capsys, [*arguments[:3], "shapes,size=3", *arguments[4:]], "does not take 'size'")
    fails(capsys, [*arguments[:3], "shapes", "again:shapes", *arguments[4:]], "recipe id 'shapes.1/box-64/fp32'")
    fails(capsys, [*arguments, "--batch_size", "0"], "--batch_size: got 0")
    fails(capsys, [*arguments, "--output", str(tmp_path / "scores.xlsx")], ".parquet or .csv or .jsonl")
    (tmp_path / "empty").mkdir()
    fails(capsys, [arguments[0], str(tmp_path / "empty"), *arguments[2:]], "no pairs in this folder")
    assert not output.exists()
    output.write_bytes(b"mine")
    fails(capsys, arguments, "exists already")
    assert output.read_bytes() == b"mine"


def test_foreign_and_absent_prompts(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    Image.new("RGB", (64, 64)).save(plain / "a.png")
    argv = [arguments[0], str(plain), *arguments[2:]]
    fails(capsys, argv, "1 image has no prompt", "a.png")
    (plain / "a.txt").write_text("an astronaut on a horse")
    fails(capsys, argv, "an astronaut on a horse", "Shapes")
    (tmp_path / "prompts.txt").write_text("\n\na small red circle on a blue background\n\n")
    assert main([*argv, "--prompts", str(tmp_path / "prompts.txt")]) == 0


def test_a_broken_image_stops_or_is_counted(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "set" / "images" / "00001-s1.png"
    broken.write_bytes(pairs_data.jpeg(80, 1)[:200])
    fails(capsys, arguments, "00001-s1.png", "broken image")
    assert main([*arguments, "--on_bad_image", "skip"]) == 0
    out = capsys.readouterr().out
    assert "1 images left out" in out
    assert "00001-s1.png" in out
    assert "7 scores of 7 images; 1 left out" in out
    assert len(read_scores(tmp_path / "scores.parquet")) == 7


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_devices_that_are_not_there(arguments: list[str], device: str, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, [*arguments, "--device", device], f"--device {device}: cannot be used", "here: cpu")


def test_the_input_is_never_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs").mkdir()
    table = tmp_path / "pairs" / "train-0.parquet"
    pairs_data.write_pairs(table)
    before = table.read_bytes()
    for source in (str(table), str(tmp_path / "pairs"), str(tmp_path / "pairs" / "*.parquet")):
        for command in ("score", "label"):
            argv = [command, source, "--scorer", "shapes", "--cache_dir", str(tmp_path / "cache")]
            fails(capsys, [*argv, "--output", str(table), "--overwrite"], "is an input, and would be lost")
    assert table.read_bytes() == before


def test_all_scorers_speak_of_the_same_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that a scorer cannot cut is left out for all, even where another has judged it in an earlier run."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for name, size in (("line", (90_000, 1)), ("square", (40, 40)), ("wide", (80, 40))):
        Image.new("RGB", size, "blue").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("x")
    checkpoint, architecture = tiny_clip.save_open_clip(tmp_path / "hps")
    boxed = f"hpsv2={checkpoint},architecture={architecture}"
    cropped = f"pickscore={tiny_clip.save_clip(tmp_path / 'clip')}"
    where = ["--output", str(tmp_path / "s.parquet"), "--cache_dir", str(tmp_path / "cache"), "--overwrite"]
    assert main(["score", str(folder), *where, "--scorer", boxed]) == 0
    assert len(read_scores(tmp_path / "s.parquet")) == 3
    argv = ["score", str(folder), *where, "--scorer", cropped, boxed]
    fails(capsys, argv, "line.png: an image of 90000 x 1 pixels is too narrow")
    assert main([*argv, "--on_bad_image", "skip"]) == 0
    found = [(row.scorer, row.sample) for row in read_scores(tmp_path / "s.parquet")]
    assert found == [(scorer, name) for scorer in ("pickscore", "hpsv2") for name in ("square.png", "wide.png")]
