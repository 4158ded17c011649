"""``dfb generate``: prompts x seeds x model (+ LoRA) to a folder of images, or a file of completions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..catalog import check_name
from ..folders import expand
from ..prompts.rows import read_rows
from ..workflows.settings import GenerationSettings
from .flags import Flags
from .sampling import add_completion_flags, add_sampling_flags
from .settings import add_flags


def build_parser() -> Flags:
    """All flags of the command."""
    parser = Flags("dfb generate", "Generate one image, or some completions, for each prompt under each seed.")
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="run (LoRA runs too), one of its steps (RUN@STEP, RUN@last, RUN@best), diffusers or transformers folder, .safetensors file of a whole model, or hub id",
    )
    forms = ".txt (one per line), .json, .jsonl, .csv, .tsv or .parquet (column prompt, prompts, caption or text)"
    add("--prompts", type=Path, required=True, help=forms)
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
    check_name("family", given.get("family") or "sd")
    next(
        iter(read_rows(expand(given["prompts"]))), None
    )  # says what is wrong with the file, before anything heavy is loaded

    from ..workflows.generating import generate

    generate(**given)
