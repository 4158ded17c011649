"""Pages and folders: report.html and README.md of what a command leaves behind, and the environment of a run."""

from __future__ import annotations

from pathlib import Path

from ...documents import read_object
from ...records import write_text
from ..content import Report
from ..html import write_report
from ..rendering import load_template


def write_pages(report: Report, kind: str, folder: Path, **values: object) -> None:
    """Write report.html into ``folder``, and README.md by the template of this ``kind``, which shows ``values`` too."""
    write_report(report, folder / "report.html")
    write_text(folder / "README.md", load_template(f"readme/{kind}.md.j2").render(values, report=report))


def read_environment(run: Path, remedy: str) -> dict[str, str]:
    """Versions and hardware of the run in the folder ``run``; lists and tables, which are for programs, are left out.

    Raises UserError, with ``remedy``, where they cannot be read.
    """
    facts = read_object(run / "environment.json", remedy)
    return {name: str(value) for name, value in facts.items() if not isinstance(value, list | dict)}
