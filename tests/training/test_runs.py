"""Whole runs through the command line on tiny real models: geometry, repetition, resuming, families, objectives."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killing
import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image
from run_results import assert_close, policy, policy_at, rows, train
from safetensors.torch import load_file
from torch import Tensor

from diffusion_feedback.cli.main import main

MakeRecipe = Callable[..., Path]
LORA = {"tuning": "lora", "lora_rank": 2, "lora_targets": ["attention", "feed_forward", "convolutions"]}
TUNINGS: dict[str, dict[str, Any]] = {"lora": LORA, "full": {"tuning": "full"}}


def result(folder: Path) -> dict[str, Tensor]:
    """All weights that a run gives out and keeps, by file and name."""
    return {
        f"{file.relative_to(folder)}:{name}": tensor
        for file in folder.rglob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize("tuning", list(TUNINGS))
def test_a_run_explains_itself(make_recipe: MakeRecipe, tuning: str, tiny_pipelines: dict[str, Path]) -> None:
    folder = train(make_recipe(model=TUNINGS[tuning], validation={"steps": 3}))
    for name in ("recipe.yaml", "environment.json", "metrics.jsonl", "README.md", "samples/step-000003.png"):
        assert (folder / name).is_file(), name
    losses = rows(folder)
    assert [row["step"] for row in losses] == [1, 2, 3, 4, 5, 6]
    assert losses[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[0]["rewards/accuracies"] == 0.5
    looks = rows(folder, "validation/accuracy")
    assert [row["step"] for row in looks] == [3, 6]
    for row in looks:
        assert row["validation/accuracy_low"] < row["validation/accuracy"] < row["validation/accuracy_high"]
    assert len(list((folder / "checkpoints").iterdir())) == 2
    if tuning == "lora":
        pipeline = DiffusionPipeline.from_pretrained(tiny_pipelines["sd"])
        pipeline.load_lora_weights(folder)
    else:
        pipeline = DiffusionPipeline.from_pretrained(folder)
    assert pipeline("a cat", num_inference_steps=1).images


def test_training_prefers_the_chosen_images(make_recipe: MakeRecipe) -> None:
    """Bright images are chosen everywhere: the held-out implicit accuracy must leave one half behind."""
    recipe = make_recipe(model=TUNINGS["full"], training={"max_train_steps": 60, "checkpointing_steps": 60})
    look = rows(train(recipe), "validation/accuracy")[-1]
    assert look["validation/accuracy_low"] > 0.5
    assert look["validation/error/rejected_change"] > look["validation/error/chosen_change"]


@pytest.mark.parametrize("tuning", list(TUNINGS))
def test_batch_geometry_does_not_matter(make_recipe: MakeRecipe, tuning: str) -> None:
    """1 x 8 accumulated equals 8 x 1; plain gradient descent in effect, as AdamW's first steps only see signs."""
    common = {"max_train_steps": 3, "learning_rate": 1e-4}
    optimizer = {"name": "adamw", "epsilon": 1.0}
    wide = {**common, "train_batch_size": 8}
    long = {**common, "train_batch_size": 1, "gradient_accumulation_steps": 8}
    first = train(make_recipe("wide", model=TUNINGS[tuning], training=wide, optimizer=optimizer))
    second = train(make_recipe("long", model=TUNINGS[tuning], training=long, optimizer=optimizer))
    assert_close(policy(first), policy(second), 1e-7)
    for one, other in zip(rows(first), rows(second), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def launch(recipe: Path, processes: int) -> None:
    # --multi_gpu means one process a device, here two on the CPU over gloo; --cpu alone would start a single one.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["-m", "diffusion_feedback", "train", "--config", str(recipe)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_equal_one(make_recipe: MakeRecipe) -> None:
    common = {"max_train_steps": 3, "learning_rate": 1e-4}
    optimizer = {"name": "adamw", "epsilon": 1.0}
    alone = train(make_recipe("alone", model=LORA, training={**common, "train_batch_size": 8}, optimizer=optimizer))
    recipe = make_recipe("both", model=LORA, training={**common, "train_batch_size": 4}, optimizer=optimizer)
    launch(recipe, 2)
    both = recipe.with_suffix("")
    assert_close(policy(alone), policy(both), 1e-7)
    for one, other in zip(rows(alone), rows(both), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["rewards/margins"] == pytest.approx(other["rewards/margins"], abs=1e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("tuning", list(TUNINGS))
def test_killed_and_resumed_equals_uninterrupted(make_recipe: MakeRecipe, tuning: str) -> None:
    """SIGKILL at several random moments, wherever the run is; then the weights are the same to the last bit."""
    training = {"max_train_steps": 10, "ema_decay": 0.9, "lr_warmup_steps": 3, "lr_scheduler": "cosine"}
    data = {"random_flip": True, "caption_dropout": 0.3}
    whole = train(make_recipe("whole", model=TUNINGS[tuning], training=training, data=data))
    recipe = make_recipe("broken", model=TUNINGS[tuning], training=training, data=data)
    folder = recipe.with_suffix("")
    command, metrics = ["train", "--config", str(recipe), "--resume"], folder / "metrics.jsonl"
    assert killing.kill_after_writing(command, metrics, kills=6, span=0.25, seed=tuning) >= 3
    train(recipe, "--resume")
    assert result(folder).keys() == result(whole).keys()
    for name, value in result(whole).items():
        assert torch.equal(result(folder)[name], value), name
    assert rows(folder) == rows(whole)
    assert rows(folder, "validation/accuracy") == rows(whole, "validation/accuracy")


def test_resuming_with_other_pairs_is_refused(
    make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pairs_data

    pairs = pairs_data.write_pairs(tmp_path / "own.parquet")
    recipe = make_recipe(model=LORA, data={"train": str(pairs)})
    folder = train(recipe)
    (folder / "README.md").unlink()
    pairs_data.write_pairs(tmp_path / "own.parquet", seed=900)
    assert main(["train", "--config", str(recipe), "--resume"]) == 2
    assert "--resume with another pairs" in capsys.readouterr().err


def test_the_cache_changes_nothing(make_recipe: MakeRecipe) -> None:
    cached = train(make_recipe("cached", model=LORA, data={"random_flip": True}))
    again = train(make_recipe("again", model=LORA, data={"random_flip": True}))
    direct = train(make_recipe("direct", model=LORA, data={"random_flip": True, "cache": False}))
    assert all(torch.equal(value, policy(again)[name]) for name, value in policy(cached).items())
    assert_close(policy(cached), policy(direct), 2e-4)
    assert rows(cached)[0]["error/chosen"] == pytest.approx(rows(direct)[0]["error/chosen"], rel=1e-5)


@pytest.mark.parametrize("objective", [
    {"name": "dpo", "beta": 500, "label_smoothing": 0.1},
    {"name": "ipo", "beta": 500},
    {"name": "hinge", "beta": 500},
    {"name": "robust", "beta": 500, "label_smoothing": 0.1},
    {"name": "sft"},
])  # fmt: skip
def test_every_objective_trains(make_recipe: MakeRecipe, objective: dict[str, Any]) -> None:
    folder = train(make_recipe(objective=objective, model=LORA, training={"max_train_steps": 2}))
    losses = [row["loss"] for row in rows(folder)]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert rows(folder, "validation/accuracy")


def test_sft_takes_the_error_of_the_chosen_images_down(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        objective={"name": "sft"}, model=TUNINGS["full"], training={"max_train_steps": 40, "checkpointing_steps": 40}
    )
    assert rows(train(recipe), "validation/accuracy")[-1]["validation/error/chosen_change"] < -0.01


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sdxl", {"family": "sdxl", "model": LORA}),
        ("bf16", {"model": {**LORA, "dtype": "bfloat16"}, "training": {"mixed_precision": "bf16"}}),
        ("checkpointing", {"model": {**LORA, "gradient_checkpointing": True}}),
        ("adafactor", {"model": {"tuning": "full"}, "optimizer": {"name": "adafactor"}}),
        ("soft", {"model": LORA, "data": {"ties": "soft", "soft_labels": True}}),
        ("random_crop", {"model": LORA, "data": {"random_crop": True, "cache": False, "caption_dropout": 0.5}}),
    ],
)
def test_variants_train(make_recipe: MakeRecipe, name: str, changes: dict[str, Any]) -> None:
    changes = {**changes, "training": {"max_train_steps": 2, "checkpointing_steps": 1, **changes.get("training", {})}}
    folder = train(make_recipe(name, **changes))
    assert all(math.isfinite(row["loss"]) for row in rows(folder))
    before, after = (policy_at(folder, step) for step in (1, 2))
    assert any(not torch.equal(value, after[key]) for key, value in before.items()), "the weights move"


def test_gradient_checkpointing_changes_nothing(make_recipe: MakeRecipe) -> None:
    plain = train(make_recipe("plain", model=LORA))
    thrifty = train(make_recipe("thrifty", model={**LORA, "gradient_checkpointing": True}))
    assert_close(policy(plain), policy(thrifty), 1e-6)


def test_v_prediction_trains(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    import tiny_models

    model = tiny_models.save_sd(tmp_path / "v-model", prediction_type="v_prediction")
    folder = train(make_recipe(model={**LORA, "pretrained_model_name_or_path": str(model)}))
    assert rows(folder)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_tracker_writes_beside_the_metrics(make_recipe: MakeRecipe) -> None:
    pytest.importorskip("tensorboard", reason="the extra [tracking] is not installed")
    folder = train(make_recipe(model=LORA, training={"max_train_steps": 2, "report_to": ["tensorboard"]}))
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = events.EventAccumulator(str(next(folder.rglob("events.out.tfevents.*")).parent))
    reader.Reload()
    assert [event.step for event in reader.Scalars("loss")] == [1, 2]
    assert "time" not in reader.Tags()["scalars"]
    for name in ("before", "after"):
        images = [tag for tag in reader.Tags()["images"] if tag.startswith(f"samples/{name}")]
        assert images, reader.Tags()["images"]
        (event,) = reader.Images(images[0])
        assert event.step == 2
        sent = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"))
        place = "before" if name == "before" else "step-000002"
        drawn = np.asarray(Image.open(folder / "samples" / place / "000.png").convert("RGB"))
        assert np.array_equal(sent[: drawn.shape[0], : drawn.shape[1]], drawn)
    (settings,) = folder.rglob("hparams.yml")
    hyperparameters = yaml.safe_load(settings.read_text())
    assert hyperparameters["training.max_train_steps"] == 2
    assert hyperparameters["objective.name"] == "dpo"


def test_dry_run_says_what_would_be_done(make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(model=LORA, training={"gradient_accumulation_steps": 2, "train_batch_size": 3})
    assert main(["train", "--config", str(recipe), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "24 for training, 10 held out" in printed
    assert "batch            6 pairs per step = 3 per pass x 2 passes x 1 process" in printed
    assert "logit slope      250 per unit of mean squared error" in printed
    assert "(measured)" in printed
    assert not recipe.with_suffix("").exists()


def test_print_config_reads_back(make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = make_recipe()
    assert main(["train", "--config", str(recipe), "--training.learning-rate", "3e-6", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "learning_rate: 3.0e-06" in printed
    (tmp_path / "printed.yaml").write_text(printed)
    assert main(["train", "--config", str(tmp_path / "printed.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == printed
