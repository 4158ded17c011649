"""What strangers' texts and names hide (ESC, NUL, right-to-left overrides) is shown, in messages and in pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusion_feedback.cli.main import main
from diffusion_feedback.errors import UserError, visible
from diffusion_feedback.reports.content import Report
from diffusion_feedback.reports.html import render_report

HIDDEN = {
    "escape": ("\x1b[31m", r"\x1b[31m"),
    "null": ("\x00", r"\x00"),
    "backspace": ("\x08", r"\x08"),
    "return": ("\rok", r"\x0dok"),
    "delete": ("\x7f", r"\x7f"),
    "C1": ("\x9b2J", r"\x9b2J"),
    "right to left": ("\u202egnp.exe", r"\u202egnp.exe"),
    "isolate": ("\u2067x", r"\u2067x"),
    "half a character": ("\udcff", r"\udcff"),
}
PLAIN = ("日本語", "a\tb\nc", "a\r\nb", "\U0001f468\u200d\U0001f469", "café", "<b>", "שלום")


@pytest.mark.parametrize("name", HIDDEN)
def test_messages_and_pages(name: str) -> None:
    raw, shown = HIDDEN[name]
    assert visible(f"a{raw}b") == f"a{shown}b"
    error = UserError(f"file {raw}: wrong", f"use {raw}")
    assert raw not in str(error)
    assert shown in error.problem
    assert shown in error.remedy
    page = render_report(Report(f"The title {raw}"))
    assert raw not in page
    assert f"The title {shown}" in page


@pytest.mark.parametrize("text", PLAIN)
def test_everything_else_stays(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize("name", ["escape", "null", "right to left", "return"])
def test_data_check_shows_what_a_row_hides(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, _ = HIDDEN[name]
    row = {"prompt": [{"role": f"user{raw}", "content": "a"}], f"chosen{raw}": "b", "chosen": "c", "rejected": "d"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(SystemExit):
        main(["data", "check", str(tmp_path / "a.jsonl")])
    said = capsys.readouterr()
    assert raw not in said.out + said.err
