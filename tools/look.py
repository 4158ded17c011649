r"""Pages in a real browser: pictures of them, and what axe-core says of how accessible they are.

Each page is opened on a desktop and on a phone, in light and in dark, and one picture of each goes to the output folder. Where
axe-core is at hand its violations are printed, and serious ones end the command with 1. It is no part of this project (its
licence is MPL-2.0): ``npm install axe-core`` puts it into node_modules, and ``--axe`` or the environment variable AXE names
its axe.min.js. Needs playwright and a chromium.

    python tools/look.py runs/demo/report.html runs/bench/report.html --output shots \
        --axe node_modules/axe-core/axe.min.js
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

WIDTHS = {"desktop": 1280, "phone": 390}
SCHEMES = ("light", "dark")
SERIOUS = ("serious", "critical")


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule of axe-core that a page breaks, and the first places where."""

    page: str
    view: str
    impact: str
    rule: str
    help: str
    places: tuple[str, ...]

    def __str__(self) -> str:
        where = "".join(f"\n    {place}" for place in self.places[:5])
        return f"{self.page}, {self.view}: {self.impact}: {self.rule}: {self.help} ({len(self.places)}){where}"


def chromium() -> str | None:
    """Where a chromium is; None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def look(browser: Browser, path: Path, output: Path | None, axe: str | None) -> Iterator[Violation]:
    """Take the pictures of one page; yields what ``axe``, the text of its script, finds."""
    for device, width in WIDTHS.items():
        for scheme in SCHEMES:
            view = f"{device}-{scheme}"
            # A page allows no script of its own or of others: the check is let in past its policy.
            options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, "bypass_csp": True}
            with browser.new_context(**options) as context, context.new_page() as page:
                page.goto(path.resolve().as_uri())
                if output is not None:
                    name = f"{path.resolve().parent.name}-{path.stem}-{view}.png"
                    page.screenshot(path=output / name, full_page=True)
                if axe is not None:
                    page.evaluate("() => document.querySelectorAll('details').forEach(each => { each.open = true; })")
                    page.evaluate(axe)
                    for row in page.evaluate("() => axe.run()")["violations"]:
                        places = tuple(" ".join(map(str, node["target"])) for node in row["nodes"])
                        yield Violation(str(path), view, row["impact"], row["id"], row["help"], places)


def main() -> int:
    """Look at the pages that the command line names; 1 where axe-core finds something serious."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE", help="HTML files")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the pictures (default: none are taken)")
    parser.add_argument("--axe", default=os.environ.get("AXE"), metavar="FILE", help="axe.min.js (default: $AXE)")
    given = parser.parse_args()
    axe = Path(given.axe).read_text("utf-8") if given.axe else None
    if axe is None:
        print("no axe-core: pictures alone (npm install axe-core, then --axe node_modules/axe-core/axe.min.js)")
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
    violations: list[Violation] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for path in given.pages:
            violations += look(browser, path, given.output, axe)
        browser.close()
    for violation in violations:
        print(violation)
    serious = sum(violation.impact in SERIOUS for violation in violations)
    print(f"{len(given.pages)} pages, {len(violations)} violations, {serious} of them serious")
    return 1 if serious else 0


if __name__ == "__main__":
    sys.exit(main())
