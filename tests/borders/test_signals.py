"""Every command that takes time x SIGINT and SIGTERM at a random moment: its exit code, how to go on, and that it does.

The commands run in forks of this process, which has imported everything already, so that each cell takes its own time only.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import pytest
import shapes_images
import text_recipes
import tiny_models
import tiny_text

from diffusion_feedback.cli.main import main

FORK = multiprocessing.get_context("fork")
ROOT = Path(__file__).parents[2]
PAIRS = str(ROOT / "assets" / "pairs" / "validation-00000.parquet")
REWARD = "def length(prompts, completions):\n    return [float(len(c)) for c in completions]\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    shapes_images.write_folder(root / "set", 20, 2)
    captions = dict.fromkeys(
        json.loads(line)["prompt"] for line in (root / "set/metadata.jsonl").read_text().splitlines()
    )
    (root / "captions.txt").write_text("".join(f"{caption}\n" for caption in captions))
    tiny_models.save_sd(root / "sd")
    tiny_text.save_tiny_lm(root / "lm")
    (root / "reward.py").write_text(REWARD)
    (root / "prompts.txt").write_text("".join(f"a red circle {number}\n" for number in range(12)))
    (root / "heldout.txt").write_text("good better\non a blue\n")
    text_recipes.write_jsonl(root / "pairs.jsonl", text_recipes.pairs(600))
    short = {"training": {"max_train_steps": 12, "train_batch_size": 2}, "validation": {"num_prompts": 0}}
    text_recipes.write_recipe(root, root / "lm", "train", **short)
    text_recipes.write_recipe(
        root, root / "lm", "rounds", data={"train": str(root / "prompts.txt"), "validation": None},
        training={"max_train_steps": 2, "train_batch_size": 1}, validation={"num_prompts": 0},
        rollouts={"reward": f"function={root / 'reward.py'}:length", "max_new_tokens": 2},
        rounds={"num_rounds": 1, "num_samples": 3, "heldout_prompts": str(root / "heldout.txt")},
    )  # fmt: skip
    return root


def command(name: str, world: Path, place: Path) -> list[str]:
    prompts, out, table = str(world / "prompts.txt"), ["--output_dir", str(place / "out")], str(place / "o.parquet")
    scoring = ["--scorer", "shapes", "--batch_size", "1", "--cache_dir", str(place / "cache")]
    reward = f"function={world / 'reward.py'}:length"
    few = ["--batch_size", "1", "--num_inference_steps", "1"]
    found: dict[str, list[str]] = {
        "train": ["train", "--config", str(world / "train.yaml"), *out],
        "rounds": ["rounds", "--config", str(world / "rounds.yaml"), *out],
        "generate images": ["generate", str(world / "sd"), "--prompts", prompts, *few, *out],
        "generate texts": ["generate", str(world / "lm"), "--prompts", prompts, "--batch_size", "1", *out],
        "score": ["score", str(world / "set"), *scoring, "--output", table],
        "label": ["label", str(world / "set"), *scoring, "--output", table],
        "benchmark": [
            "benchmark", "shapes", "--prompts", str(world / "captions.txt"), "--allow_short", "--model", str(world / "sd"),
            "--num_inference_steps", "1", "--generation_batch_size", "1", *scoring, *out,
        ],
        "judge": [
            "judge", str(world / "lm"), str(world / "lm"), "--names", "a", "b", "--prompts", prompts, "--batch_size", "1",
            "--judge", reward, *out,
        ],
        "data convert": ["data", "convert", str(world / "pairs.jsonl"), str(place / "o.jsonl")],
        "data check": ["data", "check", PAIRS],
    }  # fmt: skip
    return found[name]


COMMANDS = (
    "train", "rounds", "generate images", "generate texts", "score", "label", "benchmark", "judge",
    "data convert", "data check",
)  # fmt: skip


def in_a_fork(argv: Sequence[str], said: str) -> None:
    """Run a command as the interpreter does: with its own handlers, streams and exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    try:
        code = main(argv)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        # Behind `_guarded` the command is done and gives its handlers back: such a signal is for the interpreter.
        inside = "_guarded" in [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
        code = 0 if isinstance(error, KeyboardInterrupt) and not inside else 1
        if code:
            traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def run(argv: Sequence[str], said: Path, *, kill: signal.Signals | None = None, after: float = 0.0) -> int | None:
    """The exit code of a command, which gets ``kill`` some seconds ``after`` its begin."""
    process = FORK.Process(target=in_a_fork, args=(argv, str(said)))
    process.start()
    if kill is not None:
        while process.is_alive() and not said.exists():
            time.sleep(0.001)
        time.sleep(0.03 + after)  # the handlers are in place within a few milliseconds
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, kill)
    process.join(60)
    assert not process.is_alive()
    return process.exitcode


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_ends_a_command_with_a_message_and_the_next_call_goes_on(
    name: str, kill: signal.Signals, world: Path, tmp_path: Path
) -> None:
    moments = random.Random(f"{name} {kill.name}")
    argv, said = command(name, world, tmp_path), tmp_path / "said.txt"
    code: int | None = 0
    for limit in (0.8, 0.2, 0.05, 0.0):
        code = run(argv, said, kill=kill, after=moments.uniform(0, limit))
        text = said.read_text("utf-8", errors="replace")
        assert "Traceback" not in text
        if code:
            break
        # It has come to its end before: once more, with a shorter time.
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
    assert code == 128 + kill, text
    assert re.search(
        r"goes on from the last whole piece|goes on from step|the same command begins again|to go on: ", text
    ), text
    left = ["--resume"] * (name == "train")
    already = any(tmp_path.glob("o.*"))
    assert run([*argv, *left, *["--overwrite"] * already], tmp_path / "last.txt") == 0
    assert not [path for path in tmp_path.rglob(".*") if path.suffix in (".tmp", ".lock", ".holder")]
