"""``dfb benchmark``: a benchmark's prompts, a model or its images, and scorers to metrics, with a paired comparison."""

from __future__ import annotations

from collections.abc import Sequence

from ..catalog import check_name, names
from ..folders import is_main_process
from ..workflows.settings import BenchmarkSettings
from .flags import Flags
from .sampling import add_sampling_flags
from .scoring import add_scoring_flags
from .settings import add_flags


def build_parser() -> Flags:
    """All flags of the command."""
    parser = Flags(
        "dfb benchmark", "Run a benchmark: generate or find its images, score them, and report metrics with intervals."
    )
    add = parser.add_argument
    add("name", metavar="BENCHMARK", help=f"{', '.join(names('benchmark'))}, or your own: file.py:function")
    add("--output_dir", "--output-dir", required=True, help="folder to write")
    add(
        "--images",
        help="folder of images that are there: by place (<style>/00000.png; 00000_0.png for several) or with metadata",
    )
    of_what = "run, one of its steps (RUN@STEP, RUN@last, RUN@best), diffusers folder, .safetensors file of a whole model, or hub id"
    add("--model", help=f"what generates the images, in place of --images: {of_what}")
    add("--baseline", metavar="RUN", help="folder of another run of this benchmark, to compare with prompt by prompt")
    helps = {
        "prompts": "file, folder or hub id of the prompts; the benchmark's own by default",
        "tie_margin": "metrics this close count as a tie",
        "allow_missing": "go on without an image for every prompt; metrics then say that they are incomplete",
        "allow_short": "go on with another number of prompts than the published one; metrics then say so",
        "overwrite": "replace another run in the folder",
    }
    add_flags(parser, BenchmarkSettings, helps)
    of_models = {
        "seeds": "one image per prompt under each",
        "model_dtype": "precision of the network (default float32)",
        "generation_batch_size": "images at once",
    }
    generation = parser.add_argument_group("generation, with --model")
    add_flags(generation, BenchmarkSettings, of_models, seeds={"also": "seed"})
    add_sampling_flags(parser)
    add_scoring_flags(parser, required=False)
    return parser


def run(argv: Sequence[str]) -> None:
    """Run a benchmark as ``argv`` says. Raises UserError for bad input."""
    given = vars(build_parser().parse_args(argv))
    check_name("benchmark", given["name"])
    check_name("family", given.get("family") or "sd")

    from ..workflows.benchmarking import benchmark

    result = benchmark(**given)
    if is_main_process():
        folder = result.run.folder
        print(f"{result}\n\n{result.report}: open it; {folder / 'results.json'} holds its metrics")
