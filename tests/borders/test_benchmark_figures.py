"""What benchmarks say of their figures: one unit for HPSv2 everywhere, styles alone, gaps, prompts that were cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_clip
from benchmark_folders import write_folder
from PIL import Image

from diffusion_feedback.cli.main import main
from diffusion_feedback.data.scores import read_scores, write_scores
from diffusion_feedback.evaluation.benchmarks.published import STYLES
from diffusion_feedback.evaluation.benchmarks.run import compare_runs
from diffusion_feedback.records import PromptRecord, ScoreRecord
from diffusion_feedback.reports.console import benchmark_summary
from diffusion_feedback.reports.html import write_report
from diffusion_feedback.reports.pages.benchmark import benchmark_report
from diffusion_feedback.workflows.benchmark_folder import load_run, write_run

BENCHMARKS = ["hpsv2", "pickapic", "partiprompts", "drawbench", "shapes"]


def prompts_of(benchmark: str, number: int = 8) -> list[PromptRecord]:
    styles = STYLES if benchmark == "hpsv2" else ("one", "two")
    named = benchmark != "pickapic"
    return [PromptRecord(f"p{i}", {"style": styles[i % len(styles)]} if named else {}) for i in range(number)]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_hpsv2_is_in_the_published_unit_on_every_benchmark(tmp_path: Path, benchmark: str) -> None:
    """As hpsv2's own modes print it: 100 x cosine; the table of scores holds the cosine, and every figure says which."""
    cosines: list[float | None] = [0.25 + 0.001 * i for i in range(8)]
    better: list[float | None] = [0.26 + 0.002 * i for i in range(8)]
    both = {"hpsv2": cosines, "pickscore": [21.0 + i for i in range(8)]}
    base = write_folder(tmp_path / "base", prompts_of(benchmark), both, benchmark=benchmark)
    run = write_folder(tmp_path / "run", prompts_of(benchmark), both | {"hpsv2": better}, benchmark=benchmark)
    found = read(run / "results.json")["scorers"]
    assert found["hpsv2"]["overall"]["mean"] == pytest.approx(26.7)
    assert found["hpsv2"]["unit"] == "100 x cosine"
    assert found["pickscore"]["overall"]["mean"] == pytest.approx(24.5)
    assert "unit" not in found["pickscore"]
    assert {row.raw for row in read_scores(run / "scores.parquet") if row.scorer == "hpsv2"} == set(better)
    before, after = load_run(base), load_run(run)
    comparison = compare_runs(before, after)
    assert comparison.scorers[0].overall.difference.value == pytest.approx(100 * (0.267 - 0.2535))
    shown = benchmark_summary(after, comparison)
    assert "hpsv2 (100 x cosine)  (hpsv2.1/" in shown
    assert "pickscore  (pickscore.1/" in shown
    write_report(benchmark_report([after], [comparison]), run / "report.html")
    page = (run / "report.html").read_text()
    assert "Means, hpsv2 (100 x cosine)" in page
    assert "26.70" in page
    assert "0.27" not in page.split("<h2>Settings")[0]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_each_figure_is_printed_once(tmp_path: Path, benchmark: str) -> None:
    run = load_run(write_folder(tmp_path / "run", prompts_of(benchmark), {"pickscore": [1.0] * 8}, benchmark=benchmark))
    lines = [line.split()[0] for line in benchmark_summary(run, None).splitlines() if line.startswith("  ")]
    assert lines == [*([] if benchmark == "pickapic" else dict.fromkeys(run.styles)), "all"]


def test_figures_of_one_picture_say_nothing_of_their_spread(tmp_path: Path) -> None:
    run = load_run(write_folder(tmp_path / "run", prompts_of("pickapic", 1), {"pickscore": [21.0]}))
    shown = benchmark_summary(run, None)
    assert "all                21.00, 1 prompt" in shown
    assert "nan" not in shown


# --- styles ----------------------------------------------------------------------------------------------------------


def whole_style(style: str, number: int = 800) -> list[PromptRecord]:
    return [PromptRecord(f"{style} {i}", {"style": style}) for i in range(number)]


def test_a_whole_style_compares_with_the_published_ones_of_that_style(tmp_path: Path) -> None:
    short = ["anime: 0 of 800 prompts", "concept-art: 0 of 800 prompts", "paintings: 0 of 800 prompts"]
    values: list[float | None] = [0.28 + 0.00001 * i for i in range(800)]
    folder = write_folder(
        tmp_path / "run", whole_style("photo"), {"hpsv2": values}, benchmark="hpsv2", short=short, side=1
    )
    run = load_run(folder)
    shown = benchmark_summary(run, None)
    assert "published, not reproduced here: " in shown
    assert ", photo 28." in shown
    assert "30.63" not in shown  # an average over four styles
    write_report(benchmark_report([run]), folder / "report.html")
    page = (folder / "report.html").read_text()
    assert "Published results of the same scorer, v2.1" in page
    assert "Those of whole styles do, style by style: photo." in page
    part = write_folder(
        tmp_path / "part", whole_style("photo", 8), {"hpsv2": values[:8]}, benchmark="hpsv2", short=["photo: 8 of 800"]
    )
    assert "published" not in benchmark_summary(load_run(part), None)


def test_one_style_is_measured_as_the_message_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images of one style only: refused before anything is scored, and the flags of the remedy work."""
    for style in STYLES:
        (tmp_path / "prompts").mkdir(exist_ok=True)
        (tmp_path / "prompts" / f"{style}.json").write_text(json.dumps(["a small red circle on a blue background"]))
    (tmp_path / "images" / "photo").mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "images" / "photo" / "00000.png")
    flags = ["--images", str(tmp_path / "images"), "--scorer", "shapes", "--cache_dir", str(tmp_path / "cache")]
    argv = ["benchmark", "hpsv2", *flags, "--output_dir", str(tmp_path / "run"), "--allow_missing", "--allow_short"]
    assert main([*argv, "--prompts", str(tmp_path / "prompts")]) == 2
    told = capsys.readouterr()
    assert "no image at all of anime, concept-art, paintings" in told.err
    assert "--prompts FOLDER/STYLE.json with --allow_short" in told.err
    assert not (tmp_path / "cache").exists()
    assert main([*argv, "--prompts", str(tmp_path / "prompts" / "photo.json")]) == 0
    assert list(read(tmp_path / "run" / "results.json")["scorers"]["shapes"]["styles"]) == ["photo"]


# --- prompts that were cut -------------------------------------------------------------------------------------------


def test_cut_prompts_are_named_and_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = tiny_clip.save_clip(tmp_path / "clip")
    long, short = "b" * 200, "a cat"
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.new("RGB", (40, 40), (90 * number, 20, 60)).save(tmp_path / "images" / f"{number:05d}.png")
    (tmp_path / "prompts.txt").write_text(f"{long}\n{short}\n")
    flags = ["--scorer", f"pickscore={clip}", f"clip_score={clip},form=hessel", "--cache_dir", str(tmp_path / "cache")]
    read_in = ["--prompts", str(tmp_path / "prompts.txt")]
    for ending in ("parquet", "csv", "jsonl"):
        output = tmp_path / f"scores.{ending}"
        assert main(["score", str(tmp_path / "images"), *read_in, "--output", str(output), *flags]) == 0
        shown = capsys.readouterr().out
        assert (
            f"note: pickscore ignores the ends of 1 of 2 prompts, beyond its token limit; the first: '{'b' * 57}...'"
            in shown
        )
        assert [(row.prompt[0], row.prompt_cut) for row in read_scores(output)] == [("b", True), ("a", False)] * 2
    argv = ["benchmark", "pickapic", *read_in, "--images", str(tmp_path / "images"), *flags]
    assert main([*argv, "--output_dir", str(tmp_path / "run")]) == 0
    for scorer in read(tmp_path / "run" / "results.json")["scorers"].values():
        assert scorer["cut_prompts"] == [long]
    assert "pickscore read the beginning only of 1 of 2 prompts" in (tmp_path / "run" / "report.html").read_text()
    assert load_run(tmp_path / "run").values[0].cut == (0,)


def test_tables_of_before_are_read(tmp_path: Path) -> None:
    """They do not say which prompts were cut."""
    import pyarrow.parquet as pq

    row = ScoreRecord("a.png", "k", "a cat", "pickscore", "pickscore.1/x", 21.0, 0.21, 100.0, prompt_cut=True)
    write_scores([row], tmp_path / "new.parquet")
    pq.write_table(pq.read_table(tmp_path / "new.parquet").drop_columns(["prompt_cut"]), tmp_path / "old.parquet")
    assert [r.prompt_cut for r in read_scores(tmp_path / "new.parquet")] == [True]
    assert [r.prompt_cut for r in read_scores(tmp_path / "old.parquet")] == [None]


def test_results_written_again_are_the_same(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", prompts_of("drawbench"), {"hpsv2": [0.2] * 8}, benchmark="drawbench")
    before = (folder / "results.json").read_bytes()
    write_run(load_run(folder), read_scores(folder / "scores.parquet"), None)
    assert (folder / "results.json").read_bytes() == before
