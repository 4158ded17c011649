"""``dfb generate``: prompts x seeds x model (+ LoRA) to a folder of images, or a file of completions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..folders import hold_folder
from ..workflows.completing import (
    add_completion_flags,
    drawing_of,
    fill_completion_flags,
    given_completion_flags,
    is_language_model,
    load_writer,
    read_text_prompts,
    wants_turns,
)
from ..workflows.sampling import add_sampling_flags, check_sampling_flags, load_sampler, take_lora_run
from .flags import Flags

EPILOG = """examples:
  dfb generate assets/shapes-sd --prompts assets/prompts/heldout.txt --output_dir out/base
  dfb generate runs/demo/dpo --prompts prompts.txt --seeds 0 1 2 3 --output_dir out/tuned
  dfb generate assets/shapes-sd --lora runs/demo/dpo/checkpoints/step-000150 --prompts prompts.txt --output_dir out/150
  dfb generate stable-diffusion-v1-5/stable-diffusion-v1-5 --dtype float16 --prompts prompts.jsonl --output_dir out
  dfb generate runs/text_dpo --prompts prompts.jsonl --num_samples 4 --max_new_tokens 32 --output_dir out/completions
  dfb generate Qwen/Qwen2.5-0.5B-Instruct --family causal_lm --prompts prompts.jsonl --output_dir out/completions

Of images the folder is an imagefolder: images/00012-s3.png is prompt 12 under seed 3, metadata.jsonl holds prompt, seed,
settings and the hash of the model. Of a language model (a transformers or adapter folder, or --family causal_lm) it holds
completions.jsonl: prompt, completion, its tokens, seed, number of the sample, settings and the hash of the model; prompts
are texts or conversations in any form that dfb train reads. Run the same command again to go on after an interruption.
"""

_IMAGE_FLAGS = (
    "noise",
    "lora",
    "variant",
    "num_inference_steps",
    "guidance_scale",
    "negative_prompt",
    "height",
    "width",
)


def build_parser() -> argparse.ArgumentParser:
    """All flags of the command."""
    parser = Flags(
        prog="dfb generate",
        description="Generate one image, or some completions, for each prompt under each seed.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="diffusers or transformers folder, hub id, or folder of a run (LoRA runs too)")
    add(
        "--prompts",
        required=True,
        help=".txt (one a line), .json, .jsonl, .csv, .tsv or .parquet (column prompt, prompts, caption or text)",
    )
    add("--output_dir", "--output-dir", required=True, help="folder to write")
    add("--seeds", type=int, nargs="+", default=[0], help="each prompt is generated under each seed (default 0)")
    add(
        "--noise",
        choices=["seed", "prompt"],
        default="seed",
        help="start from the noise of the bare seed, as diffusers does, the same for every prompt; or from noise of its "
        "own for each prompt and seed, so that prompts are independent (default seed)",
    )
    add_sampling_flags(parser, families="sd, sdxl or causal_lm (default: what the folder's files are, else sd)")
    parser.set_defaults(family=None)
    add_completion_flags(parser.add_argument_group("completions of a language model"))
    add("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="precision of the network")
    add("--device", help="cuda, cpu, ...; the best one there is by default")
    add("--batch_size", "--batch-size", type=int, default=8, help="images or completions at once (default 8)")
    add("--overwrite", action="store_true", help="replace what another run wrote in the folder")
    return parser


def run(argv: Sequence[str]) -> None:
    """Generate as ``argv`` says. Raises UserError for bad input."""
    parser = build_parser()
    arguments = parser.parse_args(argv)

    from ..errors import UserError

    if arguments.batch_size < 1:
        raise UserError(f"--batch_size: got {arguments.batch_size}", "allowed: 1 or more")
    check_sampling_flags(arguments)
    take_lora_run(arguments)
    draw = _complete
    if is_language_model(arguments.model, arguments.family):
        given = [name for name in _IMAGE_FLAGS if getattr(arguments, name) != parser.get_default(name)]
        _refuse(given, arguments.model, "writes texts")
    else:
        _refuse(given_completion_flags(arguments), arguments.model, "makes images")
        arguments.family = arguments.family or "sd"
        draw = _draw_images
    with hold_folder(Path(arguments.output_dir), "dfb generate"):
        draw(arguments)


def _refuse(given: Sequence[str], model: str, what: str) -> None:
    from ..errors import UserError

    if given:
        taken = "" if Path(model).exists() else "is no folder here, and by its name "
        problem = f"--{given[0]}: means nothing for {model}, which {taken}{what}"
        raise UserError(problem, "leave it out, or say with --family what the model is")


def _draw_images(arguments: argparse.Namespace) -> None:
    from ..generation import generate, own_noise
    from ..prompts import read_prompts

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


def _complete(arguments: argparse.Namespace) -> None:
    from ..errors import UserError
    from ..generation import COMPLETIONS, complete_prompts

    fill_completion_flags(arguments)
    prompts = read_text_prompts(arguments.prompts, in_turns=wants_turns(arguments))
    writer = load_writer(
        arguments.model,
        drawing_of(arguments),
        revision=arguments.revision,
        dtype=arguments.dtype,
        device=arguments.device,
        chat_template=arguments.chat_template,
    )
    for note in writer.notes(prompts):
        print(f"note: {note}")
    path = Path(arguments.output_dir) / COMPLETIONS
    if others := sorted(each.name for each in path.parent.glob("[!.]*") if each.name != COMPLETIONS):
        raise UserError(f"{path.parent}: is there and holds {others[0]}", "choose another output_dir")
    records = complete_prompts(
        prompts,
        path,
        sampler=writer,
        seeds=arguments.seeds,
        num_samples=arguments.num_samples,
        model_hash=writer.model.model_hash(),
        settings=writer.settings,
        batch_size=arguments.batch_size,
        overwrite=arguments.overwrite,
    )
    ended = sum(record.is_finished for record in records)
    print(f"{path}: {len(records)} completions of {len(prompts)} prompts, {ended} of them came to their end")
