"""The flat loop of examples/ against ``dfb train`` on the recipe whose settings it repeats."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from safetensors.torch import load_file

from diffusion_feedback.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
LOOP = ROOT / "examples" / "dpo_loop.py"
WEIGHTS = "pytorch_lora_weights.safetensors"


def test_it_fits_on_a_page() -> None:
    assert len(LOOP.read_text("utf-8").splitlines()) <= 80


@pytest.mark.slow
def test_losses_and_weights_are_those_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit. Without the cache, which encodes other images together, and so may round otherwise."""
    monkeypatch.chdir(ROOT)
    losses = runpy.run_path(str(LOOP))["main"](["--max_train_steps", "3", "--output_dir", str(tmp_path / "loop")])
    recipe = ["--config", "configs/shapes_dpo_lora.yaml", "--training.max_train_steps", "3", "--data.cache", "false"]
    recipe += ["--data.cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "run")]
    assert main(["train", *recipe, "--data.max_validation_pairs", "2", "--validation.num_prompts", "0"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["loss"] for row in rows if "loss" in row] == losses
    assert len(set(losses)) == 3, "the weights move"
    loop, run = (load_file(tmp_path / name / WEIGHTS) for name in ("loop", "run"))
    assert loop.keys() == run.keys()
    assert all(loop[name].equal(run[name]) for name in loop)
