"""Pages for everyone, without a browser: language, headings in order, one main part, alternative texts, names, contrast."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from reports.test_calibration import sample
from reports.test_judge_page import judged
from reports.test_parts import parts
from sample_report import full_report, picture

from diffusion_feedback.reports.content import Group, Mistake, Report
from diffusion_feedback.reports.html import render_report
from diffusion_feedback.reports.pages.calibration import calibration_report
from diffusion_feedback.reports.pages.judge import judge_report
from diffusion_feedback.reports.rendering import TEMPLATES

MISTAKES = [Group("pickscore", [Mistake("a cat", picture(1, 16), picture(2, 16), 1.0, 0.9)])]
PAGES = {
    "plain": lambda: Report("Plain"),
    "full": full_report,
    "parts": lambda: parts("words"),
    "calibration": lambda: calibration_report(sample(), MISTAKES),
    "judge": lambda: judge_report(judged([1.0, 0.0, -1.0])),
}
VOID = {"meta", "link", "img", "input", "br"}


class _Tree(HTMLParser):
    """Every element of a page: its tag, its attributes, and the text within it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(page)
        self.left_open = [tag for tag, _, _ in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, dict(attrs), [])
        self.all.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1][0] == tag, f"</{tag}> closes <{self._open[-1][0]}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for _, _, texts in self._open:
            texts.append(data)

    def named(self, *tags: str) -> list[tuple[str, dict[str, str | None], str]]:
        return [(tag, own, "".join(texts).strip()) for tag, own, texts in self.all if tag in tags]


@pytest.fixture(params=list(PAGES))
def tree(request: pytest.FixtureRequest) -> _Tree:
    return _Tree(render_report(PAGES[request.param]()))  # type: ignore[operator]


def test_the_page_is_whole_and_its_parts_are_named(tree: _Tree) -> None:
    assert tree.left_open == []
    [(_, root, _)] = tree.named("html")
    assert root["lang"] == "en"
    assert len(tree.named("main")) == 1
    assert len(tree.named("h1")) == 1
    assert [text for _, _, text in tree.named("title")] == [text for _, _, text in tree.named("h1")]
    identifiers = Counter(own["id"] for _, own, _ in tree.all if own.get("id"))
    assert [name for name, number in identifiers.items() if number > 1] == []
    sections = [own for tag, own, _ in tree.all if tag == "section"]
    assert sections


def test_headings_go_down_one_level_at_a_time(tree: _Tree) -> None:
    levels = [int(tag[1]) for tag, _, _ in tree.named("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_pictures_links_and_choices_say_what_they_are(tree: _Tree) -> None:
    assert all(own.get("alt") for _, own, _ in tree.named("img"))
    links = tree.named("a")
    assert all(text or own.get("aria-label") for _, own, text in links)
    anchors = {own["id"] for _, own, _ in tree.all if own.get("id")}
    assert {str(own["href"])[1:] for _, own, _ in links} <= anchors
    inputs, labels = tree.named("input"), tree.named("label")
    assert len(inputs) == len(labels)
    assert all(text for _, _, text in labels)
    assert all(own.get("aria-label") for _, own, _ in tree.all if own.get("role") == "img")


def test_what_scrolls_is_reached_by_the_keyboard(tree: _Tree) -> None:
    regions = [own for _, own, _ in tree.all if "scroll" in (own.get("class") or "").split()]
    assert all(own.get("tabindex") == "0" and own.get("role") == "region" for own in regions)
    assert len({own["aria-label"] for own in regions}) == len(regions)
    assert all(own.get("tabindex") == "0" for _, own, _ in tree.named("pre"))


def test_cells_of_headings_say_what_they_head(tree: _Tree) -> None:
    assert all(own.get("scope") in ("col", "row") for _, own, _ in tree.named("th"))
    assert all(text for _, own, text in tree.named("th") if own.get("scope") == "row")


# --- colours ---------------------------------------------------------------------------------------------------------

GROUNDS = {
    "--ink": ("--card", "--paper", "--caution-wash", "--down-wash", "--up-wash"),
    "--soft": ("--card", "--paper", "--track", "--up-wash", "--down-wash"),
    "--up": ("--card", "--up-wash"),
    "--down": ("--card", "--down-wash"),
}
"""Colours of text, and what they stand on."""


def _themes() -> list[dict[str, str]]:
    """The colours of the style sheet, light and dark."""
    css = TEMPLATES.joinpath("report.css").read_text("utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
    return [dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", block)) for block in blocks]


def _lightness(color: str) -> float:
    """Relative luminance, WCAG 2.1."""
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """From 1 to 21."""
    low, high = sorted(map(_lightness, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_by_known_numbers() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # the well-known grey that just fails


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_in_the_colours_of_the_style_sheet(dark: bool) -> None:
    """WCAG 2.1, 1.4.3: 4.5 for text; 1.4.11: 3 for lines of figures, which carry meaning."""
    colors = _themes()[dark]
    text = {(one, on): contrast(colors[one], colors[on]) for one, grounds in GROUNDS.items() for on in grounds}
    assert {pair: value for pair, value in text.items() if value < 4.5} == {}
    series = {name: contrast(value, colors["--card"]) for name, value in colors.items() if name.startswith("--series")}
    assert len(series) == 6
    assert {name: value for name, value in series.items() if value < 3} == {}
