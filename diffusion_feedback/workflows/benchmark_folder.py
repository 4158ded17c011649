"""The folder of one benchmark run: what stands in it, how it is written and read back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..catalog import Named, resolve
from ..catalog.rows import name_of
from ..catalog.sources import calling
from ..data.prompt_images import PromptImages
from ..data.scores import read_scores, write_scores
from ..documents import read_object
from ..errors import UserError, shown
from ..evaluation.benchmarks.benchmark import Benchmark, prompts_hash
from ..evaluation.benchmarks.run import BenchmarkRun, RunComparison, make_run
from ..evaluation.leakage import Leakage
from ..output_folders import OutputKind
from ..records import PromptRecord, ScoreRecord, write_json, write_text

SETTINGS, PROMPTS, SCORES, RESULTS = "benchmark.json", "prompts.jsonl", "scores.parquet", "results.json"
_AGAIN = "run the benchmark again with `overwrite`"
REPORT, README = "report.html", "README.md"
_NEEDED: Mapping[str, type] = {"benchmark": str, "prompts": str, "prompts_hash": str, "short": list}
_OPTIONAL: Mapping[str, type] = {"images": str, "seeds": list, "generation": dict, "recipes": dict}
RUNS = OutputKind(
    mark=SETTINGS,
    # Results first: without them a run counts as unfinished, whenever this is interrupted.
    own=(RESULTS, PROMPTS, SCORES, REPORT, README),
    # Where prompts and weights were read from may change: their hashes decide.
    free={(key,) for key in ("prompts", "own_prompts", "model", "lora", "recipes", "version")},
    foreign=f"is there already, and holds no {SETTINGS}",
    foreign_remedy="use another `output_dir`",
    changed="holds a run with {key} = {old}, this one has {new}",
    changed_remedy="use another `output_dir`, or `overwrite` to replace what is there",
)


# --- settings --------------------------------------------------------------------------------------------------------


def benchmark_of(named: Named) -> Benchmark:
    """The benchmark that ``named`` stands for; a user's own bears the name by which its runs find it again.

    Raises UserError for an unknown name, and for a function that makes no benchmark.
    """
    name = name_of(named)
    with calling(f"benchmark {name!r}"):
        benchmark = resolve("benchmark", named)()
    if not isinstance(benchmark, Benchmark):
        raise UserError(f"benchmark {name!r}: makes a {type(benchmark).__name__}", "return a Benchmark")
    return replace(benchmark, name=name)


def check_scored(run: BenchmarkRun, *, overwrite: bool) -> None:
    """Raise UserError where the folder of ``run`` holds scores by other weights, unless they are to be replaced."""
    before = read_object(run.folder / SETTINGS, _AGAIN).get("recipes")
    if before not in (None, run.settings["recipes"]) and not overwrite:
        problem = f"{run.folder}: holds scores of {before}, this run has {run.settings['recipes']}"
        raise UserError(problem, "use another `output_dir`, or `overwrite` to replace what is there")


# --- runs ------------------------------------------------------------------------------------------------------------


def write_run(run: BenchmarkRun, records: Sequence[ScoreRecord], comparison: RunComparison | None) -> None:
    """Write prompts, scores and results, each whole or not at all; results last."""
    lines = [
        json.dumps({"prompt": prompt.prompt, **prompt.extra, "images": list(images)}, ensure_ascii=False) + "\n"
        for prompt, images in zip(run.prompts, run.images, strict=True)
    ]
    write_text(run.folder / PROMPTS, "".join(lines))
    write_scores(records, run.folder / SCORES)
    write_json(run.folder / SETTINGS, run.settings, allow_nan=False)
    write_json(run.folder / RESULTS, run.to_json(comparison), allow_nan=False)


def load_run(folder: str | Path, *, name: str | None = None) -> BenchmarkRun:
    """Read a run back.

    Raises UserError for a folder that holds none, one that is not finished, and one whose files do not fit together.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        raise UserError(f"{folder}: no {SETTINGS}", "give the folder of a benchmark run")
    if not (folder / RESULTS).is_file():
        raise UserError(f"{folder}: no {RESULTS}, so the run is not finished", "run the same benchmark again")
    settings = read_object(folder / SETTINGS, _AGAIN, list(_NEEDED))
    for key, kind in {**_NEEDED, **_OPTIONAL}.items():
        if not isinstance(settings.get(key, kind()), kind):
            raise UserError(f"{folder / SETTINGS}: {key} is {shown(settings[key])}", _AGAIN)
    prompts, images = [], []
    try:
        for line in (folder / PROMPTS).read_text("utf-8").split("\n"):
            if line:
                row = json.loads(line)
                images.append(tuple(map(str, row.pop("images"))))
                prompts.append(PromptRecord(row.pop("prompt"), row))
        benchmark = benchmark_of(settings["benchmark"])
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise UserError(f"{folder}: {PROMPTS} or {SETTINGS} is damaged ({error!r})", _AGAIN) from error
    if prompts_hash(prompts) != settings["prompts_hash"]:
        raise UserError(f"{folder / PROMPTS}: these are not the prompts that the run was made with", _AGAIN)
    records = read_scores(folder / SCORES)
    run = make_run(folder, benchmark, settings, prompts, images, records, name=name)
    _check_results(run)
    return replace(run, leakage=Leakage.of_json(read_object(folder / RESULTS, _AGAIN).get("leakage")))


def _check_results(run: BenchmarkRun) -> None:
    """Raise UserError where results.json holds other means than the scores that stand beside it."""
    path = run.folder / RESULTS
    recorded = read_object(path, _AGAIN).get("scorers", {})
    for result in run.results:
        try:
            mean = recorded[result.scorer]["overall"]["mean"]
        except (KeyError, TypeError):
            mean = None
        if not isinstance(mean, float | int) or not math.isclose(mean, result.overall.mean, rel_tol=1e-9, abs_tol=1e-9):
            problem = f"{path}: the mean of {result.scorer} is {mean}, by {SCORES} it is {result.overall.mean}"
            raise UserError(problem, "one of the two was changed: run the same benchmark again")


def image_names(images: PromptImages) -> list[tuple[str, ...]]:
    """The names of each prompt's images."""
    return [tuple(item.name for item in items) for items in images.images]
