"""The Python of a page, run verbatim as a reader would who pastes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def snippets(page: Path) -> list[str]:
    """The Python blocks of a Markdown page, in order."""
    return _BLOCK.findall(page.read_text("utf-8"))


def run_snippet(page: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, **names: Any) -> dict[str, Any]:
    """Run all Python blocks of ``page`` one after the other in the folder ``elsewhere``; what they leave behind.

    ``names`` stand for what the page leaves to its reader.
    """
    found = snippets(page)
    assert found, f"{page} has no Python"
    monkeypatch.chdir(elsewhere)
    namespace: dict[str, Any] = {"__name__": "card", **names}
    for code in found:
        exec(compile(code, str(page), "exec"), namespace)
    return namespace
