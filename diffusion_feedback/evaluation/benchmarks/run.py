"""One finished run of a benchmark, its results as plain values, and two runs against each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from ...errors import UserError
from ...records import PromptRecord, ScoreRecord
from ..leakage import Leakage
from .benchmark import Benchmark, PromptValues, ScorerResult, evaluate, prompt_values, style_of
from .paired import Disagreement, ScorerComparison, compare_scorers, disagreements
from .published import SPREAD, PublishedResult, version_of


@dataclass(frozen=True, slots=True)
class BenchmarkRun:
    """A finished run: ``images[i]`` are the files of prompt i relative to ``image_root``; ``values`` and ``results``
    are by scorer, in one order; ``leakage`` is what the model has seen of prompts and judges.
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
    leakage: Leakage = field(default_factory=Leakage)

    @property
    def styles(self) -> list[str]:
        """The style of each prompt."""
        return [style_of(prompt) for prompt in self.prompts]

    @property
    def own_file(self) -> str:
        """The file of prompts that stands in the place of the benchmark's own; empty where these were taken."""
        return str(self.settings.get("own_prompts") or "")

    @property
    def title(self) -> str:
        """What was measured on: the benchmark, or a file that is none."""
        return f"Prompts of {self.own_file}" if self.own_file else self.benchmark.title

    @property
    def source(self) -> str:
        """Who made the prompts; of a file that is given its name and the hash of its prompts."""
        if not self.own_file:
            return self.benchmark.source
        source = f"{self.own_file}, hash {self.settings['prompts_hash'][:12]}"
        return source + (f", not those of {self.benchmark.title}" if self.benchmark.has_own_prompts else "")

    @property
    def missing(self) -> int:
        """Prompts without a scored image."""
        return max(result.overall.missing for result in self.results)

    def picture(self, index: int, image: int) -> Path:
        """Image number ``image``, from 0, of prompt ``index``."""
        return self.image_root / self.images[index][image]

    def seed(self, index: int, image: int) -> int | None:
        """The seed that the image was drawn under; None where that is not known, as of images that were given."""
        seeds = self.settings.get("seeds") or []
        return seeds[image] if len(seeds) == len(self.images[index]) else None

    def image_rows(self, recipe_id: str) -> Iterator[tuple[int, int, float]]:
        """(Prompt, image, value) of every image that was scored under one recipe."""
        values = next(own for own in self.values if own.recipe_id == recipe_id)
        for index, row in enumerate(values.by_image):
            yield from ((index, image, value) for image, value in enumerate(row) if not math.isnan(value))

    def published(self, recipe_id: str) -> Sequence[PublishedResult]:
        """What was published for this benchmark under the scorer version of ``recipe_id``.

        Nothing for prompts of another file, and for a set cut short, unless whole styles are left, whose metrics compare one
        by one.
        """
        if self.own_file or (self.settings["short"] and not self.benchmark.whole_styles(self.prompts)):
            return ()
        return self.benchmark.published.get(version_of(recipe_id) or "", ())

    def to_json(self, comparison: RunComparison | None = None) -> dict[str, object]:
        """What results.json holds: metrics by scorer and style, the published ones of the same scorer, the comparison."""
        content: dict[str, Any] = {
            "benchmark": self.benchmark.name,
            "prompts_hash": self.settings["prompts_hash"],
            "source": self.source,
            "num_prompts": len(self.prompts),
            "short": self.settings["short"],
            "num_images": sum(map(len, self.images)),
            "missing_prompts": self.missing,
            "leakage": self.leakage.to_json([prompt.prompt for prompt in self.prompts]),
            "scorers": {
                result.scorer: {
                    "recipe_id": result.recipe_id,
                    **({"unit": result.unit} if result.unit else {}),
                    # The prompts of which the scorer read the beginning only, where there are such.
                    **({"cut_prompts": [self.prompts[place].prompt for place in values.cut]} if values.cut else {}),
                    "styles": {row.style: row.to_json() for row in result.styles},
                    "overall": result.overall.to_json(),
                }
                for result, values in zip(self.results, self.values, strict=True)
            },
        }
        if self.benchmark.spread_name:
            content["spread"] = self.benchmark.spread_name
        boards = {result.scorer: self.published(result.recipe_id) for result in self.results}
        if any(boards.values()):
            content["published"] = {name: [asdict(row) for row in rows] for name, rows in boards.items() if rows}
            content["published_note"] = SPREAD
        return content if comparison is None else content | {"baseline": comparison.to_json()}


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
    values = prompt_values(images, records)
    return BenchmarkRun(
        name=name or _model_name(settings) or folder.resolve().name,
        folder=folder,
        benchmark=benchmark,
        settings=settings,
        prompts=prompts,
        images=images,
        image_root=Path(settings["images"]) if settings.get("images") else folder,
        values=values,
        results=[evaluate(benchmark, prompts, own) for own in values],
    )


def _model_name(settings: Mapping[str, Any]) -> str:
    """What the model of a run is called: its own folder or name on the hub, and its adapter's; empty where none is known."""
    names = [PurePath(str(settings[key])).name for key in ("model", "lora") if settings.get(key)]
    return " + ".join(names)


def named_apart(runs: Sequence[BenchmarkRun]) -> list[BenchmarkRun]:
    """``runs`` under names that differ: where two share one, the folder stands behind it, and more of its path if it must."""

    def named(depth: int) -> list[str]:
        ends = ["/".join(run.folder.resolve().parts[-depth:]) for run in runs]
        shared = [run.name for run in runs]
        pairs = zip(runs, ends, strict=True)
        return [run.name if shared.count(run.name) == 1 else _behind(run.name, end) for run, end in pairs]

    if len({run.name for run in runs}) == len(runs):
        return list(runs)
    most = max(len(run.folder.resolve().parts) for run in runs)
    names = next((own for own in map(named, range(1, most + 1)) if len(set(own)) == len(own)), named(most))
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _behind(name: str, end: str) -> str:
    return end if end.rpartition("/")[2] == name else f"{name} ({end})"


# --- two runs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunComparison:
    """``run`` against ``baseline``, prompt by prompt, under each scorer recipe that both have; never empty.

    Scores that differ by ``tie_margin`` or less count as a tie.
    """

    baseline: BenchmarkRun
    run: BenchmarkRun
    scorers: Sequence[ScorerComparison]
    tie_margin: float

    @property
    def disagreements(self) -> list[Disagreement]:
        """Scorers that tell different stories."""
        return disagreements(self.scorers)

    def to_json(self) -> dict[str, object]:
        """As it stands in results.json."""
        shared = {row.recipe_id for row in self.scorers}
        unshared = {v.scorer for run in (self.baseline, self.run) for v in run.values if v.recipe_id not in shared}
        return {
            "folder": str(self.baseline.folder),
            "model_hash": self.baseline.settings.get("model_hash"),
            "leakage": self.baseline.leakage.to_json([prompt.prompt for prompt in self.baseline.prompts]),
            "tie_margin": self.tie_margin,
            "num_prompts": max(row.overall.win_rate.num for row in self.scorers),
            "left_out": len(self.run.prompts) - min(row.overall.win_rate.num for row in self.scorers),
            "scorers_of_one_run": sorted(unshared),
            "scorers": {row.scorer: row.to_json() for row in self.scorers},
            "disagreements": [{"up": pair.up.scorer, "down": pair.down.scorer} for pair in self.disagreements],
        }


def compare_runs(before: BenchmarkRun, after: BenchmarkRun, *, tie_margin: float = 0.0) -> RunComparison:
    """Compare ``after`` with ``before`` prompt by prompt, under each scorer recipe that both have.

    On the prompts that both have, where the runs that lack some were made to allow it. Raises UserError where benchmark,
    prompts or recipes differ, or a run lacks prompts that it had to have.
    """
    check_same_prompts(before, after)
    try:
        rows = compare_scorers(
            after.styles,
            before.values,
            after.values,
            tie_margin=tie_margin,
            allow_missing=all(run.settings.get("allow_missing") for run in (before, after) if run.missing),
        )
    except UserError as error:
        raise UserError(f"{after.folder} against {before.folder}: {error.problem}", error.remedy) from error
    return RunComparison(before, after, rows, tie_margin)


def check_same_prompts(before: BenchmarkRun, after: BenchmarkRun) -> None:
    """Raise UserError unless both runs are of one benchmark and one list of prompts."""
    check_comparable(before, after.benchmark.name, after.settings["prompts_hash"], str(after.folder))


def check_comparable(before: BenchmarkRun, benchmark: str, prompts_hash: str, where: str) -> None:
    """Raise UserError unless ``before`` is of this benchmark and this list of prompts."""
    remedy = "compare runs of one benchmark on one prompt file"
    if before.benchmark.name != benchmark:
        raise UserError(f"{before.folder} is a run of {before.benchmark.name}, {where} is one of {benchmark}", remedy)
    if before.settings.get("prompts_hash") != prompts_hash:
        theirs = before.settings.get("prompts_hash")
        raise UserError(f"{before.folder} has other prompts ({theirs}) than {where} ({prompts_hash})", remedy)
