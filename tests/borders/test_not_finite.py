"""Losses, gradients and weights that are no numbers: named by step and example, never logged as such, never saved."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from run_results import rows
from safetensors.torch import load_file
from text_recipes import MakeTextRecipe
from torch import Tensor

from diffusion_feedback.cli.main import main
from diffusion_feedback.config.recipe import Recipe
from diffusion_feedback.data.readers import open_pairs
from diffusion_feedback.training.finite import MAX_SKIPPED
from diffusion_feedback.training.preference import PreferenceStep
from diffusion_feedback.workflows.training import run as training_run
from diffusion_feedback.workflows.training.accelerator import make_accelerator

MakeRecipe = Callable[..., Path]
LORA = {"tuning": "lora", "lora_rank": 2}
QUIET = {"num_prompts": 0}


def all_saved_are_numbers(folder: Path) -> bool:
    return all(
        bool(tensor.isfinite().all())
        for file in folder.rglob("*.safetensors")
        for tensor in load_file(file).values()
        if tensor.is_floating_point()
    )


def all_logged_are_numbers(folder: Path) -> bool:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return all(math.isfinite(value) for row in found for name, value in row.items() if name != "time")


def spoil(monkeypatch: pytest.MonkeyPatch, choose: Callable[[Any, int], Tensor], value: float) -> list[Any]:
    """Let the losses that ``choose(batch, pass)`` marks be ``value``; returns the batches that were marked, as they come."""
    losses, marked = PreferenceStep.losses, []
    calls = 0

    def spoilt(self: PreferenceStep, logps: Any, batch: Any) -> Tensor:
        nonlocal calls
        found = losses(self, logps, batch)
        if torch.is_grad_enabled():
            calls += 1
        mask = choose(batch, calls)
        if bool(mask.any()):
            marked.append(batch)
        return found * torch.where(mask, value, 1.0)

    monkeypatch.setattr(PreferenceStep, "losses", spoilt)
    return marked


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("batch", "accumulated"), [(4, 1), (2, 2)])
def test_the_pair_and_the_step_are_named(
    value: float,
    batch: int,
    accumulated: int,
    make_recipe: MakeRecipe,
    pair_files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    training = {"train_batch_size": batch, "gradient_accumulation_steps": accumulated, "checkpointing_steps": 1}
    recipe = make_recipe(model=LORA, training=training, validation=QUIET)
    first_of_step_2 = accumulated + 1
    marked = spoil(monkeypatch, lambda b, n: torch.arange(len(b)).eq(1) & (n == first_of_step_2), value)
    assert main(["train", "--config", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") or "error: step 2: " in message
    assert "step 2: the gradient norm is nan" in message or "step 2: the gradient norm is inf" in message
    example_id = marked[0].example_ids[1]
    source = next(r.source for r, _ in open_pairs(pair_files["train"]).scan() if r.example_id == example_id)
    assert f"because of {source} (loss {value})" in message
    assert "--resume would come to the same place" in message
    assert "learning_rate" in message
    folder = recipe.with_suffix("")
    assert [row["step"] for row in rows(folder)] == [1]
    assert all_logged_are_numbers(folder)
    assert all_saved_are_numbers(folder)


def test_a_bad_pair_in_the_first_step(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check before the first update names it too."""
    recipe = make_recipe(model=LORA, objective={"name": "sft"}, validation=QUIET)
    from diffusion_feedback.likelihoods.denoising import DenoisingLikelihood

    logps = DenoisingLikelihood.logps
    monkeypatch.setattr(
        DenoisingLikelihood, "logps", lambda self, *rest: logps(self, *rest) * torch.tensor([1, 1, float("nan"), 1])
    )
    assert main(["train", "--config", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert "step 0: the loss is nan, because of " in message
    assert "train.parquet, row " in message


def test_texts_are_named_by_their_id(
    make_text_recipe: MakeTextRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    marked = spoil(monkeypatch, lambda b, n: torch.arange(len(b)).eq(0) & (n == 2), float("nan"))
    assert main(["train", "--config", str(make_text_recipe(validation=QUIET))]) == 2
    message = capsys.readouterr().err
    assert f"pair {marked[0].example_ids[0]}" in message


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("steps", [1, 3])
def test_weights_that_overflow_are_never_saved(
    tuning: str, average: float, steps: int, make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gradient that is a number may still take the weights out of range, in the last step too."""
    training = {"max_train_steps": steps, "learning_rate": 1e38, "checkpointing_steps": 1, "ema_decay": average}
    optimizer = {"name": "adamw", "epsilon": 1e-30, "weight_decay": 1e38}
    recipe = make_recipe(model={**LORA, "tuning": tuning}, training=training, optimizer=optimizer, validation=QUIET)
    assert main(["train", "--config", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert "not finite" in message
    assert "step 1" in message
    assert "--overwrite" in message
    folder = recipe.with_suffix("")
    assert all_saved_are_numbers(folder)
    assert not (folder / "README.md").exists()
    assert all_logged_are_numbers(folder)


def with_scaler(recipe: Recipe) -> Accelerator:
    """What fp16 has on a device: a scaler that leaves out updates whose gradients overflow."""
    accelerator = make_accelerator(recipe)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    return accelerator


def test_a_scaler_that_skips_for_ever_is_stopped(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_run, "make_accelerator", with_scaler)
    marked = spoil(monkeypatch, lambda b, n: torch.arange(len(b)).eq(0) & (n >= 3), float("inf"))
    training = {"max_train_steps": 40, "checkpointing_steps": 2}
    recipe = make_recipe(model=LORA, training=training, validation=QUIET)
    assert main(["train", "--config", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert f"step {2 + MAX_SKIPPED}: the loss scaler has skipped {MAX_SKIPPED} updates in a row" in message
    assert "because of " in message and marked  # noqa: PT018
    assert "bf16" in message
    folder = recipe.with_suffix("")
    assert [row["skipped_updates"] for row in rows(folder, "skipped_updates")] == [0, 0, *range(1, MAX_SKIPPED)]
    assert all_logged_are_numbers(folder)
    assert all_saved_are_numbers(folder)


def test_a_scaler_may_skip_a_few(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_run, "make_accelerator", with_scaler)
    spoil(monkeypatch, lambda b, n: torch.arange(len(b)).eq(0) & (n in (2, 3)), float("inf"))
    recipe = make_recipe(model=LORA, training={"max_train_steps": 5}, validation=QUIET)
    assert main(["train", "--config", str(recipe)]) == 0
    folder = recipe.with_suffix("")
    assert [row["skipped_updates"] for row in rows(folder, "skipped_updates")] == [0, 1, 2, 0, 0]
    assert all_logged_are_numbers(folder)
