"""What stands in an output folder is never lost by a command that was not told to replace just that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import text_recipes
import tiny_text

from diffusion_feedback.cli.main import main
from diffusion_feedback.errors import UserError
from diffusion_feedback.folders import check_outside, make_folder

REWARDS = """
def length(prompts, completions):
    return [float(len(c)) for c in completions]
def letters(prompts, completions):
    return [float(len(set(c))) for c in completions]
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Two models a and b in one folder, prompts and judges."""
    for seed, name in enumerate("ab"):
        tiny_text.save_tiny_lm(tmp_path / "models" / name, seed=seed)
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "prompts.txt").write_text("a red circle\nthe cat sat\nhello there\n")
    (tmp_path / "heldout.txt").write_text("good better\non a blue\n")
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def judge(world: Path, out: Path, *more: str, function: str = "length") -> int:
    models = [str(world / "models" / name) for name in "ab"]
    argv = ["judge", *models, "--prompts", str(world / "prompts.txt"), "--max_new_tokens", "3"]
    return main([*argv, "--judge", f"function={world / 'rewards.py'}:{function}", "--output_dir", str(out), *more])


def recipe(world: Path, name: str, **changes: Any) -> Path:
    return text_recipes.write_recipe(world, world / "models" / "a", name, training={"max_train_steps": 1}, **changes)


def rounds(world: Path, name: str, **changes: Any) -> Path:
    rollouts = {"reward": f"function={world / 'rewards.py'}:letters", "max_new_tokens": 3}
    standard: dict[str, Any] = {
        "data": {"train": str(world / "prompts.txt"), "validation": None, "cache_dir": str(world / "cache")},
        "training": {"max_train_steps": 1, "train_batch_size": 1},
        "validation": {"num_prompts": 0},
        "rollouts": rollouts,
        "rounds": {"num_rounds": 1, "num_samples": 3, "heldout_prompts": str(world / "heldout.txt")},
    }
    return text_recipes.write_recipe(world, world / "models" / "a", name, **{**standard, **changes})


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_judging_into_the_folder_of_the_models(world: Path, overwrite: list[str], capsys: Any) -> None:
    before = content(world / "models")
    assert judge(world, world / "models", *overwrite) == 2
    assert "A: " in (said := capsys.readouterr().err)
    assert "lies in" in said
    assert content(world / "models") == before


def test_judging_beside_files_of_others(world: Path, capsys: Any) -> None:
    out = world / "out"
    (out / "a").mkdir(parents=True)
    (out / "a" / "important.txt").write_text("mine")
    assert judge(world, out, "--overwrite") == 2
    assert "holds important.txt" in capsys.readouterr().err
    assert content(out) == {"a/important.txt": b"mine"}


def test_another_comparison_is_kept(world: Path, capsys: Any) -> None:
    out = world / "out"
    assert judge(world, out) == 0
    before = content(out)
    assert judge(world, out, "--batch_size", "2") == 0
    assert content(out)["judgements.jsonl"] == before["judgements.jsonl"]
    before = content(out)
    assert judge(world, out, function="letters") == 2
    assert "holds a comparison with judge" in capsys.readouterr().err
    assert judge(world, out, "--temperature", "0") == 2
    assert "temperature 1.0, not 0.0" in capsys.readouterr().err
    assert content(out) == before
    assert judge(world, out, "--overwrite", function="letters") == 0
    settings = json.loads((out / "results.json").read_text())["settings"]
    assert settings["judge"][0].endswith("letters")
    assert settings["tie_margin"] == 0.0, "a setting of 0 is told too"


def test_verdicts_are_there_before_anything_else_is_measured(world: Path, capsys: Any) -> None:
    (world / "one.jsonl").write_text('{"text": "a red circle"}\n')
    assert judge(world, world / "out", "--texts", str(world / "one.jsonl")) == 2
    assert "one.jsonl holds one text" in capsys.readouterr().err
    assert not (world / "out").exists(), "told before anything was drawn"
    # The reference turns out to be none when all has been judged.
    assert judge(world, world / "out", "--reference", str(world / "nowhere")) == 2
    assert len((world / "out" / "judgements.jsonl").read_text().splitlines()) == 3


def test_settings_of_drawing_are_not_told_of_what_was_read(world: Path) -> None:
    assert judge(world, world / "out") == 0
    sides = [str(world / "out" / name / "completions.jsonl") for name in "ab"]
    argv = ["judge", *sides, "--judge", f"function={world / 'rewards.py'}:letters", "--names", "one", "two"]
    assert main([*argv, "--output_dir", str(world / "again")]) == 0
    settings = json.loads((world / "again" / "results.json").read_text())["settings"]
    assert not settings.keys() & {"temperature", "max_new_tokens", "num_samples", "seed", "prompts"}


def test_one_prompt_has_no_interval(world: Path, capsys: Any) -> None:
    (world / "prompts.txt").write_text("a red circle\n")
    assert judge(world, world / "out") == 0
    assert "(one prompt gives no interval)" in capsys.readouterr().out
    text = (world / "out" / "results.json").read_text()
    assert "Infinity" not in text
    assert json.loads(text)["judges"][0]["means"][0]["low"] is None


def test_rounds_and_runs_keep_off_each_other(world: Path, capsys: Any) -> None:
    run, other = recipe(world, "run"), rounds(world, "other")
    assert main(["train", "--config", str(run)]) == 0
    assert main(["rounds", "--config", str(other)]) == 0
    before, after = content(world / "run"), content(world / "other")
    capsys.readouterr()
    for more in ([], ["--overwrite"]):
        assert main(["rounds", "--config", str(other), "--output_dir", str(world / "run"), *more]) == 2
        assert "holds a training run" in capsys.readouterr().err
        assert main(["train", "--config", str(run), "--output_dir", str(world / "other"), *more]) == 2
        assert "holds rounds" in capsys.readouterr().err
    assert content(world / "run") == before
    assert content(world / "other") == after


def test_a_model_that_lies_where_it_would_be_replaced(world: Path, capsys: Any) -> None:
    first = recipe(world, "first")
    assert main(["train", "--config", str(first)]) == 0
    before = content(world / "first")
    capsys.readouterr()
    for key in ("pretrained_model_name_or_path", "reference_model_name_or_path"):
        flags = [f"--model.{key}", str(world / "first"), "--overwrite"]
        assert main(["train", "--config", str(first), *flags]) == 2
        assert f"model.{key}: " in capsys.readouterr().err
    assert content(world / "first") == before
    other = rounds(world, "other")
    assert main(["rounds", "--config", str(other)]) == 0
    before = content(world / "other")
    (own,) = (world / "other").glob("round-1/*/config.json")
    flags = ["--model.pretrained_model_name_or_path", str(own.parent), "--overwrite"]
    capsys.readouterr()
    assert main(["rounds", "--config", str(other), *flags]) == 2
    assert "which this command writes" in capsys.readouterr().err
    assert content(world / "other") == before


def test_folders_that_cannot_be_made(world: Path, capsys: Any) -> None:
    file = world / "a_file"
    file.write_text("mine")
    for out in (file, file / "below"):
        argv = ["generate", str(world / "models" / "a"), "--prompts", str(world / "prompts.txt")]
        argv += ["--max_new_tokens", "2"]
        assert main([*argv, "--output_dir", str(out)]) == 2
        assert f"{out}: cannot be written" in capsys.readouterr().err
        assert judge(world, out) == 2
        assert f"{out}: cannot be written" in capsys.readouterr().err
        assert main(["rounds", "--config", str(rounds(world, "r")), "--output_dir", str(out)]) == 2
        assert f"{out}: cannot be written" in capsys.readouterr().err


def test_inputs_in_a_folder(tmp_path: Path) -> None:
    make_folder(tmp_path / "out" / "deep")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for inside in (tmp_path / "out", tmp_path / "out" / "deep", tmp_path / "link"):
        with pytest.raises(UserError, match="data: .* which this command writes"):
            check_outside(tmp_path / "out", {"data": str(inside)})
    check_outside(tmp_path / "out", {"data": None, "model": "owner/name", "other": str(tmp_path), "gone": "out/deep/x"})
