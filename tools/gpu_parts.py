"""One part of gpu_report.py in a process of its own: measures, prints one line of JSON, and may die alone.

python tools/gpu_parts.py sdxl --size full --device cuda
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "open_clip_torch", "trl")
WARM_UP = 2


def now(device: str) -> float:
    """Seconds, after all that the device was given to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(device: str) -> int | None:
    """Most device memory that was held at once; not known of a CPU."""
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else None


def matrix_rate(size: str, device: str) -> float:
    """The bf16 matrix-product rate on random data, FLOP/s: best of several large products."""
    side, repeats = (8192, 20) if size == "full" else (256, 3)
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        start = now(device)
        for _ in range(repeats):
            left @ right
        best = min(best, (now(device) - start) / repeats)
    return 2 * side**3 / best


def machine(size: str, device: str) -> dict[str, Any]:
    """What was measured on: device, versions, and the two ceilings, matrix products and copies of memory."""
    is_cuda = device.startswith("cuda")
    count = 2**30 if size == "full" else 2**20
    source = torch.empty(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        start = now(device)
        target.copy_(source)
        seconds.append(now(device) - start)
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "device": torch.cuda.get_device_name()
        if is_cuda
        else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "device_memory_bytes": torch.cuda.get_device_properties(0).total_memory if is_cuda else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": versions,
        "bf16_flops": matrix_rate(size, device),
        "copy_bytes_per_second": 2 * count / min(seconds),
    }


def tests(size: str, device: str) -> dict[str, Any]:
    """The tests marked ``gpu``: counts, and the names of what failed. On a CPU they compare the CPU with itself."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tests.xml"
        # pytest imports every test file unless it knows where these tests are.
        call = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "gpu",
            "tests/gpu",
            f"--junitxml={file}",
            "-p",
            "no:cacheprovider",
        ]
        environment = {**os.environ, "GPU_TESTS_DEVICE": device}
        if size == "tiny":
            call += ["-k", "sd and lora or text"]
        done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if not file.exists():
            raise RuntimeError(f"pytest wrote no result: {done.stdout[-500:]}{done.stderr[-500:]}")
        cases = ElementTree.parse(file).getroot().findall(".//testcase")
    kinds = {kind: [case for case in cases if case.find(kind) is not None] for kind in ("failure", "error", "skipped")}
    failed = {
        str(case.get("name")): str((case.find("failure") or case.find("error")).get("message"))[:300]  # type: ignore[union-attr]
        for case in [*kinds["failure"], *kinds["error"]]
    }
    passed = len(cases) - sum(map(len, kinds.values()))
    return {"passed": passed, "failed": failed, "skipped": len(kinds["skipped"])}


def image_step(family: str) -> Callable[[str, str], dict[str, Any]]:
    """Measures one LoRA step of Diffusion-DPO on the model of ``family``: bf16, latents and text from the cache."""

    def measure(size: str, device: str) -> dict[str, Any]:
        from gpu_models import PARAMETERS, SETTINGS, denoiser

        setting = SETTINGS[size][family]
        model = denoiser(family, size, device, torch.bfloat16)
        parameters = sum(p.numel() for p in model.network.parameters())
        if size == "full" and parameters != PARAMETERS[family]:
            raise RuntimeError(f"the UNet has {parameters} parameters, the published one {PARAMETERS[family]}")
        with tempfile.TemporaryDirectory() as folder:
            run = _steps(model, setting, device, Path(folder), count=8 if size == "full" else 2)
        run["vae_images_per_second"] = run.pop("images_encoded") / run.pop("encode_seconds")
        rate = matrix_rate(size, device)
        seconds = statistics.median(run["seconds"])
        return {
            **run,
            "parameters": parameters,
            "resolution": setting.resolution,
            "pairs": setting.pairs,
            "pairs_per_second": setting.pairs / seconds,
            "share_of_bf16_rate": run["flops"] / seconds / rate,
            "bf16_flops": rate,
            "peak_bytes": peak_bytes(device),
        }

    return measure


def _steps(model: Any, setting: Any, device: str, folder: Path, count: int) -> dict[str, Any]:
    """Seconds of ``count`` optimizer steps after the warm-up, the FLOPs of one, and the time that encoding took."""
    from torch.utils.flop_counter import FlopCounterMode

    from diffusion_feedback.catalog import objective_row
    from diffusion_feedback.data.cache import CachedImageEncoder, CachedTextEncoder, TensorCache
    from diffusion_feedback.likelihoods.denoising import DenoisingLikelihood
    from diffusion_feedback.models import lora
    from diffusion_feedback.models.reference import AdaptersOff
    from diffusion_feedback.training.optimizers import adamw
    from diffusion_feedback.training.preference import PreferenceStep
    from diffusion_feedback.training.steps import StepParts
    from diffusion_feedback.types.models import AdapterSettings

    adapters = AdapterSettings(rank=setting.rank, alpha=float(setting.rank), targets=["attention"], seed=0)
    lora.add(model.network, adapters)
    weights = [parameter for _, parameter in lora.trainable(model.network)]
    images = CachedImageEncoder(
        model.encode_images, setting.resolution, TensorCache(folder / "latents", {"encoder": "random"})
    )
    texts = CachedTextEncoder(model.encode_prompts, TensorCache(folder / "text", {"encoder": "random"}))
    likelihood = DenoisingLikelihood(model, images, texts, seed=0, device=device)
    # As in a run with model.dtype and training.mixed_precision bf16.
    autocast = partial(torch.autocast, torch.device(device).type, torch.bfloat16)
    step = PreferenceStep(
        StepParts(likelihood, AdaptersOff(), objective_row("dpo"), {"beta": 5000.0}, autocast=autocast)
    )
    batch = _batch(setting)
    start = now(device)
    likelihood.prepare(batch)  # fills the caches, as a run does before its first step
    encode = now(device) - start
    optimizer = adamw(weights, 1e-5)

    def take() -> float:
        output = step(model.network, batch)
        (output.loss / len(batch)).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(output.loss) / len(batch)

    first = take()
    with FlopCounterMode(display=False) as counter:
        take()
    seconds = []
    for _ in range(WARM_UP + count):
        start = now(device)
        take()
        seconds.append(now(device) - start)
    return {
        "first_loss": first,  # ln 2: policy and reference are equal before the first update
        "flops": counter.get_total_flops(),
        "seconds": seconds[WARM_UP:],
        "encode_seconds": encode,
        "images_encoded": 2 * setting.pairs,
    }


def _batch(setting: Any) -> Any:
    """``setting.pairs`` pairs of distinct JPEG images of noise."""
    import numpy as np
    from PIL import Image

    from diffusion_feedback.data.images import EncodedImage
    from diffusion_feedback.types.images import PreferenceBatch

    generator, handles = np.random.default_rng(0), []
    for number in range(2 * setting.pairs):
        pixels = generator.integers(0, 256, (setting.resolution, setting.resolution, 3), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "JPEG", quality=80)
        handles.append(EncodedImage(data.getvalue(), f"image {number}"))
    ids = [f"pair {number}" for number in range(setting.pairs)]
    ones = torch.ones(setting.pairs)
    prompts = [f"a prompt number {number}" for number in range(setting.pairs)]
    return PreferenceBatch(ids, prompts, handles[: setting.pairs], handles[setting.pairs :], ones, ones)


def scorer(size: str, device: str) -> dict[str, Any]:
    """HPSv2 over ViT-H/14 in half precision: the runner on JPEG files against the image tower's bare forward passes."""
    import open_clip
    from gpu_models import ImageSetting

    from diffusion_feedback.scorers.loading import load_scorers
    from diffusion_feedback.scorers.runner import score_batches
    from diffusion_feedback.types.images import ImageItem

    count, batch_size, architecture = (256, 64, "ViT-H-14") if size == "full" else (4, 2, "ViT-S-32-alt")
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        model = open_clip.CLIP(**open_clip.get_model_config(architecture)).to(dtype).eval()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "random.pt"
        torch.save({"state_dict": model.half().state_dict()}, checkpoint)
        spec = f"hpsv2={checkpoint},version=v2.1,architecture={architecture}"
        scorers = load_scorers([spec], device=device, dtype=dtype)
    model.to(dtype)
    batch = _batch(ImageSetting(512 if size == "full" else 32, count // 2))
    handles = [*batch.chosen, *batch.rejected]
    items = [ImageItem(f"image {number}", "a prompt", handle) for number, handle in enumerate(handles)]
    views = torch.stack([scorers[0].view(handle.open()) for handle in handles[:batch_size]]).to(device, dtype)
    seconds: dict[str, list[float]] = {"runner": [], "bare": []}
    for repeat in range(4):
        start = now(device)
        list(score_batches(scorers, items, batch_size=batch_size, workers=os.cpu_count() or 4))
        middle = now(device)
        with torch.inference_mode():
            for _ in range(0, count, batch_size):
                model.encode_image(views)
        end = now(device)
        if repeat:  # the first warms up
            seconds["runner"].append(middle - start)
            seconds["bare"].append(end - middle)
    median = {way: statistics.median(taken) for way, taken in seconds.items()}
    return {
        "architecture": architecture,
        "dtype": str(dtype).removeprefix("torch."),
        "images": count,
        "seconds": seconds,
        "images_per_second": count / median["runner"],
        "bare_images_per_second": count / median["bare"],
        "runner_over_bare": median["runner"] / median["bare"],
        "peak_bytes": peak_bytes(device),
    }


def benchmark(name: str, *, full: str, tiny: str) -> Callable[[str, str], dict[str, Any]]:
    """Runs ``python -m benchmarks.<name>`` with the arguments of the size, and gives what it wrote."""

    def measure(size: str, device: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "result.json"
            call = [sys.executable, "-m", f"benchmarks.{name}", "--device", device, "--output", str(output)]
            done = subprocess.run(
                [*call, *(full if size == "full" else tiny).split()],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError((done.stderr or done.stdout)[-800:])
            result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        return result

    return measure


PARTS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "machine": machine,
    "tests": tests,
    "sd15": image_step("sd15"),
    "sdxl": image_step("sdxl"),
    "scorer": scorer,
    "text": benchmark(
        "text",
        full="--speed_only --pairs 16 --layers 12 --width 768 --steps 8 --repeats 2",
        tiny="--speed_only --pairs 2 --layers 1 --width 32 --vocabulary 128 --prompt 8 --completion 8 --steps 2 --repeats 1",
    ),
}


def main() -> None:
    """Measure one part and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    print(json.dumps(PARTS[given.part](given.size, given.device)))


if __name__ == "__main__":
    main()
