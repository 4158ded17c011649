"""Every input of every command x every path that cannot be one: told by its name with a remedy, and nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import shapes_images
import text_recipes
import tiny_models
import tiny_text

from diffusion_feedback.cli.main import main

# Each path that is no input, and what the message must hold of it.
PATHS: Mapping[str, tuple[str, str]] = {
    "under a file": ("prompts.txt/x/y", "prompts.txt/x/y"),
    "too long": ("x" * 300, "x" * 300),
    "too deep": ("/".join(["y" * 200] * 30), "y" * 200),
    "NUL": ("a\0b", "NUL"),
    "nobody's home": ("~nobody_at_all/f", "~nobody_at_all"),
    "missing": ("./nothing/here/at_all", "nothing/here/at_all"),
    "empty name": ("", ""),
    "empty folder": ("empty", "empty"),
    "empty file": ("nothing.txt", "nothing.txt"),
    "loop": ("./loop/x", "loop"),
}

REWARD = "function=reward.py:length"
DRAWN = ["--num_inference_steps", "1"]
WRITTEN = ["--max_new_tokens", "2"]
JUDGED = ["judge", "lm", "lm", "--names", "a", "b", *WRITTEN, "--output_dir", "OUT/x"]
# Each input of a command: its arguments, with PATH in its place.
INPUTS: Mapping[str, list[str]] = {
    "train: recipe": ["train", "--config", "PATH"],
    "train: model": ["train", "--config", "train.yaml", "--model.pretrained_model_name_or_path", "PATH"],
    "train: data": ["train", "--config", "train.yaml", "--data.train", "PATH"],
    "train: validation": ["train", "--config", "train.yaml", "--data.validation", "PATH"],
    "train: template": ["train", "--config", "train.yaml", "--text.chat_template", "PATH"],
    "rounds: recipe": ["rounds", "--config", "PATH"],
    "rounds: data": ["rounds", "--config", "rounds.yaml", "--data.train", "PATH"],
    "rounds: held-out prompts": ["rounds", "--config", "rounds.yaml", "--rounds.heldout_prompts", "PATH"],
    "generate: model": ["generate", "PATH", "--prompts", "prompts.txt", "--output_dir", "OUT/x"],
    "generate: prompts of images": ["generate", "sd", "--prompts", "PATH", *DRAWN, "--output_dir", "OUT/x"],
    "generate: prompts of texts": ["generate", "lm", "--prompts", "PATH", *WRITTEN, "--output_dir", "OUT/x"],
    "generate: LoRA": ["generate", "sd", "--lora", "PATH", "--prompts", "prompts.txt", *DRAWN, "--output_dir", "OUT/x"],
    "generate: template": [
        "generate", "lm", "--prompts", "prompts.txt", "--chat_template", "PATH", *WRITTEN, "--output_dir", "OUT/x",
    ],
    "score: images": ["score", "PATH", "--scorer", "shapes", "--output", "OUT/x.parquet"],
    "score: prompts": ["score", "set", "--prompts", "PATH", "--scorer", "shapes", "--output", "OUT/x.parquet"],
    "score: scorer": ["score", "set", "--scorer", "pickscore=PATH", "--output", "OUT/x.parquet"],
    "label: images": ["label", "PATH", "--scorer", "shapes", "--output", "OUT/x.parquet"],
    "label: scores": ["label", "set", "--scores", "PATH", "--output", "OUT/x.parquet"],
    "calibrate: pairs": ["calibrate", "PATH", "--scorer", "shapes", "--output_dir", "OUT/x"],
    "benchmark: images": [
        "benchmark", "shapes", "--prompts", "prompts.txt", "--allow_short", "--images", "PATH", "--output_dir", "OUT/x",
    ],
    "benchmark: model": [
        "benchmark", "shapes", "--prompts", "prompts.txt", "--allow_short", "--model", "PATH", "--output_dir", "OUT/x",
    ],
    "benchmark: prompts": ["benchmark", "shapes", "--prompts", "PATH", "--model", "sd", "--output_dir", "OUT/x"],
    "judge: model": [
        "judge", "PATH", "lm", "--names", "a", "b", "--prompts", "prompts.txt", "--judge", REWARD, "--output_dir", "OUT/x",
    ],
    "judge: prompts": [*JUDGED, "--prompts", "PATH", "--judge", REWARD],
    "judge: texts": [*JUDGED, "--prompts", "prompts.txt", "--texts", "PATH", "--judge", REWARD],
    "judge: language model": [*JUDGED, "--prompts", "prompts.txt", "--judge", "llm=PATH"],
    "judge: reward model": [*JUDGED, "--prompts", "prompts.txt", "--judge", "reward_model=PATH"],
    "judge: classifier": [*JUDGED, "--prompts", "prompts.txt", "--judge", "classifier=PATH,label=good"],
    "judge: function": [*JUDGED, "--prompts", "prompts.txt", "--judge", "function=PATH:length"],
    "report": ["report", "PATH", "--output", "OUT/x.html"],
    "data check": ["data", "check", "PATH"],
    "data check: tokenizer": ["data", "check", "pairs.jsonl", "--tokenizer", "PATH"],
    "data check: template": ["data", "check", "pairs.jsonl", "--tokenizer", "lm", "--chat_template", "PATH"],
    "data convert": ["data", "convert", "PATH", "OUT/x.jsonl"],
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good inputs of all commands. Read only."""
    root = tmp_path_factory.mktemp("world")
    shapes_images.write_folder(root / "set", 2, 1)
    tiny_models.save_sd(root / "sd")
    tiny_text.save_tiny_lm(root / "lm")
    (root / "reward.py").write_text(
        "def length(prompts, completions):\n    return [float(len(c)) for c in completions]\n"
    )
    (root / "prompts.txt").write_text("a red circle\nthe cat sat\n")
    text_recipes.write_jsonl(root / "pairs.jsonl", text_recipes.pairs(4))
    short = {"training": {"max_train_steps": 1}, "validation": {"num_prompts": 0}}
    text_recipes.write_recipe(root, root / "lm", "train", **short)
    text_recipes.write_recipe(
        root, root / "lm", "rounds", data={"train": str(root / "prompts.txt"), "validation": None},
        rollouts={"reward": f"function={root / 'reward.py'}:length", "max_new_tokens": 2}, **short,
        rounds={"num_rounds": 1, "num_samples": 3, "heldout_prompts": str(root / "prompts.txt")},
    )  # fmt: skip
    (root / "empty").mkdir()
    (root / "nothing.txt").write_text("")
    (root / "loop").symlink_to("loop")
    return root


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", INPUTS)
def test_paths_that_no_input_can_have(
    name: str,
    path: str,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = set(os.listdir(world))
    given, told = PATHS[path]
    arguments = [argument.replace("PATH", given).replace("OUT", str(tmp_path)) for argument in INPUTS[name]]
    if arguments[0] in ("train", "rounds"):
        arguments += ["--output_dir", str(tmp_path / "x")]
    try:
        code = main(arguments)
    except SystemExit as error:  # of a check that has said everything
        code = int(error.code or 0)
    said = capsys.readouterr()
    assert code == 2, said
    assert told in said.err or (path == "NUL" and repr(given)[1:-1] in said.err)
    assert "\n  -> " in said.err
    assert set(os.listdir(world)) == before
    assert not [each for each in tmp_path.rglob("*") if each.is_file()]


# How the shell redirects, and what must be told.
STREAMS: Mapping[str, tuple[str, str]] = {
    "closed": (">&-", "error: standard output is closed\n  -> redirect it"),
    "full": (">/dev/full", "standard output: No space left on device\n  -> make room"),
    "all closed": (">&- 2>&- <&-", ""),
}


@pytest.mark.parametrize("arguments", ["--help", "--version", "data check --help", "data check pairs.jsonl"])
@pytest.mark.parametrize("stream", STREAMS)
def test_a_standard_output_that_takes_nothing(stream: str, arguments: str, world: Path) -> None:
    redirected, told = STREAMS[stream]
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2]))
    command = f'"{sys.executable}" -m diffusion_feedback {arguments} {redirected}'
    done = subprocess.run(
        ["sh", "-c", command], cwd=world, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
