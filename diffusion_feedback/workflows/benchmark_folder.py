"""The folder of one benchmark run: what stands in it, how it is written and read back, and two of them side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..data.prompt_images import PromptImages
    from ..evaluation.benchmarks.benchmark import Benchmark, PromptValues, ScorerResult
    from ..evaluation.benchmarks.paired import ScorerComparison
    from ..records import PromptRecord, ScoreRecord

SETTINGS, PROMPTS, SCORES, RESULTS = "benchmark.json", "prompts.jsonl", "scores.parquet", "results.json"
REPORT, README = "report.html", "README.md"
_NEEDED: Mapping[str, type] = {"benchmark": str, "prompts": str, "prompts_hash": str, "short": list}
_OPTIONAL: Mapping[str, type] = {"images": str, "seeds": list, "generation": dict, "recipes": dict}
# What may change while the run stays the same: where its prompts and weights were read from, as their hashes decide.
_FREE = ("prompts", "model", "lora", "recipes", "version")


@dataclass(frozen=True, slots=True)
class BenchmarkRun:
    """A finished run: ``images[i]`` are the files of prompt i relative to ``image_root``; ``values`` and ``results``
    are by scorer, in one order.
    """

    name: str
    folder: Path
    benchmark: Benchmark
    settings: Mapping[str, Any]
    prompts: Sequence[PromptRecord]
    images: Sequence[Sequence[str]]
    image_root: Path
    values: Sequence[PromptValues]
    results: Sequence[ScorerResult]

    @property
    def styles(self) -> list[str]:
        """The style of each prompt."""
        from ..evaluation.benchmarks.benchmark import style_of

        return [style_of(prompt) for prompt in self.prompts]

    @property
    def missing(self) -> int:
        """Prompts without a scored image."""
        return max(result.overall.missing for result in self.results)

    def picture(self, index: int) -> Path:
        """The first image of prompt ``index``."""
        return self.image_root / self.images[index][0]


# --- settings --------------------------------------------------------------------------------------------------------


def check_folder(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Raise UserError where ``folder`` holds another run that is not to be replaced, or other things than a run."""
    from ..errors import UserError

    path = folder / SETTINGS
    if not path.is_file():
        # Not even --overwrite replaces what no run has written.
        if folder.exists() and (not folder.is_dir() or any(p.name[0] != "." for p in folder.iterdir())):
            raise UserError(f"{folder}: is there already, and holds no {SETTINGS}", "use another --output_dir")
    elif not overwrite:
        found = _read_json(path)
        for key in sorted({*found, *settings} - set(_FREE)):
            if found.get(key) != settings.get(key):
                problem = f"{folder}: holds a run with {key} = {_short(found.get(key))}, this one has {_short(settings.get(key))}"
                raise UserError(problem, "use another --output_dir, or --overwrite to replace what is there")


def open_folder(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make ``folder`` this run's: keep what is there when the settings are the same, clear it when told to.

    Raises UserError as ``check_folder`` does, and where the folder cannot be written.
    """
    from ..errors import UserError
    from ..records import atomic_write

    check_folder(folder, settings, overwrite=overwrite)
    if (folder / SETTINGS).is_file() and not overwrite:
        return
    try:
        # Results first: without them a run counts as unfinished, whenever this is interrupted.
        for name in (RESULTS, PROMPTS, SCORES, REPORT, README):
            (folder / name).unlink(missing_ok=True)
        with atomic_write(folder / SETTINGS) as temporary:
            temporary.write_text(_dump(settings), "utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})", "use another --output_dir") from error


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:197] + "..."


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _read_json(path: Path) -> dict[str, Any]:
    from ..documents import read_object

    return read_object(path, "run dfb benchmark again with --overwrite")


# --- runs ------------------------------------------------------------------------------------------------------------


def make_run(
    folder: Path,
    benchmark: Benchmark,
    settings: Mapping[str, Any],
    prompts: Sequence[PromptRecord],
    images: Sequence[Sequence[str]],
    records: Sequence[ScoreRecord],
    *,
    name: str | None = None,
) -> BenchmarkRun:
    """A run out of its prompts, the names of their images, and scores. Raises UserError for scores that do not fit."""
    from ..evaluation.benchmarks.benchmark import evaluate, prompt_values

    values = prompt_values(images, records)
    results = [evaluate(benchmark, prompts, found) for found in values]
    root = Path(settings["images"]) if settings.get("images") else folder
    return BenchmarkRun(
        name or folder.resolve().name, folder, benchmark, settings, prompts, images, root, values, results
    )


def write_run(run: BenchmarkRun, records: Sequence[ScoreRecord], comparison: Mapping[str, Any] | None) -> None:
    """Write prompts, scores and results, each whole or not at all; results last."""
    from ..data.scores import write_scores
    from ..records import atomic_write

    lines = [
        json.dumps({"prompt": prompt.prompt, **prompt.extra, "images": list(images)}, ensure_ascii=False) + "\n"
        for prompt, images in zip(run.prompts, run.images, strict=True)
    ]
    with atomic_write(run.folder / PROMPTS) as file:
        file.write_text("".join(lines), "utf-8")
    write_scores(records, run.folder / SCORES)
    with atomic_write(run.folder / SETTINGS) as file:
        file.write_text(_dump(run.settings), "utf-8")
    with atomic_write(run.folder / RESULTS) as file:
        file.write_text(_dump(results_json(run, comparison)), "utf-8")


def load_run(folder: str | Path, *, name: str | None = None) -> BenchmarkRun:
    """Read a run back.

    Raises UserError for a folder that holds none, one that is not finished, and one whose files do not fit together.
    """
    from ..catalog import resolve
    from ..data.scores import read_scores
    from ..errors import UserError
    from ..evaluation.benchmarks.benchmark import prompts_hash
    from ..records import PromptRecord

    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        raise UserError(f"{folder}: no {SETTINGS}", "give a folder that dfb benchmark wrote")
    if not (folder / RESULTS).is_file():
        raise UserError(f"{folder}: no {RESULTS}, so the run is not finished", "run the same dfb benchmark again")
    settings = _read_json(folder / SETTINGS)
    remedy = "run dfb benchmark again with --overwrite"
    if absent := [key for key in _NEEDED if key not in settings]:
        raise UserError(f"{folder / SETTINGS}: no {', '.join(absent)}", remedy)
    for key, kind in {**_NEEDED, **_OPTIONAL}.items():
        if not isinstance(settings.get(key, kind()), kind):
            raise UserError(f"{folder / SETTINGS}: {key} is {_short(settings[key])}", remedy)
    prompts, images = [], []
    try:
        for line in (folder / PROMPTS).read_text("utf-8").split("\n"):
            if line:
                row = json.loads(line)
                images.append(tuple(map(str, row.pop("images"))))
                prompts.append(PromptRecord(row.pop("prompt"), row))
        benchmark = resolve("benchmark", settings["benchmark"])()
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise UserError(f"{folder}: {PROMPTS} or {SETTINGS} is damaged ({error!r})", remedy) from error
    if prompts_hash(prompts) != settings["prompts_hash"]:
        raise UserError(f"{folder / PROMPTS}: these are not the prompts that the run was made with", remedy)
    records = read_scores(folder / SCORES)
    run = make_run(folder, benchmark, settings, prompts, images, records, name=name)
    _check_results(run)
    return run


def _check_results(run: BenchmarkRun) -> None:
    """Raise UserError where results.json tells other means than the scores that stand beside it."""
    from ..errors import UserError

    path = run.folder / RESULTS
    told = _read_json(path).get("scorers")
    told = told if isinstance(told, dict) else {}
    for result in run.results:
        overall = told.get(result.scorer, {}).get("overall", {}) if isinstance(told.get(result.scorer), dict) else {}
        mean = overall.get("mean") if isinstance(overall, dict) else None
        if not isinstance(mean, float | int) or not math.isclose(mean, result.overall.mean, rel_tol=1e-9, abs_tol=1e-9):
            problem = f"{path}: the mean of {result.scorer} is {mean}, by {SCORES} it is {result.overall.mean}"
            raise UserError(problem, "one of the two was changed: run the same dfb benchmark again")


def results_json(run: BenchmarkRun, comparison: Mapping[str, Any] | None) -> dict[str, Any]:
    """What results.json holds: figures by scorer and style, the published ones of the same scorer, the comparison."""
    from ..evaluation.benchmarks.published import SPREAD

    found: dict[str, Any] = {
        "benchmark": run.benchmark.name,
        "prompts_hash": run.settings["prompts_hash"],
        "num_prompts": len(run.prompts),
        "short": run.settings["short"],
        "num_images": sum(map(len, run.images)),
        "missing_prompts": run.missing,
        "scorers": {
            result.scorer: {
                "recipe_id": result.recipe_id,
                **({"unit": result.unit} if result.unit else {}),
                **_cut_json(run, found),
                "styles": {row.style: row.to_json() for row in result.styles},
                "overall": result.overall.to_json(),
            }
            for result, found in zip(run.results, run.values, strict=True)
        },
    }
    if run.benchmark.spread_name:
        found["spread"] = run.benchmark.spread_name
    boards = {result.scorer: published_rows(run, result.recipe_id) for result in run.results}
    if any(boards.values()):
        found["published"] = {name: [asdict(row) for row in rows] for name, rows in boards.items() if rows}
        found["published_note"] = SPREAD
    if comparison is not None:
        found["baseline"] = comparison
    return found


def _cut_json(run: BenchmarkRun, values: PromptValues) -> dict[str, Any]:
    """The prompts of which the scorer read the beginning only, where there are such."""
    return {"cut_prompts": [run.prompts[place].prompt for place in values.cut]} if values.cut else {}


def published_rows(run: BenchmarkRun, recipe_id: str) -> Sequence[Any]:
    """What was published for this benchmark under the scorer version of ``recipe_id``.

    Nothing for a set cut short, unless whole styles are left, whose figures compare one by one.
    """
    from ..evaluation.benchmarks.published import published_for
    from ..evaluation.benchmarks.units import version_of

    if run.settings["short"] and not run.benchmark.whole_styles(run.prompts):
        return ()
    return published_for(run.benchmark.name, version_of(recipe_id))


def image_names(found: PromptImages) -> list[tuple[str, ...]]:
    """The names of each prompt's images."""
    return [tuple(item.name for item in items) for items in found.images]


# --- two runs --------------------------------------------------------------------------------------------------------


def compare_runs(before: BenchmarkRun, after: BenchmarkRun, *, tie_margin: float = 0.0) -> list[ScorerComparison]:
    """Compare ``after`` with ``before`` prompt by prompt, under each scorer recipe that both have.

    On the prompts that both have, where the runs that lack some were made to allow it. Raises UserError where benchmark,
    prompts or recipes differ, or a run lacks prompts that it had to have.
    """
    from ..errors import UserError
    from ..evaluation.benchmarks.paired import compare_scorers

    check_same_prompts(before, after)
    try:
        return compare_scorers(
            after.styles,
            before.values,
            after.values,
            tie_margin=tie_margin,
            allow_missing=all(run.settings.get("allow_missing") for run in (before, after) if run.missing),
        )
    except UserError as error:
        raise UserError(f"{after.folder} against {before.folder}: {error.problem}", error.remedy) from error


def check_same_prompts(before: BenchmarkRun, after: BenchmarkRun) -> None:
    """Raise UserError unless both runs are of one benchmark and one list of prompts."""
    check_comparable(before, after.benchmark.name, after.settings["prompts_hash"], str(after.folder))


def check_comparable(before: BenchmarkRun, benchmark: str, prompts_hash: str, where: str) -> None:
    """Raise UserError unless ``before`` is of this benchmark and this list of prompts."""
    from ..errors import UserError

    remedy = "compare runs of one benchmark on one prompt file"
    if before.benchmark.name != benchmark:
        raise UserError(f"{before.folder} is a run of {before.benchmark.name}, {where} is one of {benchmark}", remedy)
    if before.settings.get("prompts_hash") != prompts_hash:
        theirs = before.settings.get("prompts_hash")
        raise UserError(f"{before.folder} has other prompts ({theirs}) than {where} ({prompts_hash})", remedy)


def comparison_json(
    before: BenchmarkRun, after: BenchmarkRun, comparisons: Sequence[ScorerComparison], tie_margin: float
) -> dict[str, Any]:
    """The comparison as it stands in results.json."""
    from ..evaluation.benchmarks.paired import disagreements

    shared = {row.recipe_id for row in comparisons}
    return {
        "folder": str(before.folder),
        "model_hash": before.settings.get("model_hash"),
        "tie_margin": tie_margin,
        "num_prompts": max(row.overall.win_rate.num for row in comparisons),
        "left_out": len(after.prompts) - min(row.overall.win_rate.num for row in comparisons),
        "scorers_of_one_run": sorted(
            {v.scorer for r in (before, after) for v in r.values if v.recipe_id not in shared}
        ),
        "scorers": {row.scorer: row.to_json() for row in comparisons},
        "disagreements": [{"up": d.up.scorer, "down": d.down.scorer} for d in disagreements(comparisons)],
    }
