"""Every command x every kind of mistake: one line that names it, one with what to do, and exit code 2."""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffusion_feedback.cli.main import COMMANDS, main
from diffusion_feedback.cli.settings import parsers_of

RECIPES = ("train", "rounds")
WITHOUT = {name: importlib.import_module(f"diffusion_feedback.cli.{name}") for name in COMMANDS if name not in RECIPES}
PARSERS = {" ".join(p.prog.split()[1:]): p for module in WITHOUT.values() for p in parsers_of(module.build_parser())}
NEEDED = ["--config", "configs/shapes_dpo_lora.yaml"]


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[str, str]:
    """(problem, remedy) of a command line that is wrong."""
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 2, captured.err
    assert not re.search(r"usage:|class '|typing\.|Literal|Parser key|Expected|invalid", captured.err)
    problem, remedy = re.fullmatch(r"error: (.+)", lines[0]), re.fullmatch(r"  -> (.+)", lines[1])
    assert problem
    assert remedy
    return problem[1], remedy[1]


def flag_with(parser: argparse.ArgumentParser, **wanted: object) -> str | None:
    """The first flag of ``parser`` with these arguments; for choices any."""
    for action in parser._actions:
        values: dict[str, Any] = {"type": action.type, "choices": bool(action.choices)}
        if action.option_strings and all(values[name] == value for name, value in wanted.items()):
            return action.option_strings[0]
    return None


@pytest.mark.parametrize("command", PARSERS)
def test_mistakes_in_commands_without_a_recipe(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser, words = PARSERS[command], command.split()
    needs = [action for action in parser._actions if action.required and action.dest != "command"]
    if needs:
        problem, remedy = said(capsys, *words)
        assert problem.startswith("missing: ")
        assert all(
            str(action.metavar or action.option_strings[0]) in problem for action in needs if not action.option_strings
        )
        assert "--help" in remedy
    dummies = ["x" for action in needs if not action.option_strings]
    if not words[1:] and f"{command} check" in PARSERS:
        return  # its second words have the flags
    flags = [action.option_strings[0] for action in parser._actions if action.option_strings and action.dest != "help"]
    flag = flags[0]
    assert said(capsys, *words, *dummies, f"{flag}s") == (
        f"unknown option {flag}s",
        f"did you mean {flag}? {parser.prog} --help shows all options with examples",
    )
    problem, remedy = said(capsys, *words, *dummies, "--zzzzz", "1")
    assert (problem, remedy) == ("unknown option --zzzzz", f"{parser.prog} --help shows all options with examples")
    for kind, name in ((int, "a whole number"), (float, "a number")):
        if number := flag_with(parser, type=kind):
            assert said(capsys, *words, *dummies, number, "abc") == (f"{number}: got 'abc'", f"allowed: {name}")
            assert said(capsys, *words, *dummies, number) == (f"{number}: has no value", f"give {name}")
    if choice := flag_with(parser, choices=True):
        problem, remedy = said(capsys, *words, *dummies, choice, "zzzzz")
        assert problem == f"{choice}: got 'zzzzz'"
        assert remedy.startswith("allowed: ")
        assert said(capsys, *words, *dummies, choice) == (f"{choice}: has no value", remedy.replace("allowed:", "give"))


MISTAKES = {
    "": ("missing: model.pretrained_model_name_or_path, data.train, output_dir", "name a recipe with --config"),
    "--lerning_rate 1": ("unknown option --lerning_rate", "did you mean --training.learning_rate? "),
    "--zzzzz 1": ("unknown option --zzzzz", "--help all lists every key"),
    "--training.lerning_rate 1": ("unknown option --training.lerning_rate", "did you mean --training.learning_rate? "),
    "--batch_size 3": ("unknown option --batch_size", "did you mean --rollouts.batch_size or --rounds.batch_size?"),
    "--learning_rate abc": ("--training.learning_rate: got 'abc'", "allowed: a number"),
    "--training.learning_rate abc": ("--training.learning_rate: got 'abc'", "allowed: a number"),
    "--max_train_steps 1.5": ("--training.max_train_steps: got 1.5", "allowed: a whole number"),
    "--model.tuning ful": ("--model.tuning: got 'ful'", "did you mean full? allowed: lora or full"),
    "--training.seed -1": ("--training.seed: got -1", "allowed: 0 or more, below 2^63"),
    "--max_train_steps": ("--training.max_train_steps: has no value", "give a whole number"),
    "--model.tuning": ("--model.tuning: has no value", "give lora or full"),
}  # fmt: skip


@pytest.mark.parametrize("command", RECIPES)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_commands_with_a_recipe(command: str, mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    problem, remedy = said(capsys, command, *(NEEDED if mistake else []), *mistake.split())
    assert problem == MISTAKES[mistake][0]
    assert MISTAKES[mistake][1] in remedy


@pytest.mark.parametrize("command", RECIPES)
def test_the_short_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On one screen, with nothing of the parser's own; every key it names is one, and every section can be shown."""
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 40
    assert [line for line in text.splitlines() if len(line) > 110] == [], "shorten the first sentence of its docstring"
    for section in ("model", "training", "all"):
        with pytest.raises(SystemExit):
            main([command, "--help", section])
        text += capsys.readouterr().out
    assert not re.search(r"Literal|\(type:|default: |CONFIG|class '|Annotated|None", text)


def test_keys_without_their_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *NEEDED, "--learning-rate=3e-4", "--lora_targets", "attention", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "learning_rate: 0.0003" in printed
    assert "lora_targets:\n  - attention\n  lora_modules" in printed


EARLY = {
    "generate m --prompts {prompts} --output_dir {out} --num_inference_steps 0": "--num_inference_steps: got 0",
    "generate m --prompts {prompts} --output_dir {out} --seeds 1 1": "--seeds: got [1, 1]",
    "generate m --prompts {out}/none.txt --output_dir {out}": "no such file",
    "generate m --prompts {prompts} --output_dir {out} --family sdd": "unknown family 'sdd'",
    "benchmark hpsv22 --output_dir {out} --images x --scorer shapes": "unknown benchmark 'hpsv22'",
    "label x --output {out}/a.parquet --scorer shapes --min_probability 3": "--min_probability: got 3.0",
    "judge a b --output_dir {out} --temperature -1": "--temperature: got -1.0",
    "train --config configs/shapes_dpo_lora.yaml --model.tuning qlora": "--model.tuning: got 'qlora'",
    "train --config configs/shapes_dpo_lora.yaml --objective.name dpoo": "unknown objective 'dpoo'",
}


def test_what_needs_no_model_is_said_before_torch_is_loaded(tmp_path: Path) -> None:
    """All in one fresh process, which has loaded nothing heavy after them."""
    lines = [line.format(prompts="assets/prompts/heldout.txt", out=tmp_path) for line in EARLY]
    program = (
        "import sys; from diffusion_feedback.cli.main import main\n"
        f"codes = [main(line.split()) for line in {lines!r}]\n"
        "print(codes, [name for name in ('torch', 'diffusers', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{[2] * len(EARLY)} []"
    assert all(problem in done.stderr for problem in EARLY.values())
