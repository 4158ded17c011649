"""The code on the card of every kind of image run runs as it stands, wherever it is pasted, and draws the run's pictures."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from card_snippets import run_snippet, snippets
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from run_results import train
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
MakeRecipe = Callable[..., Path]
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"name": "dpo", "beta": 500},
    "sft": {"name": "sft"},
    "kto": {"name": "kto", "beta": 500},
}
LORA = {"tuning": "lora", "lora_rank": 2, "lora_alpha": 8, "lora_targets": ["attention"]}
TRAINING = {"max_train_steps": 2, "train_batch_size": 4, "learning_rate": 0.01}
HARD = 'a "cat" of \\ many\'s ```ways```'  # a prompt that is code, and Markdown


def check_card(run: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card's pipeline drew a picture, and its network is the tuned one: the one put together by hand."""
    found = run_snippet(run / "README.md", tmp_path, monkeypatch)
    assert found["image"].size == (16, 16)
    is_full = (run / "model_index.json").exists()
    plain = DiffusionPipeline.from_pretrained(run if is_full else base, dtype=torch.float32)
    if not is_full:
        plain.load_lora_weights(run)
    tuned, expected = found["pipeline"].unet.state_dict(), plain.unet.state_dict()
    assert tuned.keys() == expected.keys()
    assert all(torch.equal(tuned[key], expected[key]) for key in expected)
    before = DiffusionPipeline.from_pretrained(base, dtype=torch.float32).unet.state_dict()
    assert any(key not in before or not torch.equal(tuned[key], before[key]) for key in tuned)
    assert eval(re.findall(r"pipeline\((.*), generator", snippets(run / "README.md")[0])[0]) == HARD


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_code_of_a_card_runs_verbatim(
    objective: str,
    tuning: str,
    make_recipe: MakeRecipe,
    tiny_pipelines: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = LORA if tuning == "lora" else {"tuning": "full"}
    validation = {"prompts": [HARD], "num_inference_steps": 1}
    recipe = make_recipe(model=model, objective=OBJECTIVES[objective], training=TRAINING, validation=validation)
    check_card(train(recipe), tiny_pipelines["sd"], tmp_path, monkeypatch)


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("form", ["mixed precisions", "fp16 variant alone"])
def test_the_code_knows_how_its_base_was_loaded(
    form: str,
    tuning: str,
    make_recipe: MakeRecipe,
    tiny_pipelines: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A base whose text encoder alone is in half precision fails where no dtype is said; a variant must be named."""
    base = Path(shutil.copytree(tiny_pipelines["sd"], tmp_path / "base"))
    for part in ("text_encoder",) if form == "mixed precisions" else ("text_encoder", "unet", "vae"):
        file = next((base / part).glob("*.safetensors"))
        half = {key: value.half() if value.is_floating_point() else value for key, value in load_file(file).items()}
        save_file(half, file, {"format": "pt"})
        if form != "mixed precisions":
            file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    model: dict[str, Any] = {
        **(LORA if tuning == "lora" else {"tuning": "full"}),
        "pretrained_model_name_or_path": str(base),
        "variant": None if form == "mixed precisions" else "fp16",
    }
    run = train(make_recipe(model=model, training=TRAINING))
    (tmp_path / "elsewhere").mkdir()
    found = run_snippet(run / "README.md", tmp_path / "elsewhere", monkeypatch)
    assert found["image"].size == (16, 16)
    assert found["pipeline"].text_encoder.dtype == torch.float32


def width(images: list[Image.Image], prompts: list[str]) -> list[int]:
    """A reward of the reader's own."""
    return [image.width for image in images]


@pytest.mark.slow
def test_the_code_of_the_readme_runs(make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the embedded model, from the project's own folder, with a LoRA of the demo's kind, and shorter."""
    place = tmp_path / "project"
    (place / "runs" / "demo").mkdir(parents=True)
    (place / "assets").symlink_to(ROOT / "assets")
    model = {**LORA, "pretrained_model_name_or_path": str(ROOT / "assets" / "shapes-sd")}
    training = {"max_train_steps": 1, "train_batch_size": 1}
    data = {"max_train_pairs": 2, "validation": None, "resolution": 16}
    run = train(make_recipe(model=model, training=training, data=data, validation={"num_prompts": 0}))
    shutil.copytree(run, place / "runs" / "demo" / "dpo")
    (place / "configs").symlink_to(ROOT / "configs")
    page = tmp_path / "README.md"
    short = {"training.max_train_steps": 1, "training.train_batch_size": 1, "validation.num_prompts": 0}
    short |= {
        "output_dir": str(tmp_path / "mine"),
        "data.max_validation_pairs": 2,
        "data.cache_dir": str(tmp_path / "kept"),
    }
    text = (ROOT / "README.md").read_text("utf-8")
    assert text.count('{"output_dir": "runs/mine"}') == 1
    page.write_text(
        text.replace('{"output_dir": "runs/mine"}', repr(short)).replace('"pickscore",', '"shapes",'), "utf-8"
    )
    names = {
        "pipeline": StableDiffusionPipeline.from_pretrained(ROOT / "assets" / "shapes-sd"),
        "dataset": datasets.Dataset.from_parquet(str(ROOT / "assets/pairs/train-00000.parquet")).select(range(4)),
        "prompts": ["a small red circle on a blue background"],
        "my_reward": width,
    }
    found = run_snippet(page, place, monkeypatch, **names)
    assert len(found["scores"]) == 4  # two seeds, two scorers
    assert found["pipeline"]("a red circle", num_inference_steps=1).images
