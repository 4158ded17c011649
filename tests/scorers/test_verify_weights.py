"""The check of published weights: says what is absent, sees wrong numbers, and lets right ones pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_imagereward
from PIL import Image
from verify_weights import PUBLISHED, checks, main, report, verify

from diffusion_feedback.scorers.imagereward import load
from diffusion_feedback.scorers.scorer import Towers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights where the published ones should stand, and four pictures."""
    folder = tiny_imagereward.save(tmp_path_factory.mktemp("weights"))
    rng = np.random.default_rng(0)
    for number in (1, 2, 3, 4):
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.webp", lossless=True)
    return folder


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    said = capsys.readouterr().out
    assert "nothing could be checked" in said
    for name, address in PUBLISHED.items():
        assert name in said
        assert address in said


def test_wrong_numbers_are_seen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 1
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if "webp" in line and "MISMATCH" in line]
    assert [row.split("|")[2].strip() for row in rows] == ["0.5812", "0.2745", "-1.4132", "-2.0296"]
    for row in rows:
        expected, found, gap = (float(part) for part in row.split("|")[2:5])
        assert gap == pytest.approx(found - expected, abs=2e-4)
    absent = said.split("absent")[1]
    assert "HPS_v2_compressed.pt" in absent
    assert "ImageReward.pt" not in absent


def test_right_numbers_pass(folder: Path) -> None:
    """Numbers of the stages run one by one; each beyond its tolerance alone is seen."""
    scorer = load(str(folder), Towers())
    todo = []
    for check in [check for check in checks() if check.image.endswith("webp")]:
        with Image.open(folder / check.image) as image:
            todo.append(replace(check, expected=float(scorer.score([image], [check.prompt])[0])))
    assert [outcome.verdict for outcome in verify(folder, todo)] == ["agrees"] * 4
    assert report(folder, verify(folder, todo)) == 0
    todo[2] = replace(todo[2], expected=(todo[2].expected or 0) + 1.1e-3)
    verdicts = [outcome.verdict for outcome in verify(folder, todo)]
    assert [verdict.split(":")[0] for verdict in verdicts] == ["agrees", "agrees", "MISMATCH", "agrees"]


def test_broken_weights_fail(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of every scorer: each is asked for in a way that it takes, and its file is the one that is named."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name in PUBLISHED:
        if name.endswith(".pt"):
            (tmp_path / name).write_bytes(b"half a downl")
    (tmp_path / "PickScore_v1").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "demo_image.jpg")
    assert main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "absent" not in said
    assert said.count("failed") == len(checks())
    found = {name: said.count(f"{name}: not a checkpoint") for name in PUBLISHED if name.endswith(".pt")}
    assert found == {"ImageReward.pt": 4, "HPS_v2_compressed.pt": 2, "HPS_v2.1_compressed.pt": 1}
    assert "PickScore_v1: holds no config.json" in said


def test_weights_without_a_number_are_no_check(tmp_path: Path, folder: Path) -> None:
    outcomes = verify(folder, [replace(checks()[0], expected=None)])
    assert [outcome.verdict for outcome in outcomes] == ["no published number"]
    assert report(tmp_path, outcomes) == 2
