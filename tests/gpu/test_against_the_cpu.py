"""On a CUDA device: losses, caches, scores and resuming agree with the CPU within stated tolerances.

Without a device all of these are skipped. With GPU_TESTS_DEVICE=cpu they compare the CPU with itself, which shows that
they run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pairs_data
import pytest
import tiny_clip
import torch
from accelerate.state import AcceleratorState
from run_results import SGD, assert_close, policy, rows, train

from diffusion_feedback.catalog import resolve
from diffusion_feedback.data.images import EncodedImage
from diffusion_feedback.scorers.loading import load_scorers
from diffusion_feedback.scorers.runner import score_batches
from diffusion_feedback.types.images import ImageItem

pytestmark = pytest.mark.gpu
Make = Callable[..., Path]

DEVICE = os.environ.get("GPU_TESTS_DEVICE", "cuda")
# Losses of a few steps: float32 sums in another order, and cuDNN's convolutions in TF32 (10 bits of mantissa); half
# precision keeps 8 (bf16) or 11 (fp16) bits.
LOSS = {"no": 2e-3, "bf16": 3e-2, "fp16": 1e-2}
TEXT_LOSS = {"no": 1e-4, "bf16": 3e-2, "fp16": 1e-2}
TUNINGS = {"lora": {"tuning": "lora", "lora_rank": 2}, "full": {"tuning": "full"}}
STEPS = {"max_train_steps": 4, "train_batch_size": 4, "learning_rate": 1e-4, "checkpointing_steps": 2}


@contextmanager
def on(device: str) -> Iterator[None]:
    """Runs begin on ``device``: accelerate takes CUDA where there is one, unless it is told otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        if device == "cpu":
            patch.setenv("ACCELERATE_USE_CPU", "true")
        AcceleratorState._reset_state(reset_partial_state=True)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder)]


def trained(make: Make, name: str, device: str, precision: str, **changes: Any) -> Path:
    training = {**STEPS, "mixed_precision": precision}
    with on(device):
        return train(make(name, training=training, optimizer=SGD, **changes))


@pytest.mark.parametrize("precision", LOSS)
@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_losses_of_image_runs(make_recipe: Make, family: str, tuning: str, precision: str) -> None:
    if DEVICE == "cpu" and precision == "fp16":
        pytest.skip("a CPU trains in fp16 through a scaler that needs a CUDA device")
    # beta 50: at 500 half a unit of the error's third digit is a whole unit of the loss.
    changes = {"family": family, "model": TUNINGS[tuning], "objective": {"name": "dpo", "beta": 50}}
    expected = losses(trained(make_recipe, "cpu", "cpu", "no", **changes))
    found = losses(trained(make_recipe, "device", DEVICE, precision, **changes))
    assert found == pytest.approx(expected, abs=LOSS[precision])
    assert found[0] == pytest.approx(0.6931472, abs=1e-5)  # policy and reference run the same kernels


@pytest.mark.parametrize("precision", TEXT_LOSS)
@pytest.mark.parametrize("tuning", TUNINGS)
def test_losses_of_text_runs(make_text_recipe: Make, tuning: str, precision: str) -> None:
    if DEVICE == "cpu" and precision == "fp16":
        pytest.skip("a CPU trains in fp16 through a scaler that needs a CUDA device")
    changes = {"model": TUNINGS[tuning]}
    expected = losses(trained(make_text_recipe, "cpu", "cpu", "no", **changes))
    found = losses(trained(make_text_recipe, "device", DEVICE, precision, **changes))
    assert found == pytest.approx(expected, abs=TEXT_LOSS[precision])
    assert found[0] == pytest.approx(0.6931472, abs=1e-5)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_resumed_equals_uninterrupted(make_recipe: Make, tuning: str) -> None:
    """Sums of CUDA kernels may differ in the last bits from run to run, so weights are compared to 1e-6."""
    folder = trained(make_recipe, "run", DEVICE, "no", model=TUNINGS[tuning])
    weights, expected = policy(folder), losses(folder)
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    (folder / "README.md").unlink()  # which marks the run as complete
    with on(DEVICE):
        train(folder.with_suffix(".yaml"), "--resume")
    assert_close(policy(folder), weights, 1e-6)
    assert losses(folder) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_latents_and_text_embeddings(tiny_pipelines: dict[str, Path], family: str) -> None:
    """What the caches hold, for images of two brightnesses and prompts of two lengths."""
    load = resolve("family", family)
    cpu, device = (load(str(tiny_pipelines[family]), device=where) for where in ("cpu", DEVICE))
    pixels = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    torch.testing.assert_close(device.encode_images(pixels), cpu.encode_images(pixels), atol=2e-3, rtol=2e-3)
    prompts = ["a cat", "a much longer prompt about a dog"]
    expected, found = cpu.encode_prompts(prompts), device.encode_prompts(prompts)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 5e-2), (torch.float16, 5e-3)])
def test_scores(tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    """Cosines by half precision are off in their third digit, by bf16 in their second."""
    weights = tiny_clip.save_clip(tmp_path / "clip")
    items = [
        ImageItem(str(number), "a cat", EncodedImage(pairs_data.jpeg(40 * number, number), str(number)))
        for number in range(6)
    ]
    (expected,) = score_batches(load_scorers([f"pickscore={weights}"]), items)
    (found,) = score_batches(load_scorers([f"pickscore={weights}"], device=DEVICE, dtype=dtype), items)
    torch.testing.assert_close(found.scores[0].raw, expected.scores[0].raw, atol=tolerance, rtol=tolerance)
