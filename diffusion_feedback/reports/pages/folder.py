"""What pages say of folders: README.md of what a command leaves behind, and the environment of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...documents import read_object
from ...records import write_text
from ..rendering import load_template


def write_readme(kind: str, folder: Path, **values: object) -> None:
    """Write README.md of a folder of this ``kind``, whose template shows ``values``."""
    page = load_template(f"readme/{kind}.md.j2").render(values)
    write_text(folder / "README.md", page)


def write_results_readme(folder: Path, title: str, results: str, files: Mapping[str, str]) -> None:
    """Write README.md with ``results`` as they were printed, and a table of ``files``: names to what they hold."""
    write_readme("results", folder, title=title, results=results, files=files)


def read_environment(run: Path, remedy: str) -> dict[str, str]:
    """Versions and hardware of the run in the folder ``run``; lists and tables, which are for programs, are left out.

    Raises UserError, with ``remedy``, where they cannot be read.
    """
    facts = read_object(run / "environment.json", remedy)
    return {name: str(value) for name, value in facts.items() if not isinstance(value, list | dict)}
