"""Several runs on one page, side by side: benchmark runs against a baseline, or training runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from ..errors import UserError
from ..evaluation.benchmarks.run import BenchmarkRun, check_same_prompts, compare_runs, named_apart
from ..folders import expand, hold_file
from ..reports.content import Report
from ..reports.html import write_report
from ..reports.pages.benchmark import benchmark_report
from ..reports.pages.training import training_report
from ..reports.pages.training_runs import training_runs_report
from .benchmark_folder import load_run
from .benchmarking import BenchmarkResult
from .settings import ReportSettings, as_list, made_of_keywords, refuse, shows
from .training.record import is_run, read_run
from .training.result import Run as TrainingRun

logger = logging.getLogger(__name__)


Run: TypeAlias = str | Path | BenchmarkResult | TrainingRun
"""A benchmark run or a training run: its folder, or what ``benchmark`` or ``train`` returned."""


_KINDS = (ReportSettings,)


@shows(*_KINDS)
def report(runs: Run | Sequence[Run], output: str | Path, **keywords: object) -> Report:
    """Write a page over ``runs``, folders or results, to the file ``output``.

    Either benchmark runs, of one benchmark and one list of prompts, or training runs, finished or not. All are compared
    with the baseline, or the first. ``keywords`` are the fields of ReportSettings. Returns what stands on the page. Raises
    UserError for runs that do not compare, names that are not distinct, and an output that is there already unless it may
    be replaced.
    """
    (settings,) = made_of_keywords(keywords, *_KINDS)
    page = expand(output)
    if page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{page}: the output is a page", "give a name that ends in .html")
    if page.exists() and not settings.overwrite:
        raise UserError(f"{page}: exists already", "give another name, or `overwrite` to replace it")
    folders = _folders(as_list(runs), settings)
    if _are_training_runs(folders):
        refuse(keywords, ["tie_margin"], "for training runs")
        content, summary = _of_training(folders, settings)
    else:
        content, summary = _of_benchmarks(folders, settings)
    with hold_file(page, "report"):
        write_report(content, page)
    logger.info("%s: %s", page, summary)
    return content


def _folders(runs: Sequence[Run], settings: ReportSettings) -> list[Path]:
    """The folders of ``runs``, the baseline first, each once."""
    folders = [
        run.run.folder
        if isinstance(run, BenchmarkResult)
        else run.path
        if isinstance(run, TrainingRun)
        else expand(run)
        for run in runs
    ]
    if settings.baseline:
        first = expand(settings.baseline)
        folders = [first, *(folder for folder in folders if folder.resolve() != first.resolve())]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is given twice", "name each folder once")
    names = list(settings.names)
    if names and len(names) != len(folders):
        problem = f"`names`: {len(names)} names, {len(folders)} runs"
        raise UserError(problem, "name each run, the baseline first")
    if len(set(names)) < len(names):
        raise UserError(f"two runs would have one name: {', '.join(names)}", "give `names` that differ")
    return folders


def _are_training_runs(folders: Sequence[Path]) -> bool:
    """Whether all ``folders`` are of training runs. Raises UserError where some are, and others of benchmarks."""
    trained = [folder for folder in folders if is_run(folder)]
    others = [folder for folder in folders if folder not in trained]
    if trained and others:
        problem = f"{trained[0]} is a training run, {others[0]} is none: one page shows runs of one kind"
        raise UserError(problem, "give training runs alone, or benchmark runs alone")
    return bool(trained)


def _of_training(folders: Sequence[Path], settings: ReportSettings) -> tuple[Report, str]:
    names = list(settings.names) or _apart(folders)
    runs = [read_run(folder, name=name) for folder, name in zip(folders, names, strict=True)]
    if len(runs) == 1:
        return training_report(runs[0]), f"training run {runs[0].name}"
    return training_runs_report(runs, settings.title), f"{len(runs)} training runs, compared with {runs[0].name}"


def _apart(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that are distinct."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _of_benchmarks(folders: Sequence[Path], settings: ReportSettings) -> tuple[Report, str]:
    baseline, *others = _load(folders, settings)
    for other in others:
        check_same_prompts(baseline, other)
    comparisons = [compare_runs(baseline, other, tie_margin=settings.tie_margin) for other in others]
    content = benchmark_report(others or [baseline], comparisons, settings.title)
    return content, f"{len(others) + 1} runs of {baseline.title}, baseline {baseline.name}"


def _load(folders: Sequence[Path], settings: ReportSettings) -> list[BenchmarkRun]:
    """The runs, each under a name of its own: its model's, unless one is given."""
    if settings.names:
        return [load_run(folder, name=name) for folder, name in zip(folders, settings.names, strict=True)]
    return named_apart([load_run(folder) for folder in folders])
