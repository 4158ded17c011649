"""The report in a real browser: it asks for nothing, fits a phone, shows every image, and works without a script."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from reports.test_parts import parts
from sample_report import HOSTILE, full_report

from diffusion_feedback.reports.html import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)")

LONG = "supercalifragilistic" * 12


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(full_report(f"{HOSTILE} {LONG}"), path)
    return path.as_uri()


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_stands_on_its_own(browser: sync_api.Browser, address: str, width: int, scheme: str) -> None:
    with browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
        requests: list[str] = []
        messages: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.goto(address)
        assert [url for url in requests if not url.startswith("data:")] == [address]
        assert messages == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        images = page.evaluate(
            "async () => Promise.all([...document.images].map(async i => { await i.decode(); return i.naturalWidth; }))"
        )
        assert len(images) == 18
        assert min(images) > 0
        assert page.title().startswith("Diffusion-DPO")
        dark = sum(map(int, page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g)"))) < 384
        assert dark == (scheme == "dark")


def test_the_bar_is_drawn_where_its_numbers_say(browser: sync_api.Browser, address: str) -> None:
    with browser.new_page(viewport={"width": 1200, "height": 800}) as page:
        page.goto(address)
        places = page.evaluate(
            """() => {
                const bar = document.querySelector('.headline .bar'), all = bar.getBoundingClientRect();
                const at = (name) => bar.querySelector(name).getBoundingClientRect();
                const middle = (box) => ((box.left + box.right) / 2 - all.left) / all.width;
                const range = at('.range');
                return [middle(at('.half')), middle(at('.dot')),
                        (range.left - all.left) / all.width, (range.right - all.left) / all.width];
            }"""
        )
        assert places == pytest.approx([0.5, 0.684, 0.645, 0.721], abs=0.002)


def test_a_pair_is_enlarged_and_put_back_by_mouse_and_keyboard(browser: sync_api.Browser, address: str) -> None:
    with browser.new_page(viewport={"width": 1200, "height": 800}) as page:
        page.goto(address)
        image = page.locator(".pair img").first

        def width() -> float:
            return float(image.evaluate("i => i.getBoundingClientRect().width"))

        before, height = width(), page.evaluate("document.documentElement.scrollHeight")
        page.locator(".open").first.click()
        assert width() > 1.8 * before
        assert abs(page.evaluate("document.documentElement.scrollHeight") - height) < 60
        page.locator(".shut >> visible=true").click()
        assert width() == before
        page.locator(".open").first.focus()
        page.keyboard.press("Enter")
        assert width() > 1.8 * before
        # Next, and back, by the keyboard alone.
        opened = "document.querySelector(':target').id"
        for keys, expected in (
            (("Tab", "Enter"), "case-2"),
            (("Tab", "Enter"), "case-3"),
            (("Tab", "Tab", "Enter"), "case-2"),
        ):
            for key in keys:
                page.keyboard.press(key)
            assert page.evaluate(opened) == expected


def test_pairs_are_shown_large_or_one_over_the_other(browser: sync_api.Browser, address: str) -> None:
    with browser.new_page(viewport={"width": 1200, "height": 800}) as page:
        page.goto(address)
        images = page.locator(".pair img")

        def box(number: int) -> dict[str, float]:
            return images.nth(number).evaluate("i => i.getBoundingClientRect().toJSON()")  # type: ignore[no-any-return]

        two = box(0)["width"]
        assert two > 200
        page.locator(".layout .wide").check()
        assert box(0)["width"] > 1.9 * two
        page.locator(".layout .over").check()
        assert box(0) == box(1)
        top = "() => { const b = document.querySelectorAll('.pair img')[%d].parentElement; return getComputedStyle(b).visibility }"
        assert page.evaluate(top % 1) == "visible"
        page.locator(".open").first.hover()
        assert page.evaluate(top % 1) == "hidden"


def test_text_stands_out_from_its_ground(browser: sync_api.Browser, address: str) -> None:
    """WCAG 2.1, 1.4.3: a contrast of 4.5 for every colour of text on every ground it stands on, in both themes."""
    script = """() => {
        const style = getComputedStyle(document.documentElement);
        const light = (name) => {
            const [r, g, b] = style.getPropertyValue(name).trim().match(/[0-9a-f]{2}/gi).map((h) => {
                const c = parseInt(h, 16) / 255;
                return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const pairs = [['--ink', '--card'], ['--ink', '--paper'], ['--soft', '--card'], ['--soft', '--paper'],
                       ['--up', '--card'], ['--down', '--card'], ['--up', '--up-wash'], ['--down', '--down-wash'],
                       ['--soft', '--track'], ['--ink', '--caution-wash'], ['--ink', '--down-wash']];
        return pairs.map(([a, b]) => {
            const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
            return [a, b, (x + 0.05) / (y + 0.05)];
        });
    }"""
    for scheme in ("light", "dark"):
        with browser.new_page(color_scheme=scheme) as page:
            page.goto(address)
            assert [row for row in page.evaluate(script) if row[2] < 4.5] == []


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_wide_tables_and_notices_fit(browser: sync_api.Browser, tmp_path: Path, width: int, scheme: str) -> None:
    """Tables scroll within their frames and keep the names of their rows in sight; the alarm is seen at once."""
    write_report(parts(f"word {LONG}"), tmp_path / "report.html")
    with browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.evaluate("document.querySelector('.scroll').scrollLeft = 10000")
        left = page.evaluate("""() => document.querySelector('.scroll tbody th').getBoundingClientRect().left
            - document.querySelector('.scroll').getBoundingClientRect().left""")
        assert left < 3
        alarm = page.evaluate("document.querySelector('.notice.alarm').getBoundingClientRect().top")
        assert alarm < 800
