"""``dfb calibrate --per_prompt`` on rankings as HPDv2 and ImageReward publish them, against their own way to count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_world import all_scenes, degrade, exact_scores, render
from PIL import Image

from diffusion_feedback.cli.main import main

FORMS = {"hpdv2": ("image_path", "rank"), "imagereward": ("generations", "ranking")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, list[str], list[float]]]]:
    """Twelve prompts with two to six pictures each, and the verifier's scores of them."""
    root = tmp_path_factory.mktemp("rankings")
    found = []
    for number, scene in enumerate(all_scenes()[: 12 * 40 : 40]):
        rng = np.random.default_rng(number)
        names, scores = [], []
        for image in range(2 + number % 5):
            name = f"{number}-{image}.png"
            degrade(render(scene, rng), ("clean", "noisy", "blurred")[image % 3], rng).save(root / name)
            names.append(name)
            scores.append(float(exact_scores([Image.open(root / name)], [scene.caption])[0]))
        found.append((scene.caption, names, scores))
    return root, found


def ranks_of(scores: list[float], rng: np.random.Generator, ties: bool) -> list[int]:
    noisy = np.array(scores) + rng.normal(0, 0.4, len(scores))
    order = [int((noisy > value).sum()) + 1 for value in noisy]
    return [1 + rank // 2 for rank in order] if ties else order


def by_hpsv2(scores: list[float], ranks: list[int]) -> float:
    """1 - inverted pairs / all pairs; equal scores half, where that script takes the order of the list."""
    couples = [(i, j) for i in range(len(ranks)) for j in range(i + 1, len(ranks)) if ranks[i] != ranks[j]]
    credit = [(1 - np.sign(scores[i] - scores[j]) * np.sign(ranks[i] - ranks[j])) / 2 for i, j in couples]
    return float(np.mean(credit)) if credit else np.nan


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_rankings_are_counted_as_published(
    pictures: tuple[Path, list[tuple[str, list[str], list[float]]]],
    tmp_path: Path,
    form: str,
    ties: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, found = pictures
    images, order = FORMS[form]
    rng = np.random.default_rng(5)
    items: list[dict[str, Any]] = [
        {"prompt": prompt, images: names, order: ranks_of(scores, rng, ties)} for prompt, names, scores in found
    ]
    items.append(items[-1] | {images: items[-1][images][:3], order: items[-1][order][:3]})  # one prompt ranked twice
    rankings = root / f"{form}-{ties}.json"
    rankings.write_text(json.dumps(items))
    flags = ["--scorer", "shapes", "--cache_dir", str(root / "cache"), "--output_dir", str(tmp_path / "out")]
    assert main(["calibrate", str(rankings), "--per_prompt", *flags]) == 0
    content = json.loads((tmp_path / "out" / "calibration.json").read_text())
    [scorer] = content["scorers"].values()
    scores = {name: value for _, names, values in found for name, value in zip(names, values, strict=True)}
    shares = [by_hpsv2([scores[name] for name in item[images]], item[order]) for item in items]
    assert scorer["accuracy_per_prompt"]["value"] == pytest.approx(np.nanmean(shares), abs=1e-9)
    assert content["pairs"]["rankings"] == 13
    assert content["pairs"]["prompts"] == 12
    shown = capsys.readouterr().out
    assert "of 12 prompts, 13 rankings" in shown
    assert "per prompt" in shown
    assert (content["pairs"]["ties"] > 0) == ties
    assert abs(scorer["accuracy"]["value"] - scorer["accuracy_per_prompt"]["value"]) > 1e-3
