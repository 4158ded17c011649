"""``dfb generate``: prompts x seeds x model (+ LoRA) to a folder of images with its manifest."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

EPILOG = """examples:
  dfb generate assets/shapes-sd --prompts assets/prompts/heldout.txt --output_dir out/base
  dfb generate assets/shapes-sd --lora runs/demo/dpo --prompts prompts.txt --seeds 0 1 2 3 --output_dir out/tuned
  dfb generate stable-diffusion-v1-5/stable-diffusion-v1-5 --dtype float16 --prompts prompts.jsonl --output_dir out

The folder is an imagefolder: images/00012-s3.png is prompt 12 under seed 3, metadata.jsonl holds prompt, seed, settings
and the hash of the model. Run the same command again to go on after an interruption.
"""


def build_parser() -> argparse.ArgumentParser:
    """All flags of the command."""
    parser = argparse.ArgumentParser(
        prog="dfb generate",
        description="Generate one image for each prompt under each seed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="diffusers folder or hub id")
    add("--prompts", required=True, help=".txt (one a line), .jsonl, .csv or .parquet (column prompt, caption or text)")
    add("--output_dir", "--output-dir", required=True, help="folder to write")
    add("--seeds", type=int, nargs="+", default=[0], help="each prompt is generated under each seed (default 0)")
    add("--family", default="sd", help="model family: sd or sdxl (default sd)")
    add("--lora", help="folder, file or hub id of LoRA weights")
    add("--revision", help="branch, tag or commit on the hub")
    add("--variant", help="weight variant, such as fp16")
    add("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="precision of the network")
    add("--device", help="cuda, cpu, ...; the best one there is by default")
    add("--batch_size", "--batch-size", type=int, default=8, help="images at once (default 8)")
    add(
        "--num_inference_steps", "--num-inference-steps", type=int, default=30, help="steps of the sampler (default 30)"
    )
    add("--guidance_scale", "--guidance-scale", type=float, default=7.5, help="classifier-free guidance (default 7.5)")
    add("--negative_prompt", "--negative-prompt", help="what the images should not show")
    add("--height", type=int, help="px; the model's own by default")
    add("--width", type=int, help="px; the model's own by default")
    add("--overwrite", action="store_true", help="replace the images of another run in the folder")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    from ..errors import UserError

    for name in ("batch_size", "num_inference_steps"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name}: got {getattr(arguments, name)}", "allowed: 1 or more")
    if min(arguments.seeds) < 0 or len(set(arguments.seeds)) < len(arguments.seeds):
        raise UserError(f"--seeds: got {arguments.seeds}", "allowed: distinct numbers, 0 or more")
    for name in ("height", "width"):
        value = getattr(arguments, name)
        if value is not None and (value < 8 or value % 8):
            raise UserError(f"--{name}: got {value}", "allowed: multiples of 8")


def run(argv: Sequence[str]) -> None:
    """Generate images as ``argv`` says. Raises UserError for bad input."""
    arguments = build_parser().parse_args(argv)
    _check(arguments)

    import torch

    from ..catalog import resolve
    from ..generation import generate, read_prompts

    prompts = [record.prompt for record in read_prompts(arguments.prompts)]
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    denoiser = resolve("family", arguments.family)(
        arguments.model,
        revision=arguments.revision,
        variant=arguments.variant,
        dtype=getattr(torch, arguments.dtype),
        device=device,
    )
    if arguments.lora:
        denoiser.load_lora(arguments.lora)
    names = ("num_inference_steps", "guidance_scale", "negative_prompt", "height", "width")
    settings: dict[str, Any] = {n: getattr(arguments, n) for n in names if getattr(arguments, n) is not None}

    def sampler(batch: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        call = dict(settings)
        if "negative_prompt" in call:
            call["negative_prompt"] = [call["negative_prompt"]] * len(batch)
        images: list[Image.Image] = denoiser.sample(denoiser.network, batch, seeds, **call)
        return images

    cut = denoiser.count_truncated(prompts)
    if cut:
        print(f"note: {cut} of {len(prompts)} prompts are longer than the text encoder reads; their ends are ignored")
    records = generate(
        prompts,
        arguments.seeds,
        Path(arguments.output_dir),
        sampler=sampler,
        model_hash=denoiser.model_hash(),
        settings={**settings, "dtype": arguments.dtype},
        batch_size=arguments.batch_size,
        overwrite=arguments.overwrite,
    )
    print(f"{len(records)} images in {arguments.output_dir}")
