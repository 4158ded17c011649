"""``dfb benchmark``: a benchmark's prompts, a model or its images, and scorers to figures, with a paired comparison."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..folders import hold_folder
from ..workflows.scoring import SCORERS_HELP, add_scoring_flags
from ..workflows.settings import GenerationSettings, ImageSampling, ModelSource
from .flags import Flags
from .sampling import add_image_flags
from .settings import made_of

if TYPE_CHECKING:
    from ..data.prompt_images import PromptImages
    from ..data.prompt_sets import PromptSet
    from ..evaluation.benchmarks.benchmark import Benchmark
    from ..evaluation.benchmarks.run import BenchmarkRun
    from ..records import PromptRecord

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


def build_parser() -> argparse.ArgumentParser:
    """All flags of the command."""
    parser = Flags(
        prog="dfb benchmark",
        description="Run a benchmark: generate or find its images, score them, and report figures with intervals.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("benchmark", metavar="BENCHMARK", help="hpsv2, pickapic, partiprompts, drawbench or shapes")
    add("--output_dir", "--output-dir", required=True, help="folder to write")
    add("--prompts", help="file, folder or hub id of the prompts; the benchmark's own by default")
    add(
        "--images",
        help="folder of images that are there: by place (<style>/00000.png; 00000_0.png for several) or with metadata",
    )
    add("--model", help="diffusers folder or hub id to generate the images from, in place of --images")
    add("--baseline", metavar="RUN", help="folder of another run of this benchmark, to compare with prompt by prompt")
    add("--tie_margin", "--tie-margin", type=float, default=0.0, help="figures this close count as a tie (default 0)")
    add(
        "--allow_missing",
        "--allow-missing",
        action="store_true",
        help="go on without an image for every prompt; figures then say that they are incomplete",
    )
    add(
        "--allow_short",
        "--allow-short",
        action="store_true",
        help="go on with another number of prompts than the published one; figures then say so",
    )
    add("--overwrite", action="store_true", help="replace another run in the folder")
    generation = parser.add_argument_group("generation, with --model")
    generation.add_argument(
        "--seeds", "--seed", type=int, nargs="+", default=[0], help="one image a prompt under each (default 0)"
    )
    generation.add_argument(
        "--model_dtype",
        "--model-dtype",
        default="float32",
        choices=["float32", "bfloat16", "float16"],
        help="precision of the network (default float32)",
    )
    generation.add_argument(
        "--generation_batch_size", "--generation-batch-size", type=int, default=8, help="images at once (default 8)"
    )
    add_image_flags(parser)
    add_scoring_flags(parser, required=False)
    return parser


def run(argv: Sequence[str]) -> None:
    """Run a benchmark as ``argv`` says. Raises UserError for bad input."""
    arguments = build_parser().parse_args(argv)

    from ..catalog import resolve

    benchmark: Benchmark = resolve("benchmark", arguments.benchmark)()
    _check(arguments, benchmark)
    with hold_folder(Path(arguments.output_dir), "dfb benchmark"):
        _measure(arguments, benchmark)


def _measure(arguments: argparse.Namespace, benchmark: Benchmark) -> None:
    from ..data.prompt_images import find_images
    from ..errors import UserError
    from ..evaluation.benchmarks.run import compare_runs, make_run
    from ..reports.console import benchmark_summary
    from ..reports.pages.benchmark import write_pages
    from ..workflows.benchmark_folder import check_folder, image_names, open_folder, write_run
    from ..workflows.generating import draw_images
    from ..workflows.sampling import base_of_lora_run, open_image_sampler
    from ..workflows.scoring import process_state, score_items

    read, settings = _prompts(benchmark, arguments)
    prompts = list(read.prompts)
    baseline = _baseline(benchmark, settings, arguments)
    sampler = None
    if arguments.model:
        model, source = base_of_lora_run(arguments.model, made_of(arguments, ModelSource))
        sampling = made_of(arguments, ImageSampling, noise="prompt")
        sampler = open_image_sampler(model, source, sampling, _generation(arguments))
        settings |= {"model": model, "lora": source.lora, "model_hash": sampler.model.model_hash()}
        settings |= {"seeds": arguments.seeds, "generation": sampler.settings}
        found = None
    else:
        found = find_images(Path(arguments.images), prompts, read.read)
        _check_styles(benchmark, prompts, found, arguments)
        _say_images(found, benchmark, prompts, arguments)
        settings["images"] = str(Path(arguments.images).resolve())
    folder = Path(arguments.output_dir)
    state = process_state()
    if sampler is None:
        # Nothing is replaced before there is something to put in its place.
        check_folder(folder, settings, overwrite=arguments.overwrite)
    else:
        if state.is_main_process:
            open_folder(folder, settings, overwrite=arguments.overwrite)
        if state.num_processes > 1:
            remedy = "run the benchmark in one process first; or generate apart, and give `images`"
            raise UserError("`model` under accelerate launch: images are generated by one process", remedy)
        draw_images([prompt.prompt for prompt in prompts], sampler, folder, _generation(arguments))
        sampler = None  # its memory is the scorers' now
    found = found or find_images(folder, prompts)
    records = score_items([item for items in found.images for item in items], arguments)
    if not state.is_main_process:
        return
    settings["recipes"] = {record.scorer: record.recipe_id for record in records}
    done = make_run(folder, benchmark, settings, prompts, image_names(found), records)
    open_folder(folder, settings, overwrite=arguments.overwrite and not arguments.model)
    _check_scored(done, arguments)
    comparison = compare_runs(baseline, done, tie_margin=arguments.tie_margin) if baseline else None
    write_run(done, records, comparison)
    write_pages(done, comparison)
    print(benchmark_summary(done, comparison))
    print(f"\n{folder / 'report.html'}: open it; {folder / 'results.json'} holds its figures")


def _check(arguments: argparse.Namespace, benchmark: Benchmark) -> None:
    from ..devices import find_device
    from ..errors import UserError
    from ..scorers.loading import parse_spec

    if bool(arguments.model) == bool(arguments.images):
        given = "both are given" if arguments.model else "neither is given"
        raise UserError(f"--model or --images: {given}", "give a model to generate from, or a folder of its images")
    if not arguments.tie_margin >= 0:
        raise UserError(f"--tie_margin: got {arguments.tie_margin}", "allowed: 0 or more, in the unit of the scores")
    if arguments.generation_batch_size < 1:
        raise UserError(f"--generation_batch_size: got {arguments.generation_batch_size}", "allowed: 1 or more")
    made_of(arguments, ImageSampling, noise="prompt")
    _generation(arguments)
    if arguments.on_bad_image == "skip" and not arguments.allow_missing:
        raise UserError("--on_bad_image skip leaves prompts without a score", "give --allow_missing too")
    arguments.prompts = arguments.prompts or benchmark.prompts
    if arguments.prompts is None:
        raise UserError(f"benchmark {benchmark.name} has no prompts of its own", "give --prompts FILE")
    if arguments.baseline and Path(arguments.baseline).resolve() == Path(arguments.output_dir).resolve():
        raise UserError(f"--baseline {arguments.baseline}: is the --output_dir", "compare with another run")
    arguments.scorer = arguments.scorer or list(benchmark.scorers)
    # Before hours of generating, and before anything is replaced.
    for spec in arguments.scorer:
        parse_spec(spec)
    if arguments.device:
        find_device(arguments.device)


def _prompts(benchmark: Benchmark, arguments: argparse.Namespace) -> tuple[PromptSet, dict[str, Any]]:
    """The prompts, and the settings of the run as far as they decide."""
    from .. import __version__
    from ..data.prompt_sets import read_prompt_set
    from ..errors import UserError
    from ..evaluation.benchmarks.benchmark import prompts_hash

    source: str = arguments.prompts
    found = read_prompt_set(
        source,
        files=benchmark.files,
        style_columns=benchmark.style_columns,
        style_of=benchmark.style_of,
        unique=benchmark.unique,
    )
    if found.duplicates:
        print(
            f"note: {found.duplicates} prompts stand more than once in {source}; each counts once, with all of its images"
        )
    short = benchmark.shortfalls(found.prompts)
    if short and not arguments.allow_short:
        problem = f"{source}: not the prompts of benchmark {benchmark.name}: {'; '.join(short)}"
        raise UserError(problem, "get the whole files, or give --allow_short and compare with no published figure")
    whole = benchmark.whole_styles(found.prompts) if short else []
    apart = f", but those of {', '.join(whole)} do, style by style" if whole else ""
    for line in short:
        print(f"note: {line}; figures do not compare with published ones{apart}")
    settings = {
        "benchmark": benchmark.name,
        "prompts": source,
        "prompts_hash": prompts_hash(found.prompts),
        "num_prompts": len(found.prompts),
        "short": short,
        "scorers": arguments.scorer,
        "scoring_dtype": arguments.dtype,
        "allow_missing": arguments.allow_missing,
        "version": __version__,
    }
    return found, settings


def _baseline(benchmark: Benchmark, settings: dict[str, Any], arguments: argparse.Namespace) -> BenchmarkRun | None:
    """The run to compare with, looked at before the work begins."""
    if not arguments.baseline:
        return None
    from ..evaluation.benchmarks.run import check_comparable
    from ..workflows.benchmark_folder import load_run

    found = load_run(arguments.baseline)
    check_comparable(found, benchmark.name, settings["prompts_hash"], "this run")
    return found


def _check_styles(
    benchmark: Benchmark, prompts: Sequence[PromptRecord], found: PromptImages, arguments: argparse.Namespace
) -> None:
    """Refuse one folder of numbers for prompts of some styles alone: nobody can tell which styles the numbers count."""
    from ..data.tabular import find_metadata
    from ..errors import UserError
    from ..evaluation.benchmarks.benchmark import style_of

    given = {style_of(prompt) for prompt in prompts}
    is_flat = not any("/" in item.name for items in found.images for item in items)
    if set(benchmark.styles) - given and is_flat and find_metadata(Path(arguments.images)) is None:
        problem = (
            f"{arguments.images}: numbered images in one folder, and the prompts of {', '.join(sorted(given))} alone"
        )
        raise UserError(problem, f"put the images of each style into a folder of its own: {min(given)}/00000.png")


def _say_images(
    found: PromptImages, benchmark: Benchmark, prompts: Sequence[PromptRecord], arguments: argparse.Namespace
) -> None:
    """Say what is missing and what is left over.

    Raises UserError for missing images unless they are allowed, and where a style of the benchmark has none at all.
    """
    from ..errors import UserError
    from ..evaluation.benchmarks.benchmark import style_of

    if found.unused:
        names = ", ".join(found.left[:3]) + (", ..." if found.unused > 3 else "")
        print(
            f"note: {found.unused} images of {arguments.images} belong to no prompt, or to one that has its image: {names}"
        )
    if found.note:
        print(f"note: {found.note}")
    if not found.missing:
        return
    first = "\n".join(f"  {name}" for name in found.missing[:20])
    problem = f"{arguments.images}: {len(found.missing)} images are missing, of {len(found.images)} prompts; the first of them:\n{first}"
    if not arguments.allow_missing:
        raise UserError(problem, "generate them, or give --allow_missing for incomplete figures")
    there = {style_of(prompt) for prompt, images in zip(prompts, found.images, strict=True) if images}
    bare = [style for style in benchmark.style_order(prompts) if style not in there]
    if bare:
        raise UserError(f"{arguments.images}: no image at all of {', '.join(bare)}", benchmark.without_styles)
    print(f"note: {problem}")


def _generation(arguments: argparse.Namespace) -> GenerationSettings:
    return GenerationSettings(
        seeds=arguments.seeds,
        dtype=arguments.model_dtype,
        device=arguments.device,
        batch_size=arguments.generation_batch_size,
        overwrite=arguments.overwrite,
    )


def _check_scored(run: BenchmarkRun, arguments: argparse.Namespace) -> None:
    """Refuse a result of other weights than the one that the folder holds."""
    from ..documents import read_object
    from ..errors import UserError
    from ..workflows.benchmark_folder import SETTINGS

    before = read_object(run.folder / SETTINGS, "run dfb benchmark again with --overwrite").get("recipes")
    if before not in (None, run.settings["recipes"]) and not arguments.overwrite:
        problem = f"{run.folder}: holds scores of {before}, this run has {run.settings['recipes']}"
        raise UserError(problem, "use another --output_dir, or --overwrite to replace what is there")
