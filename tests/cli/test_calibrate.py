"""``dfb calibrate`` end to end on real pairs: figures against the verifier called directly, the folder, bad input."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_world import exact_scores
from PIL import Image

from diffusion_feedback.catalog import CATALOG
from diffusion_feedback.cli.main import main
from diffusion_feedback.labeling.panel import read_calibration
from diffusion_feedback.scorers.scorer import Scorer, Towers
from diffusion_feedback.shapes import scorer as verifier_scorer

ASSET = Path(__file__).parents[2] / "assets" / "pairs" / "validation-00000.parquet"
RECIPE = "shapes.1/box-64/fp32"
NUM = 120

Calibrate = Callable[..., int]


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    """The first pairs of the embedded world, two a prompt, with their verified scores."""
    return pq.read_table(ASSET).slice(0, NUM)


@pytest.fixture(scope="module")
def difference(rows: pa.Table) -> list[float]:
    """Score of image 0 less that of image 1, by the verifier itself on images that Pillow decodes."""
    first, second = (
        exact_scores([Image.open(io.BytesIO(data)) for data in rows[name].to_pylist()], rows["caption"].to_pylist())
        for name in ("jpg_0", "jpg_1")
    )
    return [float(a) - float(b) for a, b in zip(first, second, strict=True)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def calibrate(tmp_path: Path, cache: Path) -> Calibrate:
    """Run the command on a table of pairs; the folder is ``tmp_path / "out"``."""

    def run(table: pa.Table | Path, *more: str, scorers: tuple[str, ...] = ("shapes",)) -> int:
        path = table if isinstance(table, Path) else tmp_path / "pairs.parquet"
        if not isinstance(table, Path):
            pq.write_table(table, path)
        where = ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(cache), *more]
        return main(["calibrate", str(path), "--scorer", *scorers, *where])

    return run


def labelled(table: pa.Table, labels: list[float]) -> pa.Table:
    """``table`` under other labels."""
    for name, values in (("label_0", labels), ("label_1", [1 - label for label in labels])):
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.float64()))
    return table


def found(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "out" / "calibration.json").read_text())
    return content


def test_figures_against_the_verifier(
    calibrate: Calibrate,
    rows: pa.Table,
    difference: list[float],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert calibrate(rows, "--ceiling_scorer", "shapes") == 0
    shown = capsys.readouterr().out
    content = found(tmp_path)
    scorer = content["scorers"][RECIPE]
    labels = rows["label_0"].to_pylist()
    right = [0.5 if d == 0 else float((d > 0) == (y > 0.5)) for d, y in zip(difference, labels, strict=True)]
    assert content["pairs"]["num"] == NUM
    assert content["pairs"]["prompts"] == NUM // 2
    assert scorer["accuracy"]["value"] == pytest.approx(sum(right) / NUM, abs=1e-9)
    # The file's own scores are those of the images before JPEG; a pair or two falls the other way.
    stored = [float((row["score_0"] > row["score_1"]) == (row["label_0"] > 0.5)) for row in rows.to_pylist()]
    assert scorer["accuracy"]["value"] == pytest.approx(sum(stored) / NUM, abs=2.5 / NUM)
    assert scorer["accuracy"]["low"] < scorer["accuracy"]["value"] < scorer["accuracy"]["high"]
    assert scorer["equal_scores"] == difference.count(0.0)
    grid = np.arange(1, 20, 0.005)
    losses = [
        sum(math.log1p(math.exp(-s * d if y == 1 else s * d)) for d, y in zip(difference, labels, strict=True))
        for s in grid
    ]
    assert scorer["logit_scale"] == pytest.approx(grid[int(np.argmin(losses))], abs=0.01)
    # The annotator's temperature was 0.15 (assets/README.md), so the true scale is known.
    low, high = scorer["logit_scale_interval"]
    assert low < 1 / 0.15 < high
    assert (scorer["own_logit_scale"], scorer["own"], scorer["fit_status"]) == (None, None, "fitted")
    assert scorer["is_noise_ceiling"]
    assert f"{scorer['accuracy']['value']:.3f} (" in shown
    assert "noise ceiling" in shown
    [agreement] = content["agreement"]
    assert (agreement["a"], agreement["b"], agreement["value"]) == ("shapes", "labels", scorer["accuracy"]["value"])


def test_the_folder_explains_itself_and_label_reads_it(calibrate: Calibrate, rows: pa.Table, tmp_path: Path) -> None:
    assert calibrate(rows) == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"calibration.json", "report.html", "README.md"}
    assert read_calibration(out / "calibration.json") == {RECIPE: found(tmp_path)["scorers"][RECIPE]["logit_scale"]}
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 2  # reliability, coverage
    assert "shapes" in page
    first = (out / "calibration.json").read_bytes(), page
    assert calibrate(rows, "--overwrite") == 0  # from the cache
    assert ((out / "calibration.json").read_bytes(), (out / "report.html").read_text()) == first


def test_a_scorer_that_is_too_sure_of_itself(
    calibrate: Calibrate,
    rows: pa.Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load_sure(weights: str | None, towers: Towers) -> Scorer:
        return replace(verifier_scorer.load(weights, towers), name="sure", recipe_id="sure.1", logit_scale=50.0)

    monkeypatch.setattr(verifier_scorer, "load_sure", load_sure, raising=False)
    monkeypatch.setitem(CATALOG["scorer"], "sure", "diffusion_feedback.shapes.scorer:load_sure")  # type: ignore[index]
    assert calibrate(rows, scorers=("shapes", "sure")) == 0
    scorers = found(tmp_path)["scorers"]
    assert scorers["sure.1"]["own_logit_scale"] == 50.0
    assert scorers["sure.1"]["logit_scale"] == scorers[RECIPE]["logit_scale"]
    assert scorers["sure.1"]["own"]["log_loss"]["low"] > scorers["sure.1"]["log_loss"]["high"]
    assert scorers["sure.1"]["own"]["ece"] > scorers["sure.1"]["ece"]
    pairs = {(row["a"], row["b"]): row["value"] for row in found(tmp_path)["agreement"]}
    equal = scorers[RECIPE]["equal_scores"]
    assert pairs["shapes", "sure"] == pytest.approx((NUM - equal / 2) / NUM)
    assert "50.0 -> " in capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") == 3


def test_labelled_ties_enter_the_protocol_that_knows_them(
    calibrate: Calibrate,
    rows: pa.Table,
    difference: list[float],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels = rows["label_0"].to_pylist()
    labels[:40] = [0.5] * 40
    labels[41] = 0.5  # the prompts beyond have two pairs each, that of row 40 has one
    assert calibrate(labelled(rows, labels), "--per_prompt") == 0
    by_prompt: dict[str, list[float]] = {}
    for prompt, d, y in zip(rows["caption"].to_pylist(), difference, labels, strict=True):
        if y != 0.5:
            by_prompt.setdefault(prompt, []).append(0.5 if d == 0 else float((d > 0) == (y > 0.5)))
    macro = found(tmp_path)["scorers"][RECIPE]["accuracy_per_prompt"]
    assert macro["value"] == pytest.approx(np.mean([np.mean(part) for part in by_prompt.values()]), abs=1e-12)
    shown = capsys.readouterr().out
    assert "per prompt" in shown
    assert f"{macro['value']:.3f} ({macro['low']:.3f}-{macro['high']:.3f})" in shown
    assert "per prompt" in (tmp_path / "out" / "report.html").read_text()
    content = found(tmp_path)
    scorer = content["scorers"][RECIPE]
    assert content["pairs"]["ties"] == 41
    assert (scorer["accuracy"]["num"], scorer["accuracy_with_ties"]["num"]) == (NUM - 41, NUM)


def test_a_tuning_set_and_its_refusals(
    calibrate: Calibrate, rows: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = tmp_path / "tune.parquet"
    pq.write_table(rows.slice(80), tune)
    assert calibrate(rows.slice(0, 80), "--tune", str(tune)) == 0
    content = found(tmp_path)
    assert (content["pairs"]["num"], content["tuning"]["num"], content["fitted_on"]) == (80, 40, "tuning")
    assert calibrate(rows.slice(40, 80), "--tune", str(tune), "--overwrite") == 2
    assert "40 pairs stand in" in capsys.readouterr().err
    assert found(tmp_path) == content
    # Row 80 is of the prompt of row 81: the pairs differ, the prompt does not.
    pq.write_table(rows.slice(81), tune)
    assert calibrate(rows.slice(0, 81), "--tune", str(tune), "--overwrite") == 0
    assert "prompts that both sets of pairs share: 1;" in capsys.readouterr().out


def test_scorers_without_signal_and_separated_labels_are_told(
    calibrate: Calibrate,
    rows: pa.Table,
    difference: list[float],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    better = [float(0.5 + 0.5 * np.sign(d)) for d in difference]
    assert calibrate(labelled(rows, better)) == 0
    assert found(tmp_path)["scorers"][RECIPE]["fit_status"] == "capped"
    assert "the labels follow it without an exception" in capsys.readouterr().out
    assert calibrate(labelled(rows, [1 - label for label in better]), "--overwrite") == 0
    scorer = found(tmp_path)["scorers"][RECIPE]
    assert (scorer["fit_status"], scorer["logit_scale"], scorer["accuracy"]["value"]) == ("no_signal", 0.0, 0.0)
    assert "no positive scale is better than chance" in capsys.readouterr().out


def test_a_pair_with_a_broken_image_is_left_out_on_demand(
    calibrate: Calibrate, rows: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = rows["jpg_1"].to_pylist()
    images[7] = images[7][:100]
    broken = rows.set_column(rows.column_names.index("jpg_1"), "jpg_1", pa.array(images, pa.binary()))
    assert calibrate(broken) == 2
    assert "row 7, image 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert calibrate(broken, "--on_bad_image", "skip") == 0
    assert (found(tmp_path)["pairs"]["num"], found(tmp_path)["pairs"]["left_out"]) == (NUM - 1, 1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5] * 6, "all 6 labelled pairs are ties"),
        ([math.nan] * 6, "found nan, not a number from 0 to 1"),
        ([1.0, 0.0], "all 2 labelled pairs are of one prompt"),
    ],
    ids=["ties", "nan", "one prompt"],
)
def test_labels_that_say_nothing(
    calibrate: Calibrate,
    rows: pa.Table,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    labels: list[float],
    message: str,
) -> None:
    assert calibrate(labelled(rows.slice(0, len(labels)), labels)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unlabelled_pairs(calibrate: Calibrate, rows: pa.Table, capsys: pytest.CaptureFixture[str]) -> None:
    place = rows.column_names.index("has_label")
    assert calibrate(rows.set_column(place, "has_label", pa.array([False] * NUM))) == 2
    error = capsys.readouterr().err
    assert "0 usable pairs" in error
    assert f"{NUM} unlabelled" in error


def test_folders_of_others_and_names_that_are_none(
    calibrate: Calibrate, rows: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(rows, "--ceiling_scorer", "shape") == 2
    assert "did you mean 'shapes'?" in capsys.readouterr().err
    assert calibrate(rows, scorers=("shaped",)) == 2
    assert "unknown scorer 'shaped'" in capsys.readouterr().err
    assert calibrate(tmp_path / "absent.parquet") == 2
    assert "absent.parquet" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("three years")
    assert calibrate(rows) == 2
    assert "holds files already" in capsys.readouterr().err
    assert calibrate(rows, "--overwrite") == 0
    assert (tmp_path / "out" / "thesis.txt").read_text() == "three years"
