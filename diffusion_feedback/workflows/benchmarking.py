"""Benchmarks: prompts, a model or its images, and scorers to metrics with intervals and a paired comparison."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Any, cast
from weakref import finalize

from .. import __version__
from ..catalog import Named
from ..catalog.rows import name_of
from ..data.prompt_images import PromptImages, find_images
from ..data.prompt_sets import PromptSet, read_prompt_set
from ..data.tabular import find_metadata
from ..devices import find_device
from ..errors import UserError, plural
from ..evaluation.benchmarks.benchmark import Benchmark, prompts_hash, style_of
from ..evaluation.benchmarks.run import (
    BenchmarkRun,
    RunComparison,
    check_comparable,
    compare_runs,
    make_run,
    named_apart,
)
from ..folders import expand
from ..processes import process_state
from ..records import PromptRecord, ScoreRecord
from ..reports.console import benchmark_summary
from ..reports.pages.benchmark import benchmark_report
from ..reports.pages.folder import write_pages
from ..scorers.loading import AnyScorer, parse_spec
from .benchmark_folder import REPORT, RUNS, benchmark_of, check_scored, image_names, load_run, write_run
from .generating import draw_images
from .leakage import leakage_of_run
from .outputs import hold_output
from .sampling import ImageSampler, adapts_object, base_of_lora_run, folder_or_id, loaded_model_of, open_image_sampler
from .scoring import score_items
from .settings import (
    BenchmarkSettings,
    ImageSampling,
    ModelSource,
    ScoringSettings,
    as_list,
    made_of_keywords,
    refuse,
    shows,
)

logger = logging.getLogger(__name__)

_OF_DRAWING = (*ModelSource.__slots__, *ImageSampling.__slots__, "seeds", "model_dtype", "generation_batch_size")


@dataclass(frozen=True, slots=True, weakref_slot=True, repr=False)
class BenchmarkResult:
    """A finished ``run``, and its ``comparison`` with the baseline where there was one; as text it is a table."""

    run: BenchmarkRun
    comparison: RunComparison | None

    @property
    def metrics(self) -> Mapping[str, Any]:
        """By scorer: mean, standard error and number of prompts, of each style and of all; as in results.json."""
        return cast(dict[str, Any], self.run.to_json(self.comparison)["scorers"])

    @property
    def win_rates(self) -> dict[str, Any]:
        """By scorer: win rate against the baseline, its interval and p-values, of each style and of all."""
        return cast(dict[str, Any], self.comparison.to_json()["scorers"]) if self.comparison else {}

    @property
    def report(self) -> Path:
        """The page with all metrics and images."""
        return self.run.folder / REPORT

    def __str__(self) -> str:
        return benchmark_summary(self.run, self.comparison)

    __repr__ = __str__


_KINDS = (BenchmarkSettings, ModelSource, ImageSampling, ScoringSettings)


_DEFAULTS = {"noise": "prompt"}  # intervals take prompts for independent, which shared noise is not


@shows(*_KINDS, **_DEFAULTS)
def benchmark(
    name: Named,
    *,
    model: object = None,
    images: str | Path | None = None,
    scorers: AnyScorer | Sequence[AnyScorer] | None = None,
    baseline: str | Path | BenchmarkResult | None = None,
    output_dir: str | Path | None = None,
    **settings: object,
) -> BenchmarkResult:
    """Generate or find the images of a benchmark's prompts, score them, and compare them with the ``baseline``.

    ``name``: a benchmark of the catalog, "file.py:attribute", or a function that returns a ``Benchmark``. Its images are
    drawn from ``model`` (as of ``generate``), each from noise of its own, or lie in the folder ``images``. ``scorers`` (as of
    ``score``) are the benchmark's own by default; ``baseline`` is an earlier result, or its folder. ``settings`` are the
    fields of BenchmarkSettings, ModelSource, ImageSampling and ScoringSettings.

    Means are over prompts, in the unit of the published tables, with standard errors; win rates are paired by prompt, with
    95 % intervals. The same call goes on in ``output_dir`` after a kill. Under ``accelerate launch`` all processes score.
    A model that is loaded is as it came at the end.
    Raises UserError for settings that contradict each other, missing images or prompts, and a folder with another run.
    """
    own, source, sampling, scoring = made_of_keywords({**_DEFAULTS, **settings}, *_KINDS)
    chosen = benchmark_of(name)
    judges = as_list(scorers) if scorers else list(chosen.scorers)
    _check(model, images, own, scoring)
    if model is None:
        refuse(settings, _OF_DRAWING, "for images that are there", "leave it out, or give `model`")
    elif adapts_object(model) or folder_or_id(model) is None:
        refuse(settings, ModelSource.__slots__, "for a model that is loaded already")
    before = _baseline(baseline, output_dir)
    for spec in judges:  # before hours of generating, and before anything is replaced
        if isinstance(spec, str):
            parse_spec(spec)
    if scoring.device:
        find_device(scoring.device)
    with hold_output(output_dir, "benchmark") as folder:
        work = _Work(chosen, name, own, scoring, judges, folder)
        if model is None:
            run, records = work.on_images(expand(str(images)), before)
        else:
            with loaded_model_of(model) as (own_model, _):
                run, records = work.on_model(own_model, source, sampling, before)
        run, comparison = replace(run, leakage=leakage_of_run(run)), None
        if before is not None:
            before, run = named_apart([before, run])
            comparison = compare_runs(before, run, tie_margin=own.tie_margin)
        if process_state().is_main_process:
            RUNS.open(folder, run.settings, overwrite=own.overwrite and model is None)
            check_scored(run, overwrite=own.overwrite)
            write_run(run, records, comparison)
            page = benchmark_report([run], [comparison] if comparison else [])
            write_pages(page, "benchmark", run.folder, run=run)
    result = BenchmarkResult(run, comparison)
    if output_dir is None:  # the folder lives as long as the result
        finalize(result, rmtree, folder, ignore_errors=True)
    return result


def _check(model: object, images: object, own: BenchmarkSettings, scoring: ScoringSettings) -> None:
    if (model is None) == (images is None):
        given = "neither is given" if model is None else "both are given"
        raise UserError(f"`model` or `images`: {given}", "give a model to generate from, or a folder of its images")
    if scoring.on_bad_image == "skip" and not own.allow_missing:
        raise UserError("`on_bad_image` skip leaves prompts without a score", "give `allow_missing` too")


def _baseline(baseline: str | Path | BenchmarkResult | None, output_dir: str | Path | None) -> BenchmarkRun | None:
    if baseline is None:
        return None
    if isinstance(baseline, BenchmarkResult):
        return baseline.run
    if output_dir is not None and expand(baseline).resolve() == expand(output_dir).resolve():
        raise UserError(f"`baseline` {baseline}: is the `output_dir`", "compare with another run")
    return load_run(expand(baseline))


@dataclass(frozen=True, slots=True)
class _Work:
    """One run of ``benchmark``, which was requested as ``named``, in ``folder``."""

    benchmark: Benchmark
    named: Named
    own: BenchmarkSettings
    scoring: ScoringSettings
    scorers: Sequence[AnyScorer]
    folder: Path

    def on_images(self, place: Path, baseline: BenchmarkRun | None) -> tuple[BenchmarkRun, list[ScoreRecord]]:
        """The run on the images in ``place``, and their scores."""
        read, settings = self._prompts(baseline)
        matched = find_images(place, read.prompts, read.read)
        self._check_styles(place, read.prompts, matched)
        self._check_images(place, read.prompts, matched)
        settings["images"] = str(place.resolve())
        # Nothing is replaced before there is something to put in its place.
        RUNS.check(self.folder, settings, overwrite=self.own.overwrite)
        return self._score(matched, read.prompts, settings)

    def on_model(
        self, model: object, source: ModelSource, sampling: ImageSampling, baseline: BenchmarkRun | None
    ) -> tuple[BenchmarkRun, list[ScoreRecord]]:
        """The run on images that are drawn from ``model`` into the folder, and their scores."""
        if process_state().num_processes > 1:  # before anything of an earlier run is cleared
            remedy = "generate its images apart, in one process, and give them as `images`"
            raise UserError("`model` under accelerate launch: images are generated by one process", remedy)
        path = folder_or_id(model)
        if path is not None:
            model, source = base_of_lora_run(path, source)
        read, settings = self._prompts(baseline)
        generation = self.own.generation(self.scoring.device)
        sampler: ImageSampler = open_image_sampler(model, source, sampling, generation)
        settings |= {"model": model if path is not None else type(model).__name__, "lora": source.lora}
        settings |= {"lora_scale": source.lora_scale} if source.lora else {}
        settings |= {"model_hash": sampler.model.model_hash(), "seeds": list(generation.seeds)}
        settings["generation"] = sampler.settings
        RUNS.open(self.folder, settings, overwrite=self.own.overwrite)
        draw_images([prompt.prompt for prompt in read.prompts], sampler, self.folder, generation)
        del sampler  # its memory is the scorers' now
        return self._score(find_images(self.folder, read.prompts), read.prompts, settings)

    def _prompts(self, baseline: BenchmarkRun | None) -> tuple[PromptSet, dict[str, object]]:
        """The prompts, and the settings of the run as far as they decide. Raises UserError where ``baseline`` has others."""
        chosen, source = self.benchmark, self.own.prompts or self.benchmark.prompts
        if source is None:
            raise UserError(f"benchmark {chosen.name} has no prompts of its own", "give `prompts`, a file of them")
        read = read_prompt_set(
            source,
            files=chosen.files,
            style_columns=chosen.style_columns,
            style_of=chosen.style_of,
            unique=chosen.unique,
        )
        if read.duplicates:
            notice = f"{plural(read.duplicates, 'prompt stands', 'prompts stand')} more than once in {source}; each counts once, with all of its images"
            logger.warning("note: %s", notice)
        own_file = chosen.own_file(read.files) if self.own.prompts else ""
        if own_file and chosen.has_own_prompts:
            what = f"{own_file} is no file of {chosen.title}"
            logger.warning("note: %s: results are called after it, and none that are published apply", what)
        short = chosen.shortfalls(read.prompts)
        if short and not self.own.allow_short:
            problem = f"{source}: not the prompts of benchmark {chosen.name}: {'; '.join(short)}"
            raise UserError(problem, "get the whole files, or give `allow_short` and compare with no published result")
        whole = chosen.whole_styles(read.prompts) if short else []
        apart = f", but those of {', '.join(whole)} do, style by style" if whole else ""
        for line in short:
            logger.warning("note: %s; metrics do not compare with published ones%s", line, apart)
        settings: dict[str, object] = {
            "benchmark": name_of(self.named),
            "prompts": source,
            "prompts_hash": prompts_hash(read.prompts),
            **({"own_prompts": own_file} if own_file else {}),
            "num_prompts": len(read.prompts),
            "short": short,
            "scorers": [scorer if isinstance(scorer, str) else _called(scorer) for scorer in self.scorers],
            "scoring_dtype": self.scoring.dtype,
            "allow_missing": self.own.allow_missing,
            "version": __version__,
        }
        if baseline is not None:
            check_comparable(baseline, chosen.name, prompts_hash(read.prompts), "this run")
        return read, settings

    def _check_styles(self, place: Path, prompts: Sequence[PromptRecord], images: PromptImages) -> None:
        """Refuse one folder of numbers for prompts of some styles alone: nobody can tell which styles the numbers count."""
        given = {style_of(prompt) for prompt in prompts}
        is_flat = not any("/" in item.name for items in images.images for item in items)
        if set(self.benchmark.styles) - given and is_flat and find_metadata(place) is None:
            problem = f"{place}: numbered images in one folder, and the prompts of {', '.join(sorted(given))} alone"
            raise UserError(problem, f"put the images of each style into a folder of its own: {min(given)}/00000.png")

    def _check_images(self, place: Path, prompts: Sequence[PromptRecord], matched: PromptImages) -> None:
        """Note what is missing and what is left over.

        Raises UserError for missing images unless they are allowed, and where a style of the benchmark has none at all.
        """
        if matched.unused:
            names = ", ".join(matched.left[:3]) + (", ..." if matched.unused > 3 else "")
            notice = f"{plural(matched.unused, 'image')} of {place} {'belongs' if matched.unused == 1 else 'belong'} to no prompt, or to one that has its image: {names}"
            logger.warning("note: %s", notice)
        if matched.note:
            logger.warning("note: %s", matched.note)
        if not matched.missing:
            return
        first = "\n".join(f"  {name}" for name in matched.missing[:20])
        counts = f"{plural(len(matched.missing), 'image')} missing, of {plural(len(matched.images), 'prompt')}"
        problem = f"{place}: {counts}; the first of them:\n{first}"
        if not self.own.allow_missing:
            raise UserError(problem, "generate them, or give `allow_missing` for incomplete metrics")
        there = {style_of(prompt) for prompt, images in zip(prompts, matched.images, strict=True) if images}
        bare = [style for style in self.benchmark.style_order(prompts) if style not in there]
        if bare:
            raise UserError(f"{place}: no image at all of {', '.join(bare)}", self.benchmark.without_styles)
        logger.warning("note: %s", problem)

    def _score(
        self, images: PromptImages, prompts: Sequence[PromptRecord], settings: Mapping[str, object]
    ) -> tuple[BenchmarkRun, list[ScoreRecord]]:
        records = score_items([item for items in images.images for item in items], self.scorers, self.scoring)
        recipes = {record.scorer: record.recipe_id for record in records}
        decided = {**settings, "recipes": recipes}
        return make_run(self.folder, self.benchmark, decided, prompts, image_names(images), records), records


def _called(scorer: object) -> str:
    return str(getattr(scorer, "name", None) or getattr(scorer, "__name__", type(scorer).__name__))
