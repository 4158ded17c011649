"""Benchmark pages: a card shows the very image that its figures are of, losses are losses, and nothing is promised in vain."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_report import picture

from diffusion_feedback.catalog import resolve
from diffusion_feedback.evaluation.benchmarks.benchmark import prompts_hash
from diffusion_feedback.evaluation.benchmarks.run import BenchmarkRun, compare_runs, make_run, named_apart
from diffusion_feedback.evaluation.comparison import CaseRow
from diffusion_feedback.records import PromptRecord, ScoreRecord
from diffusion_feedback.reports.content import Case, Report
from diffusion_feedback.reports.html import render_report
from diffusion_feedback.reports.pages.benchmark import benchmark_report
from diffusion_feedback.reports.results import case_groups

SEEDS = [3, 5, 7, 11]
RECIPE = "pickscore.1/crop-224/fp32/ba9876543210"


def run(folder: Path, shift: float, num: int = 12, benchmark: str = "pickapic", **settings: object) -> BenchmarkRun:
    """A run of four images a prompt, each of its own score."""
    folder.mkdir()
    source = np.random.default_rng([len(folder.name), 1])
    prompts = [
        PromptRecord(f"prompt {number}", {"style": "photo"} if benchmark == "hpsv2" else {}) for number in range(num)
    ]
    names = [tuple(f"{number}-{seed}.png" for seed in SEEDS) for number in range(num)]
    for place, name in enumerate(name for own in names for name in own):
        picture(1000 * len(folder.name) + place, 16).save(folder / name)
    records = [
        ScoreRecord(name, name, prompt.prompt, "pickscore", RECIPE, value, value, 100.0)
        for prompt, own in zip(prompts, names, strict=True)
        for name, value in zip(own, (shift + source.normal(5, 2, 4)).tolist(), strict=True)
    ]
    known = {"short": [], "prompts": "p.txt", "prompts_hash": prompts_hash(prompts), "seeds": SEEDS, **settings}
    return make_run(folder, resolve("benchmark", benchmark)(), known, prompts, names, records)


def cards(page: str) -> list[str]:
    return page.split('<article class="card case"')[1:]


def pixels(card: str) -> list[bytes]:
    """The pictures of a card; small ones are stored without loss."""
    uris = re.findall(r"data:image/webp;base64,([^\"]+)", card)
    return [Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGB").tobytes() for uri in uris]


@pytest.fixture
def compared(tmp_path: Path) -> tuple[BenchmarkRun, BenchmarkRun, str]:
    before, after = run(tmp_path / "base", 0), run(tmp_path / "better", 1)
    return before, after, render_report(benchmark_report([after], [compare_runs(before, after)]))


def test_picture_and_figures_of_a_card_are_of_one_image(compared: tuple[BenchmarkRun, BenchmarkRun, str]) -> None:
    before, after, page = compared
    shown = cards(page)
    assert len(shown) == 12
    for card in shown:
        number = int(re.search(r'<p class="prompt">prompt (\d+)<', card)[1])  # type: ignore[index]
        place = SEEDS.index(int(re.search(r"seed (\d+)<", card)[1]))  # type: ignore[index]
        files = [Image.open(each.picture(number, place)).convert("RGB").tobytes() for each in (before, after)]
        assert pixels(card) == files
        scores = [each.values[0].by_image[number][place] for each in (before, after)]
        old, new, delta = re.search(r"<span>([\d.]+) → ([\d.]+)</span><span[^>]*>([^<]+)<", card).groups()  # type: ignore[union-attr]
        assert (float(old), float(new)) == pytest.approx(scores, abs=0.051)
        assert float(delta.replace("\N{MINUS SIGN}", "-")) == pytest.approx(scores[1] - scores[0], abs=0.051)


def test_the_worst_comes_first_and_the_worst_of_all_images_is_there(
    compared: tuple[BenchmarkRun, BenchmarkRun, str],
) -> None:
    before, after, page = compared
    losses = page[page.index("Largest losses") : page.index("Typical cases")]
    deltas = [float(x.replace("\N{MINUS SIGN}", "-")) for x in re.findall(r'class="delta worse">([^<]+)<', losses)]
    assert deltas == sorted(deltas)
    gaps = np.array(after.values[0].by_image) - np.array(before.values[0].by_image)
    assert deltas[0] == pytest.approx(gaps.min(), abs=0.051)


def _titles(deltas: list[float]) -> dict[str, list[float]]:
    rows = [CaseRow(number, f"prompt {number}", 0.0, delta) for number, delta in enumerate(deltas)]
    image = picture(1)
    groups = case_groups(rows, 2, lambda row: Case(row.prompt, image, image, row.before, row.after))
    return {group.title: [case.delta for case in group.parts] for group in groups}


def test_what_is_no_loss_is_not_shown_as_one() -> None:
    assert _titles([3, 2, 1, 0.5, 0, 4]) == {"Largest gains": [4, 3], "Typical cases": [2, 1, 0, 0.5]}
    assert _titles([-3, -2, -1]) == {"Largest losses": [-3], "Typical cases": [-1, -2]}
    assert _titles([1.0]) == {"Typical cases": [1.0]}


def test_a_change_that_rounds_to_nothing_has_no_colour() -> None:
    image = picture(1)
    rows = [CaseRow(0, "a", 1.0, 1.0 + 1e-9), CaseRow(1, "b", 1.0, 1.02), CaseRow(2, "c", 1.0, 31.0)]
    groups = case_groups(rows, 1, lambda row: Case(row.prompt, image, image, row.before, row.after))
    page = render_report(Report("r", cases=groups))
    found = re.findall(r'<span class="delta ([a-z]*)">([^<]+)<', page)
    assert sorted(found) == [("", "0.0000"), ("better", "+0.020"), ("better", "+30")]


def test_one_run_has_a_headline_that_names_the_model(tmp_path: Path) -> None:
    own = run(tmp_path / "b1", 0, model="models/sd15", lora="runs/mine")
    report = benchmark_report([own])
    assert report.title == "Pick-a-Pic prompts: sd15 + mine"
    assert report.claim is not None
    mean = np.mean(own.values[0].values)
    assert float(report.claim.value) == pytest.approx(mean, abs=0.051)
    page = render_report(report)
    assert f"sd15 + mine has a mean pickscore score of {report.claim.value} ±" in page
    assert "styles" not in report.facts
    assert "seed 3<" in page
    assert {pixels(card)[0] for card in cards(page)} <= {
        Image.open(path).convert("RGB").tobytes() for path in own.folder.glob("*.png")
    }


def test_runs_of_one_model_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    runs = [run(place, 0, model="sd15") for place in (tmp_path / "a", tmp_path / "x" / "b", tmp_path / "x" / "a")]
    assert [each.name for each in named_apart(runs[:2])] == ["sd15 (a)", "sd15 (b)"]
    assert len({each.name for each in named_apart(runs)}) == 3
    other = run(tmp_path / "other", 0, model="sdxl")
    assert [each.name for each in named_apart([runs[0], other])] == ["sd15", "sdxl"]


def test_warnings_stand_in_one_box_and_captions_promise_what_is_drawn(tmp_path: Path) -> None:
    short = ["photo: 12 of 800 prompts", "anime: 0 of 800 prompts"]
    page = render_report(benchmark_report([run(tmp_path / "hps", 0, benchmark="hpsv2", short=short)]))
    assert page.count('class="notice caution"') == 1
    assert page.count("Not the whole benchmark") == 1
    assert all(line in page for line in short)
    assert "groups of 80" not in page  # twelve prompts have no spread of groups
    assert "Mean ± its standard error" in page


@pytest.mark.parametrize("benchmark", ["prompts", "hpsv2", "pickapic"])
def test_own_prompts_are_called_after_their_file_and_have_no_published_table(tmp_path: Path, benchmark: str) -> None:
    own = run(tmp_path / "mine", 0, benchmark=benchmark, own_prompts="mine.txt", model="sd15")
    report = benchmark_report([own])
    assert report.title == "Prompts of mine.txt: sd15"
    assert f"12 prompts from mine.txt, hash {own.settings['prompts_hash'][:12]}" in report.summary
    assert "arXiv" not in render_report(report)
    recipe = "hpsv2.1/letterbox-224/fp32/0123"
    assert own.published(recipe) == ()
    results = own.to_json()
    assert str(results["source"]).startswith("mine.txt, hash ")
    if benchmark == "hpsv2":
        assert "not those of HPSv2 benchmark" in report.summary


def test_a_copy_of_the_benchmarks_own_file_goes_by_its_name() -> None:
    names = {"partiprompts": "PartiPrompts.tsv", "hpsv2": "photo.json", "shapes": "heldout.txt"}
    for name, file in names.items():
        own = resolve("benchmark", name)()
        assert own.own_file([Path("downloads") / file]) == ""
        assert own.own_file([Path("downloads") / "mine.txt"]) == "mine.txt"
    assert resolve("benchmark", "prompts")().own_file([Path("a/mine.txt")]) == "mine.txt"
