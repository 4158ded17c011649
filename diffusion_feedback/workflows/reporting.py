"""Several benchmark runs on one page, side by side and against a baseline."""

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
from .benchmark_folder import load_run
from .benchmarking import BenchmarkResult
from .settings import ReportSettings, as_list, made_of_keywords, shows

logger = logging.getLogger(__name__)


Run: TypeAlias = str | Path | BenchmarkResult
"""A benchmark run: its folder, or what ``benchmark`` returned."""


_KINDS = (ReportSettings,)


@shows(*_KINDS)
def report(runs: Run | Sequence[Run], output: str | Path, **keywords: object) -> Report:
    """Write a page over benchmark ``runs`` (folders or results, of one benchmark and one list of prompts) to the file ``output``.

    All are compared with the baseline, or the first. ``keywords`` are the fields of ReportSettings. Returns what stands on
    the page. Raises UserError for runs that do not compare, names that are not distinct, and an output that is there already
    unless it may be replaced.
    """
    (settings,) = made_of_keywords(keywords, *_KINDS)
    page = expand(output)
    if page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{page}: the output is a page", "give a name that ends in .html")
    if page.exists() and not settings.overwrite:
        raise UserError(f"{page}: exists already", "give another name, or `overwrite` to replace it")
    baseline, *others = _load(as_list(runs), settings)
    for other in others:
        check_same_prompts(baseline, other)
    comparisons = [compare_runs(baseline, other, tie_margin=settings.tie_margin) for other in others]
    content = benchmark_report(others or [baseline], comparisons, settings.title)
    with hold_file(page, "report"):
        write_report(content, page)
    summary = f"{len(others) + 1} runs of {baseline.title}, baseline {baseline.name}"
    logger.info("%s: %s", page, summary)
    return content


def _load(runs: Sequence[Run], settings: ReportSettings) -> list[BenchmarkRun]:
    """The runs, the baseline first, each under a name of its own: its model's, unless one is given."""
    folders = [run.run.folder if isinstance(run, BenchmarkResult) else expand(run) for run in runs]
    if settings.baseline:
        first = expand(settings.baseline)
        folders = [first, *(folder for folder in folders if folder.resolve() != first.resolve())]
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise UserError("a run is given twice", "name each folder once")
    names = list(settings.names)
    if names and len(names) != len(folders):
        problem = f"`names`: {len(names)} names, {len(folders)} runs"
        raise UserError(problem, "name each run, the baseline first")
    if len(set(names)) < len(names):
        raise UserError(f"two runs would have one name: {', '.join(names)}", "give `names` that differ")
    if names:
        return [load_run(folder, name=name) for folder, name in zip(folders, names, strict=True)]
    return named_apart([load_run(folder) for folder in folders])
