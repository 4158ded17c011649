"""Recipes under configs/: one naming scheme, one form of header, comments at what one changes, and a dry run that works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diffusion_feedback.cli.main import main
from diffusion_feedback.config.parsing import load_recipe

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
KEYS = ["command", "hardware", "time", "expected", "source", "data", "difference"]
CHANGED = ["train", "output_dir", "max_train_steps", "train_batch_size", "learning_rate"]
# The model, what is trained or how, whether by adapters, and the hardware where that is no laptop.
NAME = re.compile(
    r"(shapes|captions|walks|sd15|sdxl|clip_h|qwen25_05b|mistral_7b|gpt2_large)"
    r"(_ai)?_(dpo|sft|kto|orpo|ppo|ppo_ptx|ilql|pickscore|scorer|reward|rounds)(_lora|_full)?(_\d+gb|_\d+gpu)?"
)
BATCHES = {"sd15_dpo_full_8gpu": 8, "sd15_dpo_full_16gpu": 16, "sdxl_dpo_lora_16gpu": 16, "clip_h_pickscore_8gpu": 8, "mistral_7b_orpo_lora_4gpu": 4}  # fmt: skip


def header(path: Path) -> dict[str, str]:
    """What the head of a recipe says, by its keys, in their order."""
    lines = [line[1:].strip() for line in path.read_text("utf-8").split("\nmodel:")[0].splitlines()]
    said: dict[str, str] = {}
    for line in lines[lines.index("") + 1 :]:
        key, colon, text = line.partition(":")
        if colon and key in KEYS:
            assert key not in said
            said[key] = text.strip()
        else:
            said[list(said)[-1]] += f" {line}"
    return said


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_written_alike(path: Path) -> None:
    assert NAME.fullmatch(path.stem)
    said, text = header(path), path.read_text("utf-8")
    assert list(said)[:5] == KEYS[:5]
    assert list(said) == [key for key in KEYS if key in said]
    assert all(said.values())
    assert f"configs/{path.name}" in said["command"]
    if "assets/" not in text and "walks" not in path.stem:
        assert said["expected"].startswith("not measured here")
        assert said["time"].startswith("not measured")
    for key in CHANGED:
        assert re.search(rf"^(  )?{key}: \S+  # ", text, re.MULTILINE), f"a comment at {key}"
    assert f"output_dir: runs/{path.stem} " in text


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_batch_is_that_of_the_header(path: Path) -> None:
    """Where a recipe says for what batch it was written, its command gives that batch."""
    training = load_recipe(path).training
    if training.global_batch_size is None:
        assert "assets/" in path.read_text("utf-8") or "walks" in path.stem
        return
    processes = re.search(r"--num_processes (\d+)", header(path)["command"])
    assert int(processes[1] if processes else 1) == BATCHES.get(path.stem, 1)
    in_a_pass = training.train_batch_size * BATCHES.get(path.stem, 1)
    assert in_a_pass * training.gradient_accumulation_steps == training.global_batch_size


STAND_INS = {"sd": ("assets/shapes-sd", "assets/pairs"), "clip": ("assets/shapes-clip", "assets/pairs"), "causal_lm": ("assets/captions-lm", "assets/captions/train.jsonl")}  # fmt: skip
OF_THE_HUB = ("sd15_dpo_lora_24gb", "sdxl_dpo_lora_24gb", "sd15_dpo_full_8gpu", "sd15_kto_lora_24gb", "sd15_sft_lora_24gb", "clip_h_pickscore_8gpu", "qwen25_05b_dpo_lora_24gb")  # fmt: skip


@pytest.mark.parametrize("name", OF_THE_HUB)
def test_dry_runs_on_embedded_stand_ins(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Model and data are the embedded ones and the batch is small; all else is the recipe's."""
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(f"configs/{name}.yaml")
    family = "sd" if recipe.model.family == "sdxl" else recipe.model.family
    model, data = STAND_INS[family]
    own = {
        "model.family": family, "pretrained_model_name_or_path": model, "model.variant": "null", "data.train": data,
        "data.split": "train", "max_train_pairs": 16, "data.cache_dir": tmp_path / "cache", "train_batch_size": 2,
        "output_dir": tmp_path / "run", "mixed_precision": "no", "model.dtype": "float32",
        "gradient_accumulation_steps": 4,
    }  # fmt: skip
    if family == "sd":
        own |= {"data.resolution": 32, "num_inference_steps": 2}
    if family == "causal_lm":
        own["text.max_length"] = 48
    if recipe.data.validation:
        own["data.validation"] = "null"
    flags = [part for key, value in own.items() for part in (f"--{key}", str(value))]
    assert main(["train", "--config", f"configs/{name}.yaml", *flags, "--dry_run"]) == 0
    said = capsys.readouterr().out
    wanted = recipe.training.global_batch_size
    assert f"warning: 8 examples per step, where the recipe was written for {wanted}" in said
    assert f"training.gradient_accumulation_steps: {(wanted or 0) // 2} restores it" in said
    for line in ("device ", "precision ", "learning rate ", "time ", "evaluations ", "memory "):
        assert re.search(rf"^{line}", said, re.MULTILINE), line
    assert "8 pairs per step = 2 per pass x 4 passes x 1 process" in re.sub("(examples|images) per", "pairs per", said)
    assert not (tmp_path / "run").exists()
