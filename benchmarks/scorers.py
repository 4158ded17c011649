"""How fast scoring is: against bare forward passes, and against the usual loop over images.

    python -m benchmarks.scorers                                            # ViT-H-14 on the CPU, about 15 minutes
    python -m benchmarks.scorers --device cuda --dtype float16 --num_images 256 --batch_sizes 16 32 64
    python -m benchmarks.scorers --architecture ViT-S-32-alt --size 256     # a quick look

Weights are random (numbers of a model's size do not depend on its training) in files like the published ones, images
are JPEG files. The ways to score a folder are timed side by side, one after the other in every repeat, and compared
by the median of the repeats' ratios:

  bare        the image tower's forward passes on tensors that are ready, at the best of --batch_sizes, and one pass of
              the text tower over the distinct prompts: what no scorer can undercut
  runner      diffusion_feedback.scorers.runner on the folder: decoding, cutting, all towers; model loaded before
  loop        image by image, the prompt encoded again for each
  reload      the same, with the checkpoint read again for each call, as hpsv2.score does
  together    three scorers in one call of the runner
  separate    the same three, a call for each

All ways must give the same scores, else nothing is reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from diffusion_feedback.data.image_sets import open_images
from diffusion_feedback.records import atomic_write
from diffusion_feedback.scorers.loading import load_scorers
from diffusion_feedback.scorers.runner import score_batches
from diffusion_feedback.scorers.scorer import Scorer
from diffusion_feedback.types.images import ImageHandle, ImageItem

PROMPTS = (
    "a cat with two horns on its head",
    "a painting of an ocean with clouds and birds, day time, low depth field effect",
    "a small red circle on a blue background",
)
BAR = 1.15  # the runner's time over the bare forward passes'
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
RATIOS = (("runner", "bare"), ("loop", "runner"), ("reload", "runner"), ("separate", "together"))
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-3}


@dataclass
class CountedImage:
    """An image that counts how often it is decoded; an ImageHandle."""

    file: ImageHandle
    opened: int = 0

    @property
    def key(self) -> str:
        """Content hash of the bytes."""
        return self.file.key

    def open(self) -> Image.Image:
        """Decode to RGB."""
        self.opened += 1
        return self.file.open()


@dataclass(frozen=True)
class BareModel:
    """open_clip's model with the weights of ``checkpoint``, as a user without this package would run it."""

    model: Any
    tokenizer: Callable[[list[str]], Tensor]
    checkpoint: Path
    device: str
    dtype: torch.dtype

    def encode_images(self, views: Tensor) -> Tensor:
        """Features (N, D) of views (N, 3, S, S)."""
        encoded: Tensor = self.model.encode_image(views.to(self.device, self.dtype))
        return encoded

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Features (N, D)."""
        encoded: Tensor = self.model.encode_text(self.tokenizer(list(prompts)).to(self.device))
        return encoded

    def reload(self) -> None:
        """Read the checkpoint again."""
        self.model.load_state_dict(torch.load(self.checkpoint, weights_only=True)["state_dict"])
        self.model.to(self.device).eval()


@dataclass(frozen=True)
class Bench:
    """The images, how the runner is called on them, and what was measured: seconds of each way in each repeat."""

    items: list[ImageItem]
    device: str
    workers: int
    batch_size: int = 1
    seconds: dict[str, list[float]] = field(default_factory=dict)
    decodes: dict[str, int] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)

    @torch.inference_mode()
    def bare(self, bare: BareModel, views: Tensor) -> Tensor:
        """Cosines from views that are ready; the text tower sees each prompt once."""
        prompts = list(dict.fromkeys(item.prompt for item in self.items))
        text = bare.encode_prompts(prompts)[[prompts.index(item.prompt) for item in self.items]]
        return cosines(torch.cat([bare.encode_images(part) for part in views.split(self.batch_size)]), text)

    @torch.inference_mode()
    def loop(self, bare: BareModel, view: Callable[[Image.Image], Tensor], *, reload: bool) -> Tensor:
        """Cosines, image by image."""
        cosine = []
        for item in self.items:
            if reload:
                bare.reload()
            image = bare.encode_images(view(item.handle.open())[None])
            cosine.append(cosines(image, bare.encode_prompts([item.prompt])))
        return torch.cat(cosine)

    def runner(self, scorers: Sequence[Scorer]) -> Tensor:
        """Cosines of every scorer, one scorer after the other."""
        batches = list(score_batches(scorers, self.items, batch_size=self.batch_size, workers=self.workers))
        return torch.cat([batch.scores[number].raw for number in range(len(scorers)) for batch in batches])

    def time(self, ways: Mapping[str, Callable[[], Tensor]], repeats: int) -> None:
        """Run ``ways`` side by side; every repeat begins with another one."""
        names = list(ways)
        for repeat in range(repeats):
            for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
                before, start = self._opened(), now(self.device)
                self.scores[name] = ways[name]()
                self.seconds.setdefault(name, []).append(now(self.device) - start)
                self.decodes[name] = self._opened() - before
                print(f"repeat {repeat + 1}: {name:8} {self.seconds[name][-1]:.2f} s", file=sys.stderr)

    def ratio(self, way: str, to: str) -> float:
        """Median over the repeats of time by time."""
        pairs = zip(self.seconds[way], self.seconds[to], strict=True)
        return statistics.median(mine / other for mine, other in pairs)

    def gaps(self) -> dict[str, float]:
        """The largest difference between the scores of two ways that should do the same work."""
        pairs = (("runner", "bare"), ("loop", "bare"), ("reload", "bare"), ("together", "separate"))
        return {f"{a} - {b}": float((self.scores[a] - self.scores[b]).abs().max()) for a, b in pairs}

    def _opened(self) -> int:
        return sum(item.handle.opened for item in self.items if isinstance(item.handle, CountedImage))


def now(device: str) -> float:
    """Seconds, after all that the device was given to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def cosines(image: Tensor, text: Tensor) -> Tensor:
    """Row by row, in float32, on the CPU."""
    return nn.functional.cosine_similarity(image.float(), text.float()).cpu()


def write_checkpoint(path: Path, architecture: str, seed: int) -> None:
    """Random weights of ``architecture`` in half precision, under ``state_dict``, unless the file is there."""
    if path.exists():
        return
    torch.manual_seed(seed)
    model = open_clip.CLIP(**open_clip.get_model_config(architecture))
    with atomic_write(path) as temporary:
        torch.save({"state_dict": {name: value.half() for name, value in model.state_dict().items()}}, temporary)


def write_clip_model(folder: Path, architecture: str, seed: int) -> None:
    """Random weights of the same sizes as a transformers folder in half precision, unless it is there."""
    if (folder / "model.safetensors").exists():
        return
    config = open_clip.get_model_config(architecture)
    text, image = config["text_cfg"], config["vision_cfg"]
    torch.manual_seed(seed)
    sizes = CLIPConfig(
        text_config={
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "hidden_act": "gelu",
            "bos_token_id": 49406,
            "eos_token_id": 49407,
        },
        vision_config={
            "hidden_size": image["width"],
            "intermediate_size": int(image.get("mlp_ratio", 4) * image["width"]),
            "num_hidden_layers": image["layers"],
            "num_attention_heads": image["width"] // image.get("head_width", 64),
            "image_size": image["image_size"],
            "patch_size": image["patch_size"],
            "hidden_act": "gelu",
        },
        projection_dim=config["embed_dim"],
    )
    CLIPModel(sizes).half().save_pretrained(folder)


def write_images(folder: Path, count: int, size: int) -> None:
    """``count`` JPEG files of ``size`` x ``size`` px with detail on every scale, and their prompts beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = np.zeros((size, size, 3))
        for cells in (4, 16, 64, 256):
            noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            pixels += np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC)) / 4
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=90)
        (folder / f"{number:04d}.txt").write_text(PROMPTS[number % len(PROMPTS)], "utf-8")


@torch.inference_mode()
def best_batch_size(bare: BareModel, views: Tensor, sizes: Sequence[int]) -> int:
    """The size with the fastest image tower, each after a pass to warm up."""
    seconds = {}
    for size in dict.fromkeys(min(size, len(views)) for size in sizes):
        bare.encode_images(views[:1])
        start = now(bare.device)
        for part in views.split(size):
            bare.encode_images(part)
        seconds[size] = now(bare.device) - start
        print(f"batch size {size}: {len(views) / seconds[size]:.3f} images/s", file=sys.stderr)
    return min(seconds, key=lambda size: seconds[size])


def one_scorer(given: argparse.Namespace, bench: Bench, checkpoint: Path) -> Bench:
    """Time the four ways to score by one scorer; returns the bench with the batch size that was best."""
    spec = f"hpsv2={checkpoint},version=v2.0,architecture={given.architecture}"
    scorers = load_scorers([spec], device=given.device, dtype=DTYPES[given.dtype])
    model = open_clip.CLIP(**open_clip.get_model_config(given.architecture)).to(given.device, DTYPES[given.dtype])
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    bare = BareModel(model, tokenizer, checkpoint, given.device, DTYPES[given.dtype])
    bare.reload()
    view = scorers[0].view
    list(score_batches(scorers, bench.items[:1]))  # to warm up
    views = torch.stack([view(item.handle.open()) for item in bench.items])
    bench = replace(bench, batch_size=best_batch_size(bare, views, given.batch_sizes))
    ways = {
        "bare": lambda: bench.bare(bare, views),
        "runner": lambda: bench.runner(scorers),
        "loop": lambda: bench.loop(bare, view, reload=False),
        "reload": lambda: bench.loop(bare, view, reload=True),
    }
    bench.time(ways, given.repeats)
    return bench


def three_scorers(given: argparse.Namespace, bench: Bench, checkpoints: Sequence[Path], clip_model: Path) -> None:
    """Time three scorers of one size over the same images, in one call and in three."""
    specs = [
        f"hpsv2={checkpoints[0]},version=v2.0,architecture={given.architecture}",
        f"second:hpsv2={checkpoints[1]},version=v2.1,architecture={given.architecture}",
        f"pickscore={clip_model}",
    ]
    scorers = load_scorers(specs, device=given.device, dtype=DTYPES[given.dtype])
    list(score_batches(scorers, bench.items[:1]))  # to warm up
    ways = {
        "together": lambda: bench.runner(scorers),
        "separate": lambda: torch.cat([bench.runner([scorer]) for scorer in scorers]),
    }
    bench.time(ways, given.shared_repeats)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Make the files, run every way. Raises SystemExit where two ways do not give the same scores."""
    name = given.architecture.replace("/", "-").replace(":", "-")
    checkpoints = [given.work / f"{name}-{seed}.pt" for seed in (0, 1)]
    for seed, path in enumerate(checkpoints):
        write_checkpoint(path, given.architecture, seed)
    clip_model = given.work / f"{name}-clip"
    write_clip_model(clip_model, given.architecture, 2)
    images = given.work / f"images-{given.num_images}-{given.size}"
    write_images(images, given.num_images, given.size)
    items = [replace(item, handle=CountedImage(item.handle)) for item in open_images(images)]
    # The first part's models are let go before the second part's are loaded.
    bench = one_scorer(given, Bench(items, given.device, given.workers), checkpoints[0])
    three_scorers(given, bench, checkpoints, clip_model)
    gaps = bench.gaps()
    if not max(gaps.values()) <= TOLERANCE[given.dtype]:
        sys.exit(f"the ways disagree by more than {TOLERANCE[given.dtype]}: {gaps}")
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()}
    ratios = {f"{way} / {to}": bench.ratio(way, to) for way, to in RATIOS}
    machine = torch.cuda.get_device_name() if given.device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    return {
        "settings": settings,
        "machine": machine,
        "batch_size": bench.batch_size,
        "seconds": bench.seconds,
        "ratios": ratios,
        "decodes": bench.decodes,
        "largest_differences": gaps,
    }


def table(measured: Mapping[str, Any]) -> str:
    """What was measured, as Markdown."""
    given = measured["settings"]
    lines = [
        f"{given['architecture']}, {given['num_images']} JPEG images of {given['size']} x {given['size']} px,"
        f" {len(PROMPTS)} prompts, batch size {measured['batch_size']}, {given['dtype']} on {given['device']}"
        f" ({measured['machine']}); medians of {given['repeats']} and {given['shared_repeats']} repeats.\n",
        "| way | seconds | images decoded |",
        "| --- | --- | --- |",
    ]
    for way, seconds in measured["seconds"].items():
        lines.append(f"| {way} | {statistics.median(seconds):.3g} | {measured['decodes'][way]} |")
    lines += ["\n| ratio | median | bar |", "| --- | --- | --- |"]
    for name, ratio in measured["ratios"].items():
        lines.append(f"| {name} | {ratio:.3f} | {f'at most {BAR}' if name == 'runner / bare' else ''} |")
    gap = max(measured["largest_differences"].values())
    return "\n".join([*lines, f"\nLargest difference of a score between two ways: {gap:.1e}."])


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, print the table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--architecture", default="ViT-H-14", help="a plain CLIP of open_clip")
    add("--num_images", type=int, default=8)
    add("--size", type=int, default=1024, help="side of the images, px")
    add("--batch_sizes", type=int, nargs="+", default=[4, 8], help="the best of them is used")
    add("--repeats", type=int, default=3, help="of the ways to score by one scorer")
    add("--shared_repeats", type=int, default=1, help="of the ways to score by three")
    add("--device", default="cpu")
    add("--dtype", choices=DTYPES, default="float32")
    add("--threads", type=int, help="torch's threads (default: torch's own choice)")
    add("--workers", type=int, default=4, help="the runner's threads that decode and cut")
    add("--work", type=Path, default=Path(gettempdir()) / "dfb-bench-scorers", help="checkpoints and images are kept")
    add("--out", type=Path, help="write the numbers here as JSON")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    given.work.mkdir(parents=True, exist_ok=True)
    measured = measure(given)
    if given.out:
        with atomic_write(given.out) as temporary:
            temporary.write_text(json.dumps(measured, indent=2), "utf-8")
    print(table(measured))


if __name__ == "__main__":
    main()
