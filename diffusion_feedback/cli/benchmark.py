"""``dfb benchmark``: a benchmark's prompts, a model or its images, and scorers to metrics, with a paired comparison."""

from __future__ import annotations

from collections.abc import Sequence

from ..catalog import names
from ..folders import is_main_process
from ..workflows.settings import BenchmarkSettings
from .flags import Flags
from .sampling import add_sampling_flags
from .scoring import SCORERS_HELP, add_scoring_flags
from .settings import add_flags

EPILOG = f"""benchmarks:
  hpsv2         4 styles x 800 prompts of zhwang/HPDv2; images <style>/00000.jpg; reported as published
  pickapic      any file of prompts, each prompt once (--prompts)
  partiprompts  1,632 prompts in 12 categories
  drawbench     200 prompts in 11 categories
  shapes        held-out captions of the embedded world, judged by its exact verifier

examples:
  dfb benchmark shapes --model assets/shapes-sd --num_inference_steps 15 --guidance_scale 2 --output_dir runs/bench-base
  dfb benchmark shapes --model assets/shapes-sd --lora runs/demo/dpo --num_inference_steps 15 --guidance_scale 2 \\
      --baseline runs/bench-base --output_dir runs/bench-dpo
  dfb benchmark hpsv2 --images sdxl-images --scorer hpsv2=HPS_v2.1_compressed.pt pickscore --output_dir runs/bench-sdxl
  dfb benchmark partiprompts --prompts PartiPrompts.tsv --model stabilityai/stable-diffusion-xl-base-1.0 --family sdxl \\
      --output_dir runs/parti

{SCORERS_HELP}
Figures of HPSv2 are 100 x cosine, as published, and say so; scores.parquet holds the cosine. One style of hpsv2 by itself:
--prompts FOLDER/photo.json --allow_short.
The folder holds scores.parquet, results.json, report.html and, where they were generated, the images; README.md there
explains the rest. Run the same command again to go on after an interruption. dfb report joins several such folders.
"""


def build_parser() -> Flags:
    """All flags of the command."""
    parser = Flags(
        "dfb benchmark",
        "Run a benchmark: generate or find its images, score them, and report metrics with intervals.",
        EPILOG,
    )
    add = parser.add_argument
    add(
        "name",
        metavar="BENCHMARK",
        help=f"{', '.join(names('benchmark'))}, or your own: file.py:function",
    )
    add("--output_dir", "--output-dir", required=True, help="folder to write")
    add(
        "--images",
        help="folder of images that are there: by place (<style>/00000.png; 00000_0.png for several) or with metadata",
    )
    add("--model", help="diffusers folder or hub id to generate the images from, in place of --images")
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
        "seeds": "one image a prompt under each",
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

    from ..workflows.benchmarking import benchmark

    result = benchmark(**given)
    if is_main_process():
        folder = result.run.folder
        print(f"{result}\n\n{result.report}: open it; {folder / 'results.json'} holds its metrics")
