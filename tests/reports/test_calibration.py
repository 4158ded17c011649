"""The calibration part of a report: numbers on the page, figures where the numbers say, user's names as text only."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sample_report import HOSTILE, picture

from diffusion_feedback.errors import UserError
from diffusion_feedback.evaluation.calibrated import CalibrationResult
from diffusion_feedback.evaluation.calibration import (
    Agreement,
    CoveragePoint,
    LabelledPairs,
    Probabilities,
    ScorerCalibration,
    confident_mistakes,
)
from diffusion_feedback.evaluation.statistics import Interval
from diffusion_feedback.evaluation.temperature import ReliabilityBin, ScaleFit
from diffusion_feedback.reports.calibration import coverage_svg, lowest_observed, reliability_svg
from diffusion_feedback.reports.content import Group, Mistake, Report
from diffusion_feedback.reports.html import render_report, significant, write_report
from diffusion_feedback.reports.pages.calibration import calibration_report, calibration_verdict

NARROW = "\N{NARROW NO-BREAK SPACE}"


def interval(value: float, low: float, high: float) -> Interval:
    return Interval(value, low, high, 500)


def bins(*rows: tuple[float, float]) -> list[ReliabilityBin]:
    return [ReliabilityBin(x, y, max(0, y - 0.08), min(1, y + 0.08), 50) for x, y in rows]


def coverage(*rows: tuple[float, float]) -> list[CoveragePoint]:
    return [CoveragePoint(x, interval(y, max(0, y - 0.08), min(1, y + 0.08))) for x, y in rows]


def sample(name: str = "pickscore") -> CalibrationResult:
    before, after = bins((0.55, 0.5), (0.9, 0.8)), bins((0.55, 0.52), (0.8, 0.8))
    own = ScorerCalibration(
        name=name,
        recipe_id="pickscore.1/fp32",
        own_logit_scale=100.0,
        fit=ScaleFit(65.23, "fitted"),
        scale_interval=interval(65.23, 54.1, 78.6),
        accuracy=interval(0.683, 0.649, 0.718),
        accuracy_per_prompt=interval(0.69, 0.65, 0.72),
        accuracy_with_ties=interval(0.673, 0.643, 0.705),
        tie_threshold=0.2,
        own=Probabilities(interval(0.609, 0.57, 0.64), 0.09, 0.043, before),
        fitted=Probabilities(interval(0.593, 0.562, 0.624), 0.056, 0.043, after),
        coverage=coverage((1.0, 0.68), (0.5, 0.8), (0.1, 0.97)),
        num_equal=0,
    )
    plain = replace(
        own,
        name="shapes",
        fit=ScaleFit(6.5, "fitted"),
        own_logit_scale=None,
        own=None,
        fitted=Probabilities(interval(0.593, 0.562, 0.624), 0.056, 0.043, before),
        coverage=coverage((1.0, 0.77), (0.1, 1.0)),
        num_equal=11,
    )
    return CalibrationResult(
        source="pairs.parquet",
        pairs=LabelledPairs(np.array([1.0, 0.0]), ["a", "b"]),
        tuning_source=None,
        tuning=None,
        scorers=[plain, own],
        agreements=[
            Agreement("labels", name, interval(0.683, 0.649, 0.718)),
            Agreement(name, "shapes", interval(0.44, 0.4, 0.48)),
        ],
        ceiling="shapes",
        num_left_out=0,
    )


def test_the_table_says_what_it_was_given() -> None:
    page = render_report(Report("Calibration", calibration=sample()))
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)).replace(NARROW, " ")
    for expected in (
        "noise ceiling", "11 pairs with equal scores", "68.3 %", "64.9 % to 71.8 %", "t = 0.2", "0.609 → 0.593",
        "9.0 % → 5.6 %", "chance alone: 4.3 %", "100 → 65.2", "54.1 to 78.6", "44.0 %",
    ):  # fmt: skip
        assert expected in text.replace(" ", " "), expected
    assert "None" not in text


def test_the_agreement_is_symmetric_and_what_is_not_given_is_blank() -> None:
    part = sample()
    assert (
        part.agreement_of("shapes", "pickscore")
        == part.agreement_of("pickscore", "shapes")
        == interval(0.44, 0.4, 0.48)
    )
    assert part.agreement_of("shapes", "shapes") is part.agreement_of("labels", "shapes") is None
    page = render_report(Report("Calibration", calibration=part))
    table = page[page.index('<table class="agreement">') :]
    assert table[: table.index("</table>")].count('class="none"') == 5  # the diagonal, and labels with shapes twice
    assert table.count("--shade: 11%") == 2  # 60 % of 0.683 - 0.5
    assert table.count("--shade: 0%") == 2  # below one half there is nothing to shade


def test_names_are_text_and_nothing_else() -> None:
    page = render_report(Report("Calibration", calibration=sample(HOSTILE)))
    assert "<script" not in page
    assert "<img" not in page


def test_reports_without_calibration_have_no_trace_of_it() -> None:
    page = render_report(Report("Plain"))
    assert "Reliability" not in page
    assert '<table class="calibration">' not in page


def test_figures_are_the_same_bytes_for_the_same_numbers() -> None:
    plain, both = sample().scorers
    assert reliability_svg(both) == reliability_svg(both)
    assert reliability_svg(both) != reliability_svg(replace(both, name="another"))  # they share no identifiers
    assert coverage_svg([plain, both]) == coverage_svg([plain, both])
    assert reliability_svg(both).startswith("<svg")
    for label in ("own scale", "after the fit", "confidence of the scorer", "90 %"):
        assert f">{label}<" in reliability_svg(both)
    assert ">after the fit<" in reliability_svg(plain)  # a legend over a single line too: all figures are of one height
    assert ">shapes<" in coverage_svg([plain])


def test_reliability_is_drawn_where_its_numbers_say() -> None:
    """On the diagonal, a point that is calibrated lies on the dashed line; one that is too sure lies below it."""
    scorer = sample().scorers[0]
    svg = reliability_svg(replace(scorer, fitted=replace(scorer.fitted, reliability=bins((0.6, 0.6), (0.9, 0.7)))))
    [line] = re.findall(r'<path d="([^"]+)"[^>]*stroke-dasharray', svg)
    (x0, y0), (x1, y1) = [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", line)][:2]
    uses = [
        (float(x), float(y))
        for x, y in re.findall(r'<use xlink:href="#[^"]+" x="([\d.]+)" y="([\d.]+)" style="fill: #2f6bd8', svg)
    ]
    assert len(uses) == 3  # two points, and the legend's
    on_line = [y0 + (y1 - y0) * (x - x0) / (x1 - x0) for x, _ in uses[:2]]
    assert uses[0][1] == pytest.approx(on_line[0], abs=0.01)
    assert uses[1][1] - on_line[1] == pytest.approx(0.2 / 0.5 * (y0 - y1), abs=0.01)  # downwards in SVG is +


def test_all_reliability_figures_share_one_axis() -> None:
    """One scorer of which a bin goes down to 0.32 sets the axis of both, so that they compare at a glance."""
    plain, both = sample().scorers
    low = replace(plain, fitted=replace(plain.fitted, reliability=bins((0.6, 0.4), (0.9, 0.7))))
    assert lowest_observed([low, both]) == pytest.approx(0.3)
    page = render_report(Report("Calibration", calibration=replace(sample(), scorers=[low, both])))
    figures = [svg for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if "confidence of the scorer" in svg]
    ticks = [re.findall(r">(\d+) %<", svg) for svg in figures]
    assert len(ticks) == 2
    assert ticks[0] == ticks[1]


def test_the_verdict_comes_first_and_claims_no_more_than_its_interval() -> None:
    result = sample()
    assert calibration_report(result).claim is not None
    said = calibration_verdict(result).replace(NARROW, " ")
    assert said == (
        "pickscore agrees with people on 68.3 % (64.9 % to 71.8 %); "
        "the ceiling is 68.3 %, what shapes reaches on these labels."
    )
    plain, both = result.scorers
    for bounds, words in (((0.52, 0.45, 0.6), "chance might too"), ((0.4, 0.35, 0.45), "less often than chance")):
        said = calibration_verdict(replace(result, scorers=[plain, replace(both, accuracy=interval(*bounds))]))
        assert words in said


def test_confident_mistakes_are_the_surest_wrong_ones_each_of_another_prompt() -> None:
    difference = np.array([3.0, -5.0, 4.0, -1.0, 9.0, 0.0, 2.0])
    labels = np.array([0.0, 1.0, 0.2, 1.0, 1.0, 0.0, 0.5])
    pairs = LabelledPairs(labels, ["a", "b", "a", "c", "d", "e", "f"])
    assert confident_mistakes(difference, pairs, 9) == [1, 2, 3]  # not the right, the undecided and the tied ones
    assert confident_mistakes(difference, pairs, 1) == [1]


def test_mistakes_are_shown_with_the_side_that_each_prefers() -> None:
    mistake = Mistake("a cat", picture(1, 16), picture(2, 16), 0.75, 0.93)
    page = render_report(Report("C", calibration=sample(), mistakes=[Group("pickscore", [mistake])]))
    text = re.sub(r"<[^>]+>", " ", page).replace(NARROW, " ")
    assert "people prefer" in text
    assert "pickscore prefers" in text
    assert "pickscore 93 % sure" in text
    assert "votes against it 75 %" in text
    assert 'alt="pickscore prefers: a cat"' in page


def test_significant_digits() -> None:
    values = (65.23, 100.0, 1.874, 0.17853, 12345.6, 0, 1e-9, -6.8621)
    expected = ("65.2", "100", "1.87", "0.179", "12346", "0", "1e\N{MINUS SIGN}09", "\N{MINUS SIGN}6.86")
    assert tuple(map(significant, values)) == expected


@pytest.mark.parametrize("bounds", [(0.5, 0.6, 0.7), (0.5, 0.2, 0.4), (math.nan, 0.1, 0.9), (0.5, -math.inf, 0.9)])
def test_wrong_intervals_are_refused(bounds: tuple[float, float, float]) -> None:
    scorer = replace(sample().scorers[0], coverage=[CoveragePoint(1.0, interval(*bounds))])
    with pytest.raises(UserError, match="outside its interval|not finite"):
        coverage_svg([scorer])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_a_phone(tmp_path: Path, width: int) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    write_report(Report("Calibration", calibration=sample("scorer-" * 12)), tmp_path / "report.html")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with browser.new_page(viewport={"width": width, "height": 800}) as page:
            messages: list[str] = []
            page.on("console", lambda message: messages.append(message.text))
            page.goto((tmp_path / "report.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert messages == []
        browser.close()
