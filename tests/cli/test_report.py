"""``dfb report``: runs side by side, the alarm where scorers part, and runs that cannot be joined."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from benchmark_folders import write_folder

from diffusion_feedback.cli.main import main
from diffusion_feedback.data.scores import read_scores, write_scores
from diffusion_feedback.evaluation.benchmarks.published import STYLES
from diffusion_feedback.evaluation.benchmarks.run import compare_runs
from diffusion_feedback.records import PromptRecord
from diffusion_feedback.workflows.benchmark_folder import load_run

PROMPTS = [PromptRecord(f"prompt {number}", {}) for number in range(40)]
BASE = np.random.default_rng(0).normal(0.2, 0.01, 40)


def folder(path: Path, hpsv2: float = 0.0, pickscore: float | None = None, **settings: object) -> Path:
    """A run whose scores are those of ``BASE`` with a shift and a little noise."""
    noise = np.random.default_rng(len(path.name)).normal(0, 1e-4, 40)
    scores = {"hpsv2": (BASE + hpsv2 + noise).tolist()}
    if pickscore is not None:
        scores["pickscore"] = (BASE + pickscore - noise).tolist()
    return write_folder(path, PROMPTS, scores, **settings)  # type: ignore[arg-type]


class _Words(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def words(path: Path) -> str:
    return " ".join(word for word in _Words(path.read_text()).words if word)


def report(tmp_path: Path, *arguments: str | Path) -> int:
    return main(["report", *map(str, arguments), "--output", str(tmp_path / "report.html"), "--overwrite"])


def test_runs_side_by_side(tmp_path: Path) -> None:
    base, one = folder(tmp_path / "base", 0, 0), folder(tmp_path / "one", 0.002, 0.001, generation={"steps": 30})
    two = folder(tmp_path / "second", -0.002, -0.002, generation={"steps": 50})
    assert report(tmp_path, base, one, two) == 0
    text = words(tmp_path / "report.html")
    for said in (
        "Means, hpsv2",
        "Means, pickscore",
        "Against base, hpsv2",
        "Largest losses",
        "How it was made",
        "steps",
    ):
        assert said in text
    assert "All scorers agree on one" in text
    assert "are all above even" in text
    assert "are all below even" in text
    assert "reward hacking" not in text
    page = (tmp_path / "report.html").read_text()
    assert "<mark>30</mark>" in page
    assert "<mark>50</mark>" in page
    assert "<mark>prompts.txt</mark>" not in page


def test_figures_of_the_page_are_those_of_the_comparison(tmp_path: Path) -> None:
    base, one = folder(tmp_path / "base"), folder(tmp_path / "one", 0.0001)
    assert report(tmp_path, base, one) == 0
    (found,) = compare_runs(load_run(base), load_run(one)).scorers
    before, after = (np.array(load_run(path).values[0].values) for path in (base, one))
    assert found.overall.win_rate.wins == int((after > before).sum())
    assert f"{100 * found.overall.win_rate.win_rate:.1f}\u202f%" in words(tmp_path / "report.html")


def test_the_alarm_is_loud_and_names_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, hacked = folder(tmp_path / "base", 0, 0), folder(tmp_path / "hacked", 0.01, -0.01)
    assert report(tmp_path, base, hacked) == 0
    text = words(tmp_path / "report.html")
    assert "One scorer up while another falls: reward hacking? (hacked)" in text
    assert "hpsv2 prefers hacked on 100.0\u202f% of the prompts" in text
    assert "pickscore prefers it on 0.0\u202f% only" in text
    assert "hpsv2 rises, pickscore falls" in text
    assert "All scorers agree" not in text
    assert 'class="notice alarm"' in (tmp_path / "report.html").read_text()
    assert "ALARM: One scorer up" in capsys.readouterr().out


def test_one_run_stands_alone(tmp_path: Path) -> None:
    assert report(tmp_path, folder(tmp_path / "base")) == 0
    text = words(tmp_path / "report.html")
    assert "Highest" in text
    assert "Lowest" in text
    assert "Win rate" not in text


def test_the_baseline_and_the_names_can_be_chosen(tmp_path: Path) -> None:
    base, one, two = (
        folder(tmp_path / name, shift) for name, shift in (("a/bench", 0), ("b/bench", 0.01), ("c", 0.02))
    )
    assert report(tmp_path, one, two, "--baseline", base) == 0
    assert "Against a/bench, hpsv2 (100 x cosine)" in words(tmp_path / "report.html")
    assert (
        report(tmp_path, base, one, two, "--baseline", two, "--names", "last", "first", "middle", "--title", "T & T")
        == 0
    )
    text = words(tmp_path / "report.html")
    assert "Against last, hpsv2" in text
    assert text.startswith("T & T")


def test_published_figures_stand_by_their_own_version_alone(tmp_path: Path) -> None:
    prompts = [PromptRecord(f"{style} {n}", {"style": style}) for style in STYLES for n in range(5)]
    run = write_folder(tmp_path / "run", prompts, {"hpsv2": [0.28] * 20}, benchmark="hpsv2")
    assert report(tmp_path, run) == 0
    text = words(tmp_path / "report.html")
    assert "Published results of the same scorer, v2.1" in text
    assert "reproduced here: no" in text
    assert "28.71" in text  # what users find instead of the published 30.63
    assert "31.34" in text  # the best of the v2.1 board
    assert "28.16" not in text  # a figure of v2.0
    short = write_folder(
        tmp_path / "short", prompts, {"hpsv2": [0.28] * 20}, benchmark="hpsv2", short=["anime: 5 of 800"]
    )
    assert report(tmp_path, short) == 0
    assert "Published results" not in words(tmp_path / "report.html")
    assert "Published results" not in _published(
        tmp_path, write_folder(tmp_path / "other", PROMPTS, {"hpsv2": [0.2] * 40})
    )


def _published(tmp_path: Path, run: Path) -> str:
    assert report(tmp_path, run) == 0
    return words(tmp_path / "report.html")


def test_missing_prompts_are_left_out_of_a_comparison_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holes = [None if number == 3 else 0.2 + number / 1000 for number in range(40)]
    other = [None if number == 5 else 0.2 for number in range(40)]
    one, two = (
        write_folder(tmp_path / name, PROMPTS, {"hpsv2": rows}) for name, rows in (("one", holes), ("two", other))
    )
    assert report(tmp_path, one, two) == 0
    text = words(tmp_path / "report.html")
    assert "one is incomplete" in text
    assert "incomplete: 1 of 40 missing" in text
    assert "38 of 40 prompts have a scored image in both runs; the others are left out." in text
    # A run that is whole need not be made again for one that lacks a picture.
    assert report(tmp_path, folder(tmp_path / "whole"), two) == 0
    assert "39 of 40 prompts have a scored image in both runs" in words(tmp_path / "report.html")
    strict = write_folder(tmp_path / "strict", PROMPTS, {"hpsv2": other}, allow_missing=False)
    assert report(tmp_path, tmp_path / "whole", strict) == 2
    assert "make the one that lacks some with --allow_missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda t: [folder(t / "a"), t / "absent"], "absent: no benchmark.json"),
        (lambda t: [folder(t / "a"), t / "a"], "a run is given twice"),
        (lambda t: [folder(t / "a"), "--names", "x", "y"], "--names: 2 names, 1 runs"),
        (lambda t: [folder(t / "a"), folder(t / "b"), "--names", "x", "x"], "two runs would have one name"),
        (lambda t: [folder(t / "a"), "--tie_margin", "-1"], "--tie_margin: got -1.0"),
        (
            lambda t: [folder(t / "a"), write_folder(t / "b", PROMPTS[:39], {"hpsv2": [0.2] * 39})],
            "a has other prompts",
        ),
        (
            lambda t: [folder(t / "a"), write_folder(t / "b", PROMPTS, {"shapes": [0.2] * 40})],
            "no scorer in common: shapes here, hpsv2 in the baseline",
        ),
        (
            lambda t: [folder(t / "a"), write_folder(t / "b", PROMPTS, {"hpsv2": [0.2] * 40}, benchmark="shapes")],
            "a is a run of pickapic",
        ),
    ],
)
def test_runs_that_cannot_be_joined(
    tmp_path: Path, make: Callable[[Path], list[object]], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(tmp_path, *make(tmp_path)) == 2  # type: ignore[arg-type]
    assert named in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_damaged_runs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder(tmp_path / "run")
    for name, content, named in (
        ("prompts.jsonl", "{}\n", "prompts.jsonl or benchmark.json is damaged"),
        ("prompts.jsonl", "not JSON\n", "prompts.jsonl or benchmark.json is damaged"),
        ("scores.parquet", "x", "scores.parquet: not a score table"),
        ("benchmark.json", "[]", "benchmark.json: damaged: holds a list"),
        ("benchmark.json", "{", "benchmark.json: damaged: not JSON"),
        ("prompts.jsonl", b"\xff\n", "prompts.jsonl or benchmark.json is damaged"),
        ("prompts.jsonl", "", "not the prompts that the run was made with"),
        ("benchmark.json", "{}", "benchmark.json: damaged: has no 'benchmark'"),
    ):
        before = (run / name).read_bytes()
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        assert report(tmp_path, run) == 2
        assert named in capsys.readouterr().err
        (run / name).write_bytes(before)


@pytest.mark.parametrize(
    ("key", "value"),
    [("short", "all"), ("images", 3), ("seeds", 3), ("generation", []), ("recipes", "x"), ("prompts_hash", 5)],
)
def test_settings_of_another_kind_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: object
) -> None:
    run = folder(tmp_path / "run")
    settings = json.loads((run / "benchmark.json").read_text())
    (run / "benchmark.json").write_text(json.dumps(settings | {key: value}))
    assert report(tmp_path, run) == 2
    assert f"benchmark.json: {key} is {value!r}" in capsys.readouterr().err


def test_scores_and_prompts_that_were_changed_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder(tmp_path / "run")
    records = read_scores(run / "scores.parquet")
    write_scores(
        [replace(records[0], score=records[0].score + 1e-3, raw=records[0].raw + 1e-3), *records[1:]],
        run / "scores.parquet",
    )
    assert report(tmp_path, run) == 2
    assert "one of the two was changed" in capsys.readouterr().err
    write_scores(records, run / "scores.parquet")
    prompts = (run / "prompts.jsonl").read_text()
    (run / "prompts.jsonl").write_text(prompts.replace('"prompt": "', '"prompt": "not ', 1))
    assert report(tmp_path, run) == 2
    assert "not the prompts that the run was made with" in capsys.readouterr().err
    (run / "prompts.jsonl").write_text(prompts)
    assert report(tmp_path, run) == 0


def test_a_picture_that_is_gone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder(tmp_path / "run")
    for path in (tmp_path / "run-pictures").iterdir():
        path.unlink()
    assert report(tmp_path, run) == 2
    assert "cannot be read as an image" in capsys.readouterr().err


def test_the_output_is_a_page_and_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(folder(tmp_path / "run"))
    assert main(["report", run, "--output", str(tmp_path / "r.pdf")]) == 2
    assert "give a name that ends in .html" in capsys.readouterr().err
    (tmp_path / "r.html").write_text("old")
    assert main(["report", run, "--output", str(tmp_path / "r.html")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "r.html").read_text() == "old"


def test_hostile_names_do_not_become_markup(tmp_path: Path) -> None:
    prompts = [PromptRecord(f"<script>{number}</script>", {"style": "<b>"}) for number in range(6)]
    run = write_folder(tmp_path / "run", prompts, {"hpsv2": [0.2] * 6}, benchmark="drawbench", model="<img src=x>")
    assert report(tmp_path, run) == 0
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "<img src=x" not in page
    assert json.dumps("<b>")[1:-1] not in page.replace("&lt;b&gt;", "")
