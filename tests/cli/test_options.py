"""No option is lost: what --help of each command names is what it named before, or is renamed in CHANGELOG.

options.json is the list of 28 November 2026, before the commands' work moved into workflows. A new option is added there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from diffusion_feedback import cli
from diffusion_feedback.cli.flags import help_text
from diffusion_feedback.cli.main import COMMANDS, main

OPTIONS: dict[str, list[str]] = json.loads(Path(__file__).with_name("options.json").read_text("utf-8"))


def options_of(text: str) -> set[str]:
    """The options that a help text names, each in one spelling."""
    return {
        "--" + name[2:].replace("-", "_")
        for name in re.findall(r"(?<![\w-])--[a-zA-Z][\w.-]*", text)
        if name[-1] not in "-_"
    }


def test_every_command_shows_examples() -> None:
    """Its text in ``help/`` stands below its flags, and no text is there that nobody reads."""
    texts = {path.stem for path in Path(cli.__file__).with_name("help").iterdir()}
    assert texts == {command.replace(" ", "_") for command in OPTIONS if command != "data"} | {"scorers", "images"}
    for command in texts - {"scorers", "images"}:
        text = help_text(command.replace("_", " "))
        assert "examples:\n" in text
        assert not re.search(r"\{\w+\}", text)


def test_every_command_has_a_list() -> None:
    assert set(COMMANDS) == {command.split()[0] for command in OPTIONS}


@pytest.mark.parametrize("command", OPTIONS)
def test_options_are_those_of_before(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help", *["all"] * (command in ("train", "rounds"))])
    assert stopped.value.code in (0, None)
    named = options_of(capsys.readouterr().out)
    assert named >= set(OPTIONS[command]), f"lost: {sorted(set(OPTIONS[command]) - named)}"
    assert named <= set(OPTIONS[command]), f"new, to be added to options.json: {sorted(named - set(OPTIONS[command]))}"
