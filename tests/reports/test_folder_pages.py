"""What pages say of folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusion_feedback.errors import UserError
from diffusion_feedback.reports.pages.folder import read_environment, write_results_readme


def test_the_environment_is_what_a_reader_reads(tmp_path: Path) -> None:
    facts = {"torch": "2.9", "threads": 2, "written_files": ["model*.safetensors"], "code": {"loss.py": "0a1b"}}
    (tmp_path / "environment.json").write_text(json.dumps(facts))
    assert read_environment(tmp_path, "remove it") == {"torch": "2.9", "threads": "2"}
    (tmp_path / "environment.json").write_text("{")
    with pytest.raises(UserError, match=r"environment\.json") as caught:
        read_environment(tmp_path, "remove it")
    assert caught.value.remedy == "remove it"


def test_a_readme_holds_results_and_files(tmp_path: Path) -> None:
    write_results_readme(tmp_path, "A & B", "win rate 0.5 <1>", {"a/": "of A", "b/": "of B"})
    expected = "# A & B\n\n```\nwin rate 0.5 <1>\n```\n\n| file | what it holds |\n|---|---|\n| `a/` | of A |\n| `b/` | of B |\n"
    assert (tmp_path / "README.md").read_text() == expected
