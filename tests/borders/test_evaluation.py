"""Evaluation while training: in batches, at the resolution of training, counted beforehand; a failure in it loses nothing."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_results import policy, rows, train
from torch import Tensor

from diffusion_feedback.cli.main import main
from diffusion_feedback.errors import UserError
from diffusion_feedback.models.latent_diffusion import LatentDiffusion
from diffusion_feedback.training.preference import PreferenceStep
from diffusion_feedback.workflows.training import diffusion as assemble
from diffusion_feedback.workflows.training.memory import PeakMemory

MakeRecipe = Callable[..., Path]
LORA = {"tuning": "lora", "lora_rank": 2}
PROMPTS = [f"prompt {number}" for number in range(5)]


def failing(error: BaseException) -> Callable[..., Any]:
    def sample(*args: Any, **settings: Any) -> Any:
        raise error

    return sample


FAILURES = {
    "memory of a device": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"), "out of memory"),
    "memory of the machine": (MemoryError(), "out of memory"),
    "memory of the allocator": (
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        "out of memory",
    ),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device", "samples/step.png"), "No space left on device"),
    "a mistake of the user's": (UserError("prompt 3 is bad", "take it out"), "take it out"),
}


@pytest.fixture(scope="module")
def whole() -> dict[int, Any]:
    """What uninterrupted runs gave, by their steps of evaluation: trained once, compared with often."""
    return {}


@pytest.mark.parametrize(
    ("failure", "steps"), [*((name, 2) for name in FAILURES), ("memory of a device", 3), ("a full disk", 3)]
)
def test_a_failure_loses_no_step(
    failure: str,
    steps: int,
    whole: dict[int, Any],
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where a checkpoint is due at the same step, and where none is; --resume without the samples ends as if nothing was."""
    error, named = FAILURES[failure]
    settings: dict[str, Any] = {
        "model": LORA,
        "training": {"max_train_steps": 4},
        "validation": {"steps": steps, "prompts": PROMPTS[:1], "num_inference_steps": 1},
    }
    recipe = make_recipe("broken", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(LatentDiffusion, "sample", failing(error))
        assert main(["train", "--config", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert f"evaluation after step {steps}" in message
    assert named in message
    assert f"goes on from step {steps}" in message
    assert "validation.num_prompts: 0" in message
    folder = recipe.with_suffix("")
    assert [row["step"] for row in rows(folder)] == list(range(1, steps + 1))
    assert (folder / f"checkpoints/step-{steps:06d}").is_dir()
    off = ["--validation.prompts", "[]", "--validation.num_prompts", "0"]
    assert main(["train", "--config", str(folder / "recipe.yaml"), "--resume", *off]) == 0
    if steps not in whole:
        uninterrupted = train(make_recipe("whole", **settings))
        whole[steps] = policy(uninterrupted), rows(uninterrupted), rows(uninterrupted, "validation/accuracy")
    weights, losses, looks = whole[steps]
    assert all(torch.equal(value, weights[name]) for name, value in policy(folder).items())
    assert rows(folder) == losses
    assert rows(folder, "validation/accuracy") == looks


def test_a_defect_in_evaluation_is_one_and_loses_nothing(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(training={"max_train_steps": 3}, validation={"steps": 1, "prompts": PROMPTS})
    monkeypatch.setattr(LatentDiffusion, "sample", failing(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["train", "--config", str(recipe)])
    assert [path.name for path in recipe.with_suffix("").glob("checkpoints/*")] == ["step-000001"]


def test_evaluation_that_was_done_is_not_done_again(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(training={"max_train_steps": 2}, validation={"prompts": PROMPTS[:1]})
    folder = train(recipe)
    (folder / "README.md").unlink()
    monkeypatch.setattr(LatentDiffusion, "sample", failing(AssertionError("drawn again")))
    train(recipe, "--resume")
    assert len(rows(folder, "validation/accuracy")) == 1


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("resolution", [None, 32])
def test_samples_are_drawn_in_batches_at_the_resolution_of_training(
    batch: int, resolution: int | None, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pass holds more than a training pass does: two images a pair there, two branches an image here."""
    seen: list[tuple[int, int, int]] = []
    sample = LatentDiffusion.sample

    def recorded(self: Any, network: Any, prompts: Any, seeds: Any, **settings: Any) -> Any:
        assert list(seeds) == [int(prompt.split()[1]) for prompt in prompts]
        images = sample(self, network, prompts, seeds, **settings)
        seen.extend((len(prompts), *image.size) for image in images)
        return images

    monkeypatch.setattr(LatentDiffusion, "sample", recorded)
    training = {"max_train_steps": 1, "train_batch_size": batch}
    train(make_recipe(training=training, data={"resolution": resolution}, validation={"prompts": PROMPTS}))
    side = resolution or 16
    assert len(seen) == 2 * len(PROMPTS)
    assert {(width, height) for _, width, height in seen} == {(side, side)}
    assert max(number for number, _, _ in seen) == min(batch, len(PROMPTS))


def test_memory_of_samples_is_counted(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held: list[Tensor] = []

    def sample(self: Any, network: Any, prompts: Any, seeds: Any, **settings: Any) -> list[Any]:
        held.append(torch.ones(len(prompts), settings["height"], 2**14, 10))  # 40 MiB an image of 64 px
        held.clear()
        return []

    monkeypatch.setattr(LatentDiffusion, "sample", sample)
    changes = {"data": {"resolution": 64}, "validation": {"prompts": PROMPTS}}
    recipe = make_recipe(training={"train_batch_size": 3}, **changes)
    assert main(["train", "--config", str(recipe), "--dry_run"]) == 0
    told = capsys.readouterr().out
    assert "one batch of validation samples 120.0 MiB (measured" in told
    total = float(told.split("memory           about ")[1].split(" MiB")[0])
    assert 120 < total < 140
    assert main(["train", "--config", str(recipe), "--dry_run", "--validation.prompts", "[]",
                 "--validation.num_prompts", "0"]) == 0  # fmt: skip
    assert "validation samples" not in capsys.readouterr().out


def test_peak_memory_by_hand() -> None:
    weight = torch.randn(1000)
    with PeakMemory() as peak:
        first = torch.ones(1000)
        second = first.view(10, 100)[2:] if first is not None else first  # a view holds nothing of its own
        third = first + weight
        assert peak.bytes == 8000
        del first, second
        fourth = third * 2
        del third, fourth
        torch.zeros(500)
        weight.view(10, 100).t()
    assert peak.bytes == 8000


TRAINING_FAILURES = {name: error for name, (error, _) in FAILURES.items() if name.startswith("memory")}


@pytest.mark.parametrize("failure", list(TRAINING_FAILURES)[:2])
def test_too_little_memory_for_a_step(
    failure: str, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The remedy is one that --resume takes: half the pass, twice the passes, and the weights are those of the whole run."""
    error = TRAINING_FAILURES[failure]
    recipe = make_recipe(model=LORA, training={"max_train_steps": 4}, validation={"num_prompts": 0})
    calls = 0

    def dies(parts: Any) -> Any:
        step = PreferenceStep.of(parts)
        losses = type(step).__call__

        def call(self: Any, network: Any, batch: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise error
            return losses(self, network, batch)

        monkeypatch.setattr(type(step), "__call__", call)
        return step

    with monkeypatch.context() as patch:
        patch.setattr(assemble, "step_of", dies)
        assert main(["train", "--config", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert "step 3: out of memory" in message
    assert "gradient_accumulation_steps" in message
    assert "--resume" in message
    smaller = ["--training.train_batch_size", "2", "--training.gradient_accumulation_steps", "2"]
    folder = train(recipe, "--resume", *smaller, "--model.gradient_checkpointing", "true")
    whole = train(make_recipe("whole", model=LORA, training={"max_train_steps": 4}, validation={"num_prompts": 0}))
    for name, value in policy(whole).items():
        torch.testing.assert_close(policy(folder)[name], value, atol=2e-3, rtol=0)  # AdamW's first steps are signs
    assert "train_batch_size: 2" in (folder / "recipe.yaml").read_text()


@pytest.mark.parametrize("changed", [["--training.train_batch_size", "2"], ["--training.seed", "1"]])
def test_another_batch_is_still_another_run(
    changed: list[str], make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(training={"max_train_steps": 2}, validation={"num_prompts": 0})
    folder = train(recipe)
    (folder / "README.md").unlink()
    assert main(["train", "--config", str(recipe), "--resume", *changed]) == 2
    named = "--resume with another effective batch" if "2" in changed else "--resume with another training.seed"
    assert named in capsys.readouterr().err
