"""What axe-core says of pages, where it is at hand: AXE names its axe.min.js (npm install axe-core), which is not of this project."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from reports.test_access import PAGES

from diffusion_feedback.reports.html import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

import look  # noqa: E402 - needs playwright

AXE = os.environ.get("AXE", "")
pytestmark = [
    pytest.mark.skipif(not Path(AXE).is_file(), reason="AXE names no axe.min.js"),
    pytest.mark.skipif(look.chromium() is None, reason="no chromium on this machine"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=look.chromium(), args=["--no-sandbox"])
        yield running
        running.close()


def violations(browser: sync_api.Browser, path: Path) -> list[look.Violation]:
    return list(look.look(browser, path, None, Path(AXE).read_text("utf-8")))


@pytest.mark.parametrize("name", list(PAGES))
def test_no_page_has_a_serious_violation(browser: sync_api.Browser, tmp_path: Path, name: str) -> None:
    write_report(PAGES[name](), tmp_path / "report.html")  # type: ignore[operator]
    assert [str(each) for each in violations(browser, tmp_path / "report.html") if each.impact in look.SERIOUS] == []


def test_the_check_can_fail(browser: sync_api.Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<html lang=en><title>t</title><main><h1 style='color:#999'>grey</h1><img src='data:,'></main></html>"
    )
    assert {each.rule for each in violations(browser, page)} >= {"color-contrast", "image-alt"}
