"""Notices, tables, groups of win rates and single images on the page: what they show, and that nothing is markup."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from reports.test_html import _Page
from sample_report import HOSTILE, picture

from diffusion_feedback.errors import UserError
from diffusion_feedback.evaluation.statistics import win_rate_of_counts
from diffusion_feedback.reports.content import Case, Cell, Group, Notice, Rate, Report, Sample, Table
from diffusion_feedback.reports.html import render_report


def parts(word: str) -> Report:
    cell = Cell(f"28.42 {word}", f"± 0.31 {word}", "better")
    return Report(
        title="Benchmark",
        notices=[Notice(f"Alarm {word}", f"hacking {word}", "alarm"), Notice("Calm", "all agree")],
        tables=[
            Table(f"Means {word}", ["anime", "photo"], [(Cell("ours", word), [cell, cell])], f"said {word}", "Model")
        ],
        rate_groups=[Group(f"hpsv2 {word}", [Rate(f"ours {word}", win_rate_of_counts(70, 0, 30))], word)],
        cases=[Group("Best", [Case("p", picture(1), picture(2), 0.1, 0.2)], after_name=f"second {word}")],
        samples=[Group(f"Highest {word}", [Sample(f"a prompt {word}", picture(3), 0.25)])],
        setup=Table(
            "Settings", ["a", "b"], [(Cell("steps"), [Cell(f"15 {word}", mark="differs"), Cell("30")])], is_text=True
        ),
    )


def test_every_part_is_shown() -> None:
    page = _Page(render_report(parts("words")))
    text = " ".join(page.texts)
    for said in (
        "Alarm words",
        "hacking words",
        "all agree",
        "Means words",
        "28.42 words",
        "± 0.31 words",
        "hpsv2 words",
    ):
        assert said in text
    for said in (
        "ours words",
        "70.0\u202f%",
        "second words",
        "Highest words",
        "a prompt words",
        "15 words",
        "said words",
    ):
        assert said in text
    assert [attributes["class"] for tag, attributes in page.tags if attributes.get("role") == "alert"] == [
        "notice alarm"
    ]
    assert sum(tag == "mark" for tag, _ in page.tags) == 1
    assert sum(tag == "img" for tag, _ in page.tags) == 3


def test_nothing_of_the_users_becomes_markup() -> None:
    page = _Page(render_report(parts(HOSTILE)))
    assert "script" not in {tag for tag, _ in page.tags}
    assert {str(attributes["src"])[:11] for tag, attributes in page.tags if tag == "img"} == {"data:image/"}
    assert sum(HOSTILE in text for text in page.texts) >= 10


def test_a_pair_names_the_model_of_its_group() -> None:
    cases = [Case("p", picture(1), picture(2), 0.1, 0.2)]
    page = _Page(render_report(Report("r", cases=[Group("a", cases), Group("b", cases, after_name="other")])))
    assert [page.texts.count(name) for name in ("base", "tuned", "other")] == [2, 1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Table("t", ["a", "b"], [(Cell("row"), [Cell("1")])]), "table 't', row 'row': 1 cells, 2 columns"),
        (lambda: Sample("a cat", b"", math.nan), "image of 'a cat': score is nan"),
    ],
)
def test_wrong_parts_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
