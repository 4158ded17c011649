"""``dfb generate``: prompts x seeds x model (+ LoRA) to a folder of images with its manifest."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .sampling import add_sampling_flags, check_sampling_flags, load_sampler

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
    add(
        "--noise",
        choices=["seed", "prompt"],
        default="seed",
        help="start from the noise of the bare seed, as diffusers does, the same for every prompt; or from noise of its "
        "own for each prompt and seed, so that prompts are independent (default seed)",
    )
    add_sampling_flags(parser)
    add("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="precision of the network")
    add("--device", help="cuda, cpu, ...; the best one there is by default")
    add("--batch_size", "--batch-size", type=int, default=8, help="images at once (default 8)")
    add("--overwrite", action="store_true", help="replace the images of another run in the folder")
    return parser


def run(argv: Sequence[str]) -> None:
    """Generate images as ``argv`` says. Raises UserError for bad input."""
    arguments = build_parser().parse_args(argv)

    from ..errors import UserError
    from ..generation import generate, own_noise, read_prompts

    if arguments.batch_size < 1:
        raise UserError(f"--batch_size: got {arguments.batch_size}", "allowed: 1 or more")
    check_sampling_flags(arguments)
    prompts = [record.prompt for record in read_prompts(arguments.prompts)]
    loaded = load_sampler(arguments, dtype=arguments.dtype)
    loaded.note_truncated(prompts)
    own = arguments.noise == "prompt"
    records = generate(
        prompts,
        arguments.seeds,
        Path(arguments.output_dir),
        sampler=own_noise(loaded.sampler) if own else loaded.sampler,
        model_hash=loaded.model_hash,
        settings={**loaded.settings, **({"noise": "by prompt and seed"} if own else {})},
        batch_size=arguments.batch_size,
        overwrite=arguments.overwrite,
    )
    print(f"{len(records)} images in {arguments.output_dir}")
