"""The report as text: what it says, what it refuses, and that nothing of the user's becomes markup."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from sample_report import HOSTILE, encoded, full_report, picture

from diffusion_feedback.errors import UserError
from diffusion_feedback.evaluation.statistics import Interval, WinRate, win_rate_of_counts
from diffusion_feedback.reports.content import Case, Group, Metric, Rate, Report
from diffusion_feedback.reports.figures import CurveFigure
from diffusion_feedback.reports.html import (
    count,
    decimals,
    fixed,
    p_value,
    percent,
    render_report,
    verdict,
    write_report,
)


class _Page(HTMLParser):
    """Tags with attributes, and the visible text, of a page; complains of tags that are not closed in order."""

    void = frozenset({"meta", "link", "img", "input", "path", "use", "rect", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self._open[-1:] != ["style"]:
            self.texts.append(data.strip())


def test_every_part_is_there() -> None:
    page = _Page(render_report(full_report()))
    text = " ".join(page.texts)
    for words in ("68.4\u202f%", "64.5\u202f% to 72.1\u202f%", "p < 0.001", "9.4\u202f%", "Tuned is better than base"):
        assert words in text
    for words in ("All attributes right", "+22.1", "SFT on chosen", "Best", "Median", "Worst", "Implicit accuracy"):
        assert words in text
    for words in ("+0.62", "\u22120.34", "0.00", "family: sd", "2.15.0", "How to read this", "Verifier"):
        assert words in text
    assert sum(tag == "img" for tag, _ in page.tags) == 18
    assert sum(tag == "svg" for tag, _ in page.tags) == 4


def test_a_bare_report_shows_only_its_title() -> None:
    page = _Page(render_report(Report("Nothing yet")))
    assert "Nothing yet" in page.texts
    assert not {"table", "img", "svg", "details", "article"} & {tag for tag, _ in page.tags}


def test_nothing_of_the_users_becomes_markup() -> None:
    report = full_report(HOSTILE)
    report = dataclasses.replace(
        report,
        title=HOSTILE,
        summary=HOSTILE,
        before_name=HOSTILE,
        after_name=HOSTILE,
        facts={HOSTILE: HOSTILE},
        metrics=[Metric(HOSTILE, 0.1, 0.2, detail=HOSTILE)],
        methods=[Rate(HOSTILE, win_rate_of_counts(5, 0, 5), HOSTILE)],
        curves=[CurveFigure(HOSTILE, {HOSTILE: [(0, 1.0)], "b": [(0, 2.0)]}, HOSTILE, HOSTILE, HOSTILE)],
        recipe=HOSTILE,
        environment={HOSTILE: HOSTILE},
        notes=[(HOSTILE, HOSTILE)],
    )
    page = _Page(render_report(report))
    assert "script" not in {tag for tag, _ in page.tags}
    assert {str(attributes["src"])[:11] for tag, attributes in page.tags if tag == "img"} == {"data:image/"}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert any(HOSTILE in text for text in page.texts)


def test_the_page_refers_to_nothing_outside() -> None:
    page = _Page(render_report(full_report()))
    links = [
        str(value)
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name.split(":")[-1] in {"src", "href", "srcset", "action", "data"}
    ]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "url(" not in re.sub(r"url\(#\w+\)", "", render_report(full_report()))


def test_images_survive_and_large_ones_are_scaled_down() -> None:
    small, large = picture(1, 64, is_noisy=True), picture(2, 1500)
    case = Case("a prompt", encoded(small, "PNG"), large, 0.0, 1.0)
    page = _Page(render_report(Report("r", cases=[Group("Best", [case])])))
    first, second = (
        Image.open(io.BytesIO(base64.b64decode(str(attributes["src"]).split(",")[1])))
        for tag, attributes in page.tags
        if tag == "img"
    )
    assert first.convert("RGB").tobytes() == small.tobytes()  # small images are kept without loss
    assert second.size == (768, 768)


def test_equal_reports_give_equal_bytes(tmp_path: Path) -> None:
    write_report(full_report(), tmp_path / "one.html")
    write_report(full_report(), tmp_path / "deep/two.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "deep/two.html").read_bytes()


def bounds(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, 10)


def won(rate: float, low: float, high: float, num: int = 10, p_value: float = 0.5) -> WinRate:
    return WinRate(rate, low, high, num, 0, 0, num, p_value)


def test_colours_follow_the_interval_alone() -> None:
    assert Metric("m", 0.1, 0.2).verdict == "same"
    assert Metric("m", 0.1, 0.2, bounds(-0.01, 0.2)).verdict == "same"
    assert Metric("m", 0.1, 0.2, bounds(0.01, 0.2)).verdict == "better"
    assert Metric("m", 0.1, 0.2, bounds(0.01, 0.2), higher_is_better=False).verdict == "worse"
    assert Metric("m", 0.2, 0.1, bounds(-0.2, -0.01), higher_is_better=False).verdict == "better"
    assert Metric("m", 0.1, 0.2, bounds(-math.inf, math.inf)).verdict == "same"


def test_the_verdict_claims_no_more_than_the_interval() -> None:
    assert "Tuned is better" in verdict(won(0.6, 0.51, 0.7), "base", "tuned")
    assert "Tuned is worse" in verdict(won(0.4, 0.3, 0.49), "base", "tuned")
    for low, high in ((0.5, 0.7), (0.3, 0.5), (0.4, 0.6)):
        assert "No difference" in verdict(won((low + high) / 2, low, high), "base", "tuned")


def test_numbers_have_sensible_digits() -> None:
    assert [percent(value) for value in (0.6834, 1.0, 0.0)] == ["68.3\u202f%", "100.0\u202f%", "0.0\u202f%"]
    assert [p_value(value) for value in (1e-9, 0.0342, 0.5, 0.0999)] == ["< 0.001", "= 0.034", "= 0.50", "= 0.10"]
    assert [count(value) for value in (12, 1234567)] == ["12", "1\u202f234\u202f567"]
    assert [decimals(value) for value in (0, 0.342, -0.0123, 3.4, 120, 1e-9)] == [2, 2, 3, 1, 0, 4]
    assert [fixed(value, 2, signed=True) for value in (0.456, -0.456, -0.001, 0.001)] == [
        "+0.46",
        "\u22120.46",
        "0.00",
        "0.00",
    ]
    assert [fixed(value, 1, signed=True) for value in (math.inf, -math.inf)] == ["+\u221e", "\u2212\u221e"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Report("  "), "the report has no title"),
        (lambda: won(1.2, 0.1, 0.2), "win rate: win_rate is 1.2"),
        (lambda: won(math.nan, 0.1, 0.2), "win_rate is nan"),
        (lambda: won(0.5, 0.6, 0.7), "0.5 lies outside its interval 0.6 to 0.7"),
        (lambda: won(0.5, 0.4, 0.7, 0), "num is 0"),
        (lambda: won(0.5, 0.4, 0.7, p_value=2), "p_value is 2"),
        (lambda: Metric("accuracy", math.nan, 1), "metric 'accuracy': before is nan"),
        (lambda: Metric("accuracy", 0, 1, bounds(0.5, 0.2)), "the change lies between 0.5 and 0.2"),
        (lambda: Case("a cat", b"", b"", 0.1, math.inf), "case 'a cat': after_score is inf"),
    ],
)
def test_wrong_numbers_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_wrong_images_are_named_and_leave_no_file(tmp_path: Path) -> None:
    good = picture(1)
    for bad, message in ((b"junk", "image of 4 bytes"), (tmp_path / "absent.png", r"absent.png: cannot be read")):
        report = Report("r", cases=[Group("Best", [Case("p", good, bad, 0.0, 1.0)])])
        with pytest.raises(UserError, match=message):
            write_report(report, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_reports_do_not_import_torch() -> None:
    code = "import sys, diffusion_feedback.reports.html; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
