"""Runs the tests in the environment that calls it and writes what it held: date, versions, passed and failed.

    make newest          # installs what pip gives today, without the lock, and calls this

The table is a record, not a check that must pass: what fails here is what the next release of a dependency will break
for users. The exit code is that of the tests.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path

PROJECT = "diffusion-feedback"
HEAD = """\
# What today's releases do

The project's own environment is locked (`requirements/`). This page is what the newest releases gave that `pip install`
takes without the lock, on the day it says: written by `make newest`.
"""


def declared() -> dict[str, str]:
    """The version of each package that pyproject.toml names, those of the dev extra included, where it is installed."""
    names = {re.split(r"[\[<>=~!; ]", line)[0] for line in metadata.requires(PROJECT) or []}
    versions = {}
    for name in sorted(names, key=str.lower):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def run_tests(workers: int, arguments: list[str]) -> tuple[int, dict[str, int], list[str]]:
    """Exit code of pytest, its counts, and the names of what failed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tests.xml"
        call = [sys.executable, "-m", "pytest", "-q", "-n", str(workers), "--dist", "loadfile", f"--junitxml={file}"]
        code = subprocess.run([*call, *arguments], check=False).returncode
        cases = ElementTree.parse(file).getroot().findall(".//testcase")
    kinds = {kind: [case for case in cases if case.find(kind) is not None] for kind in ("failure", "error", "skipped")}
    failed = [f"{case.get('classname')}.{case.get('name')}" for case in [*kinds["failure"], *kinds["error"]]]
    passed = len(cases) - sum(map(len, kinds.values()))
    return code, {"passed": passed, "failed": len(failed), "skipped": len(kinds["skipped"])}, sorted(failed)


def page(counts: dict[str, int], failed: list[str], minutes: float) -> str:
    """The record as Markdown."""
    day = datetime.date.today().isoformat()
    outcome = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    lines = [HEAD, f"## {day}: {outcome}\n"]
    lines.append(
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {minutes:.0f} minutes.\n"
    )
    lines += ["| package | version |", "|---|---|"]
    lines += [f"| {name} | {version} |" for name, version in declared().items()]
    if failed:
        lines += ["\nFailed:\n", *(f"- `{name}`" for name in failed)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run, write, and return the tests' exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes that run tests")
    parser.add_argument("--output", type=Path, default=Path("docs/newest.md"), help="the page to write")
    parser.add_argument("tests", nargs="*", help="tests to run; all of them unless given")
    given = parser.parse_args()
    start = datetime.datetime.now()
    code, counts, failed = run_tests(given.workers, given.tests)
    minutes = (datetime.datetime.now() - start).total_seconds() / 60
    given.output.write_text(page(counts, failed, minutes), encoding="utf-8")
    print(f"{given.output}: {counts}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
