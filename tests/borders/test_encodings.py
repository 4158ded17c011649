"""Every text file is read and written as UTF-8, whatever the locale is: looked up in the source, call by call."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES_OF_CODE = ("diffusion_feedback", "benchmarks", "examples", "experiments", "tools")
SOURCES = sorted(path for place in PLACES_OF_CODE for path in (ROOT / place).rglob("*.py"))
# Where the encoding stands among the arguments without a name.
PLACES = {"read_text": 0, "write_text": 1, "open": 3}


def without_encoding(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in PLACES or any(word.arg in ("encoding", None) for word in node.keywords):
            continue
        if name == "open":
            is_method = isinstance(node.func, ast.Attribute)
            modes = [
                *node.args[0 if is_method else 1 :][:1],
                *(word.value for word in node.keywords if word.arg == "mode"),
            ]
            mode = modes[0].value if modes and isinstance(modes[0], ast.Constant) else None
            # A mode says that it is a file: images, archives and folders of ours are opened without one.
            is_text = isinstance(mode, str) and "b" not in mode and set(mode) <= set("rwax+t")
            is_builtin = not is_method and not modes
            if not (is_text or is_builtin):
                continue
        elif len(node.args) > PLACES[name]:
            continue
        found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:80]}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_is_read_or_written_in_the_locale_s_encoding(path: Path) -> None:
    assert without_encoding(path) == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("p.read_text()", 1), ("p.read_text('utf-8')", 0), ("p.read_text(encoding='utf-8')", 0), ("p.write_text(x)", 1),
        ("p.write_text(x, 'utf-8')", 0), ("p.open('w')", 1), ("p.open('wb')", 0), ("open(f)", 1), ("open(f, 'rb')", 0),
        ("p.open('a', encoding='utf-8')", 0), ("image.open()", 0), ("open(f, mode='w')", 1), ("Image.open(f)", 0),
    ],
)  # fmt: skip
def test_what_counts(code: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x"])
    path = ROOT / "tests" / "borders" / "none.py"
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: code)
    assert len(without_encoding(path)) == count
