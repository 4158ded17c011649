"""Results in plain text, as commands print them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from statistics import fmean, stdev

from ..data.image_folders import natural_order
from ..evaluation.benchmarks.benchmark import ScorerResult
from ..evaluation.benchmarks.published import unit_of
from ..evaluation.benchmarks.run import BenchmarkRun, RunComparison
from ..evaluation.calibrated import CalibrationResult
from ..evaluation.judged import JudgeMeasurements
from ..evaluation.rounds import RoundMetrics
from ..evaluation.statistics import proportion_interval
from ..labeling.pairs import PairCounts
from ..labeling.panel import Panel
from ..labeling.relabel import RelabelCounts
from ..records import ScoreRecord
from .html import significant
from .pages.benchmark_tables import digits_of
from .pages.calibration import calibration_verdict
from .rendering import load_template
from .results import judge_names, leakage_notices

_MOST_FOLDERS = 30  # a table of more says nothing on a screen


def benchmark_summary(run: BenchmarkRun, comparison: RunComparison | None) -> str:
    """Means by style, the nearest published ones, and the comparison with a baseline."""
    values = {"run": run, "comparison": comparison}
    functions = {"nearest_published": _nearest_published, "leakage_notices": leakage_notices}
    return summarize("benchmark", **values, digits_of=digits_of, **functions)


def _nearest_published(run: BenchmarkRun, result: ScorerResult) -> list[tuple[str, float]]:
    """Published results by how near they are; of a single whole style, those of that style."""
    rows, whole = run.published(result.recipe_id), run.benchmark.whole_styles(run.prompts)
    if not run.settings["short"]:
        means, own = [(row.model, row.average) for row in rows], result.overall.mean
    elif len(whole) == 1:
        means = [(f"{row.model}, {whole[0]}", row.by_style()[whole[0]]) for row in rows if whole[0] in row.by_style()]
        own = next(row.mean for row in result.styles if row.style == whole[0])
    else:
        means, own = [], 0.0
    return sorted(means, key=lambda named: abs(named[1] - own))


def calibration_summary(result: CalibrationResult) -> str:
    """A table of the scorers by falling accuracy, and what has to be said about it."""
    return summarize("calibration", result=result, significant=significant, verdict=calibration_verdict(result))


def judge_summary(judged: JudgeMeasurements) -> str:
    """Win rates, mean scores and bias by judge; perplexity and divergence by model."""
    names = judge_names([verdict.spec for verdict in judged.verdicts])
    return summarize("judge", judged=judged, judge_names=names, leakage_notices=leakage_notices)


def rounds_summary(rounds: Sequence[RoundMetrics]) -> str:
    """The metrics of each round in one line."""
    return summarize("rounds", rounds=rounds)


def scores_summary(records: Sequence[ScoreRecord]) -> str:
    """For each scorer the number of images, mean with standard error, range, and recipe."""
    by_scorer: dict[tuple[str, str], list[float]] = {}
    for record in records:
        by_scorer.setdefault((record.scorer, record.recipe_id), []).append(record.score)
    return summarize("scores", by_scorer=by_scorer, fmean=fmean, stdev=stdev, unit_of=unit_of)


def folder_means(records: Sequence[ScoreRecord], folders: Mapping[tuple[str, str], str]) -> str:
    """The mean of each folder under each scorer; empty where there is one folder, or too many.

    ``folders`` names the folder of each (sample, prompt).
    """
    values: dict[str, dict[str, list[float]]] = {}
    for record in records:
        folder = folders[record.sample, record.prompt]
        values.setdefault(folder, {}).setdefault(record.scorer, []).append(record.score)
    if len(values) < 2:
        return ""
    if len(values) > _MOST_FOLDERS:
        return f"note: {len(values)} folders, too many for a table of their means"
    scorers = list(dict.fromkeys(record.scorer for record in records))
    width = max(6, *(len(folder) for folder in values))
    lines = [f"{'folder':<{width}} {'images':>7} " + " ".join(f"{name:>14}" for name in scorers)]
    for folder in natural_order(values):
        number = max(map(len, values[folder].values()))
        means = " ".join(f"{fmean(values[folder][name]):>14.4f}" for name in scorers)
        lines.append(f"{PurePath(folder)!s:<{width}} {number:>7} {means}")
    return "\n".join(lines)


def pairs_summary(counts: PairCounts, panel: Panel) -> str:
    """What became of the candidates, and of the pairs that a rule picked."""
    return summarize("labels", is_new=True, counts=counts, policy=panel.policy, num_judges=len(panel.judges))


def relabelled_summary(counts: RelabelCounts, panel: Panel, identical: int, unscored: int) -> str:
    """How far new labels agree with the old, and what was left out: ``identical`` images, and pairs that were ``unscored``."""
    agreement = proportion_interval(counts.agreed, counts.compared) if counts.compared else None
    values = {"agreement": agreement, "identical": identical, "unscored": unscored}
    return summarize("labels", is_new=False, counts=counts, policy=panel.policy, num_judges=len(panel.judges), **values)


def summarize(kind: str, **values: object) -> str:
    """The words of ``console/KIND.txt.j2`` over ``values``."""
    template = load_template(f"console/{kind}.txt.j2", {"thousands": "{:,}".format})
    return template.render(values).strip("\n")
