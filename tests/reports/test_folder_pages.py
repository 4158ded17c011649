"""What pages say of folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusion_feedback.errors import UserError
from diffusion_feedback.reports.content import Report
from diffusion_feedback.reports.pages.folder import read_environment, write_pages


def test_the_environment_is_what_a_reader_reads(tmp_path: Path) -> None:
    facts = {"torch": "2.9", "threads": 2, "written_files": ["model*.safetensors"], "code": {"loss.py": "0a1b"}}
    (tmp_path / "environment.json").write_text(json.dumps(facts))
    assert read_environment(tmp_path, "remove it") == {"torch": "2.9", "threads": "2"}
    (tmp_path / "environment.json").write_text("{")
    with pytest.raises(UserError, match=r"environment\.json") as caught:
        read_environment(tmp_path, "remove it")
    assert caught.value.remedy == "remove it"


def test_a_readme_holds_results_and_files(tmp_path: Path) -> None:
    write_pages(Report("A & B", after_name="A", before_name="B"), "judge", tmp_path, results="win rate 0.5 <1>")
    assert "<h1>A &amp; B</h1>" in (tmp_path / "report.html").read_text()
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith(
        "# A & B\n\n```\nwin rate 0.5 <1>\n```\n\n| file | what it holds |\n|---|---|\n| `report.html` | "
    )
    assert readme.endswith("| `a/, b/` | completions that A and B drew, where they were not given |\n")
