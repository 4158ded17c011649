"""The table of objectives says what the catalog and the signatures say."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from objective_calls import ON_SAMPLES

from diffusion_feedback.catalog import names, resolve
from diffusion_feedback.catalog.objectives import OBJECTIVES
from diffusion_feedback.catalog.rows import settings_of
from diffusion_feedback.objectives.divergences import DIVERGENCES

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "objectives.md").read_text()
TABLE = DOCUMENT.split("## Objectives on samples, side by side")[1].split("Objectives of other kinds")[0]
ROWS = {
    cells[0].strip("` "): [cell.strip() for cell in cells[1:]]
    for line in TABLE.splitlines()
    if line.startswith("| `")
    for cells in [line.strip("|").split("|")]
}
YES = {True: "yes", False: "no"}


def test_the_table_is_of_objectives_on_samples() -> None:
    assert len(ROWS) > 20
    assert set(ROWS) <= set(ON_SAMPLES)


def test_those_of_other_kinds_are_named_below_it() -> None:
    named = set(re.findall(r"`(\w+)`", DOCUMENT.split("Objectives of other kinds")[1].split("###")[0]))
    assert named
    assert named <= set(names("objective")) - set(ON_SAMPLES)


@pytest.mark.parametrize("name", [name for name in ROWS if name != "weighted_sum"])
def test_a_row_says_what_the_catalog_says(name: str) -> None:
    _, reference, _, coupled, soft, images, _ = ROWS[name]
    row = OBJECTIVES[name]
    assert reference == YES[row.needs_reference]
    assert coupled == YES[row.is_coupled]
    assert soft == YES["chosen_probability" in row.inputs]
    assert images == YES[row.images is None]


def test_papers_are_those_of_the_docstrings() -> None:
    for name, cells in ROWS.items():
        docstring = (inspect.getdoc(resolve("objective", name)) or "") + (
            inspect.getdoc(inspect.getmodule(resolve("objective", name))) or ""
        )
        for paper in re.findall(r"\d{4}\.\d{5}", cells[-1]):
            assert paper in docstring, (name, paper)


def test_divergences_are_listed_with_the_objectives_that_take_them() -> None:
    section = DOCUMENT.split("### Another divergence")[1].split("###")[0]
    takes = {name for name in ROWS if "f_divergence_type" in settings_of(resolve("objective", name))}
    assert set(re.findall(r"`(\w+)`", section.split(" see nothing")[0])) == takes
    assert [kind for kind in DIVERGENCES if f"| `{kind}`" not in section] == []


def test_what_is_refused_is_named() -> None:
    section = DOCUMENT.split("### What is refused for images, and why")[1].split("###")[0]
    assert [name for name in ROWS if OBJECTIVES[name].images and f"`{name}`" not in section] == []


def test_what_cannot_be_summed_is_named() -> None:
    section = DOCUMENT.split("### Sums")[1].split("###")[0]
    for name in ROWS:
        if OBJECTIVES[name].is_coupled:
            assert f"`{name}`" in section
