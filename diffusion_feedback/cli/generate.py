"""``dfb generate``: prompts x seeds x model (+ LoRA) to a folder of images, or a file of completions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..workflows.settings import GenerationSettings
from .flags import Flags
from .sampling import add_completion_flags, add_sampling_flags
from .settings import add_flags

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


def build_parser() -> Flags:
    """All flags of the command."""
    parser = Flags("dfb generate", "Generate one image, or some completions, for each prompt under each seed.", EPILOG)
    add = parser.add_argument
    add("model", metavar="MODEL", help="diffusers or transformers folder, hub id, or folder of a run (LoRA runs too)")
    add(
        "--prompts",
        type=Path,
        required=True,
        help=".txt (one a line), .json, .jsonl, .csv, .tsv or .parquet (column prompt, prompts, caption or text)",
    )
    add("--output_dir", "--output-dir", required=True, help="folder to write")
    helps = {
        "seeds": "each prompt is generated under each seed",
        "dtype": "precision of the network (default float32)",
        "device": "cuda, cpu, ...; the best one there is by default",
        "batch_size": "images or completions at once",
        "overwrite": "replace what another run wrote in the folder",
    }
    add_flags(parser, GenerationSettings, helps)
    families = "sd, sdxl or causal_lm (default: what the folder's files are, else sd)"
    add_sampling_flags(parser, families=families, noise=True)
    add_completion_flags(parser.add_argument_group("completions of a language model"))
    return parser


def run(argv: Sequence[str]) -> None:
    """Generate as ``argv`` says. Raises UserError for bad input."""
    given = vars(build_parser().parse_args(argv))

    from ..workflows.generating import generate

    generate(**given)
