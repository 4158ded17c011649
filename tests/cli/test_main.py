"""The door: overview, dispatch, and what becomes of a mistake, an interruption and a defect."""

from __future__ import annotations

import errno
import importlib
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffusion_feedback import __version__, cli
from diffusion_feedback.cli.main import COMMANDS, main
from diffusion_feedback.errors import UserError

HEAVY = ("torch", "diffusers", "transformers", "datasets", "matplotlib", "scipy", "pyarrow", "numpy")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for every command module; set its ``run``."""
    module = SimpleNamespace(asked=[])
    real = importlib.import_module

    def stand_in(name: str, package: str | None = None) -> object:
        if not name.startswith("diffusion_feedback.cli."):
            return real(name, package)
        module.asked.append(name)
        return module

    monkeypatch.setattr(importlib, "import_module", stand_in)
    return module


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_overview_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)
    assert "examples:" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_arguments_are_those_of_the_process_unless_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dfb", "--version"])
    assert main() == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_get_their_arguments(name: str, command: SimpleNamespace) -> None:
    seen: list[Sequence[str]] = []
    command.run = seen.append
    assert main([name, "--config", "a.yaml", "--help"]) == 0
    assert (command.asked, seen) == ([f"diffusion_feedback.cli.{name}"], [["--config", "a.yaml", "--help"]])


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: unknown command 'trian'\n  -> did you mean 'train'?")


def test_a_mistake_is_one_message_with_its_remedy(command: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    def run(argv: Sequence[str]) -> None:
        raise UserError("pairs.parquet, row 7: no image", "drop the row")

    command.run = run
    assert main(["train"]) == 2
    assert capsys.readouterr() == ("", "error: pairs.parquet, row 7: no image\n  -> drop the row\n")


def test_an_interruption_says_how_to_go_on(command: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    def run(argv: Sequence[str]) -> None:
        raise KeyboardInterrupt

    command.run = run
    assert main(["train"]) == 130
    assert "goes on from the last whole piece of work" in capsys.readouterr().err


def test_an_import_that_was_interrupted_is_an_interruption(
    command: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(argv: Sequence[str]) -> None:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    command.run = run
    assert main(["train"]) == 130
    assert "goes on from the last whole piece of work" in capsys.readouterr().err


def test_a_full_disk_is_no_defect(command: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    def run(argv: Sequence[str]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl")

    command.run = run
    assert main(["train"]) == 2
    assert "error: runs/a/metrics.jsonl: No space left on device\n  -> make room" in capsys.readouterr().err

    def other(argv: Sequence[str]) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", str(Path(cli.__file__).with_name("absent.css")))

    command.run = other
    with pytest.raises(FileNotFoundError):
        main(["train"])


def test_a_defect_is_not_hidden(command: SimpleNamespace) -> None:
    def run(argv: Sequence[str]) -> None:
        raise ValueError("a defect, not a mistake of the user")

    command.run = run
    with pytest.raises(ValueError, match="a defect"):
        main(["train"])


@pytest.mark.parametrize("arguments", [["--help"], ["nonsense"]])
def test_overview_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"import sys; from diffusion_feedback.cli.main import main; main({arguments}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(done.stdout.split())


def test_the_overview_comes_at_once() -> None:
    """0.3 s on an idle machine; the best of three, since others may be at work."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "diffusion_feedback", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


def test_a_reader_that_leaves_early_is_no_error() -> None:
    arguments = [sys.executable, "-m", "diffusion_feedback", "--help"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "m", "--lora", ""], "--lora: is empty"),
        (["generate", "m", "--lora="], "--lora: is empty"),
        (["generate", ""], "argument 1 of dfb generate: is empty"),
        (["score", "a", "", "--scorer", "shapes"], "argument 2 of dfb score: is empty"),
        (["score", "--scorer", "shapes", ""], "argument 3 of dfb score: is empty"),
        (["train", "--output_dir", ""], "--output_dir: is empty"),
    ],
)
def test_empty_arguments_are_told(
    arguments: list[str], words: str, command: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
    assert not command.asked


@pytest.mark.parametrize(
    "arguments", [["generate", "m", "--negative_prompt", ""], ["train", "--validation.negative_prompt", ""]]
)
def test_texts_may_be_empty(arguments: list[str], command: SimpleNamespace) -> None:
    command.run = lambda _: None
    assert main(arguments) == 0


def test_notes_are_printed_with_parameters_as_flags(
    command: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(argv: Sequence[str]) -> None:
        logging.getLogger("diffusion_feedback.workflows.x").info("note: `batch_size` is 2, `accelerate launch` is not")
        raise UserError("`tie_margin`: got 0.7", "give less")

    command.run = run
    assert main(["score"]) == 2
    out, err = capsys.readouterr()
    assert out == "note: --batch_size is 2, `accelerate launch` is not\n"
    assert err.startswith("error: --tie_margin: got 0.7\n")
    assert not logging.getLogger("diffusion_feedback").handlers
