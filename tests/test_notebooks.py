"""The notebooks run from the first cell to the last, in a kernel of their own, on the embedded world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def printed(notebook: Any) -> list[str]:
    """What the cells print or show as text, by kind of output; pictures and tables are looked at by people."""
    return [
        f"{number} {output.output_type}"
        for number, cell in enumerate(notebook.cells)
        for output in cell.get("outputs", [])
        if not (output.output_type == "stream" and output.name == "stderr")
    ]


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) == 3


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("assets", "configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HOME", str(tmp_path))  # caches of their own
    kept = nbformat.read(path, 4)
    executed = nbformat.read(path, 4)
    NotebookClient(
        executed, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert printed(executed) == printed(kept), "run the notebook again and keep its outputs"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_outputs_name_no_machine(path: Path) -> None:
    """No path of the machine that ran it, no error, no warning."""
    for cell in nbformat.read(path, 4).cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            assert not any(place in text for place in ("/home/", "/root/", "/work/", "/tmp/"))
