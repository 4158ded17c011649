"""Benchmark runs as a page: metrics, win rates, cases of every kind, and an alarm where scorers tell different stories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from ...evaluation.benchmarks.paired import Disagreement
from ...evaluation.benchmarks.run import BenchmarkRun, RunComparison
from ...evaluation.comparison import CaseRow, pick_cases
from ..content import Case, Group, Notice, Rate, Report, Sample
from ..html import count, decimals, fixed
from ..results import case_groups, explanations, notice
from .benchmark_tables import means_table, paired_table, published_table, settings_table

_CASES = 6  # two rows of three


def benchmark_report(
    runs: Sequence[BenchmarkRun], comparisons: Sequence[RunComparison] = (), title: str = ""
) -> Report:
    """One page over ``runs`` and their ``comparisons`` with one baseline, where there are any; the first scorer leads."""
    baseline = comparisons[0].baseline if comparisons else None
    everyone = [*([baseline] if baseline else []), *runs]
    recipes = list(dict.fromkeys(result.recipe_id for run in [*runs, *everyone] for result in run.results))
    tables = []
    for recipe in recipes:
        tables.append(means_table(everyone, recipe))
        if any(row.recipe_id == recipe for comparison in comparisons for row in comparison.scorers):
            tables.append(paired_table(comparisons, recipe))
    boards = [published_table(run, result) for run in runs[:1] for result in run.results]
    benchmark = runs[0].benchmark
    needed = {"Spread of group means": benchmark.spread_name, "p of the permutation test": baseline}
    return Report(
        title=title or f"{benchmark.title}: {', '.join(run.name for run in runs)}",
        summary=_summary(runs, baseline),
        before_name=baseline.name if baseline else "base",
        after_name=runs[0].name,
        headline=_headline(comparisons[0]) if len(comparisons) == 1 else None,
        facts=_facts(everyone),
        notices=_notices(everyone, comparisons),
        tables=[*tables, *boards],
        rate_groups=_rate_groups(comparisons),
        score_name=f"{runs[0].values[0].scorer} score",
        cases=[group for comparison in comparisons for group in _case_groups(comparison, of=len(comparisons))],
        samples=[] if baseline else [group for run in runs for group in _sample_groups(run)],
        setup=settings_table(everyone),
        is_same_seed=_is_same_seed(everyone),
        notes=explanations("benchmark", needed),
    )


def _headline(comparison: RunComparison) -> Rate:
    first = comparison.scorers[0]
    return Rate(comparison.run.name, first.overall.win_rate, f"by {first.scorer}")


def _summary(runs: Sequence[BenchmarkRun], baseline: BenchmarkRun | None) -> str:
    scorers = " and ".join(dict.fromkeys(values.scorer for run in runs for values in run.values))
    against = f" Compared with {baseline.name} prompt by prompt." if baseline else ""
    return f"{count(len(runs[0].prompts))} prompts of {runs[0].benchmark.title} ({runs[0].benchmark.source}), judged by {scorers}.{against}"


def _facts(runs: Sequence[BenchmarkRun]) -> Mapping[str, str]:
    facts = {"prompts": count(len(runs[0].prompts)), "styles": str(len(dict.fromkeys(runs[0].styles)))}
    images = [count(sum(map(len, run.images))) for run in runs]
    facts["images"] = ", ".join(images) if len(set(images)) > 1 else images[0] + (" each" if len(runs) > 1 else "")
    return facts | {"runs": str(len(runs))}


def _notices(runs: Sequence[BenchmarkRun], comparisons: Sequence[RunComparison]) -> list[Notice]:
    """Alarms first, then where scorers agree, then what is not whole."""
    notices = [
        notice("alarm", "alarm", run=each.run, up=pair.up, down=pair.down)
        for each in comparisons
        for pair in each.disagreements
    ]
    for each in comparisons:
        sides = {"below" if row.overall.win_rate.win_rate < 0.5 else "above" for row in each.scorers}
        if len(each.scorers) > 1 and len(sides) == 1 and not each.disagreements:
            notices.append(notice("agreement", "calm", comparison=each, side=sides.pop()))
    notices += [notice("incomplete", run=run) for run in runs if run.missing]
    whole = runs[0].benchmark.whole_styles(runs[0].prompts)
    notices += [notice("short", shortfall=line, whole=whole) for line in runs[0].settings["short"]]
    notices += [notice("cut", run=run, values=values) for run in runs for values in run.values if values.cut]
    for each in comparisons:
        num = min(row.overall.win_rate.num for row in each.scorers)
        if num < len(each.run.prompts):
            notices.append(notice("part", run=each.run, num=num))
    return notices


# --- rates and pictures ----------------------------------------------------------------------------------------------


def _is_same_seed(runs: Sequence[BenchmarkRun]) -> bool:
    """Whether all runs were generated from the same seeds by the same rule; of given images nobody knows."""
    drawn = {str((run.settings.get("seeds"), run.settings.get("generation", {}).get("noise"))) for run in runs}
    return len(drawn) == 1 and bool(runs[0].settings.get("seeds"))


def _rate_groups(comparisons: Sequence[RunComparison]) -> list[Group[Rate]]:
    """Win rates by scorer; none for a single one, which is the headline."""
    rates: dict[str, list[Rate]] = {}
    for comparison in comparisons:
        for row in comparison.scorers:
            won = row.overall.win_rate
            rate = Rate(comparison.run.name, won, f"{count(won.num)} prompts")
            rates.setdefault(row.scorer, []).append(rate)
    return [Group(scorer, own) for scorer, own in rates.items()] if sum(map(len, rates.values())) > 1 else []


def _case_groups(comparison: RunComparison, *, of: int) -> list[Group[Case]]:
    """The largest gains, typical cases and largest losses by the first scorer, and where scorers part.

    Fewer of them where the page is ``of`` several comparisons, so that it stays light.
    """
    first, run = comparison.scorers[0], comparison.run
    rows = _score_rows(comparison, first.recipe_id)
    number = max(1, min(_CASES if of == 1 else _CASES // 2, len(rows) // 3))
    groups = case_groups(rows, number, partial(_case, comparison), f"{run.name}, by {first.scorer}", run.name)
    for disagreement in comparison.disagreements:
        cases = _disagreeing_cases(comparison, disagreement)[:number]
        title = f"{disagreement.up.scorer} rises, {disagreement.down.scorer} falls"
        groups += [Group(title, cases, f"{run.name}, where they part most", run.name)] if cases else []
    return groups


def _score_rows(comparison: RunComparison, recipe_id: str) -> list[CaseRow]:
    """The scores of every prompt that both runs have under one recipe."""
    runs = comparison.baseline, comparison.run
    old, new = (next(own.values for own in run.values if own.recipe_id == recipe_id) for run in runs)
    both = np.flatnonzero(~np.isnan(old) & ~np.isnan(new)).tolist()
    return [CaseRow(i, comparison.run.prompts[i].prompt, float(old[i]), float(new[i])) for i in both]


def _disagreeing_cases(comparison: RunComparison, disagreement: Disagreement) -> list[Case]:
    """Cases where the rising scorer gains most against what the falling one loses, each in its own spread."""
    up, down = (_score_rows(comparison, side.recipe_id) for side in (disagreement.up, disagreement.down))
    spreads = [float(np.std([row.delta for row in rows])) or 1.0 for rows in (up, down)]
    falls = {row.index: row.delta for row in down}
    parted = [row for row in up if row.delta > 0 > falls.get(row.index, 0.0)]
    parted.sort(key=lambda row: (-(row.delta / spreads[0] - falls[row.index] / spreads[1]), row.index))
    name, digits = disagreement.down.scorer, decimals(spreads[1])
    return [_case(comparison, row, f"{name} {fixed(falls[row.index], digits, signed=True)}") for row in parted]


def _case(comparison: RunComparison, row: CaseRow, detail: str = "") -> Case:
    images = comparison.baseline.picture(row.index), comparison.run.picture(row.index)
    return Case(row.prompt, *images, row.before, row.after, detail=detail)


def _sample_groups(run: BenchmarkRun) -> list[Group[Sample]]:
    """Images of a run that is compared with none: the highest, middle and lowest by the first scorer."""
    first = run.values[0]
    ordered = sorted(np.flatnonzero(~np.isnan(first.values)).tolist(), key=lambda i: (-first.values[i], i))
    rows = [CaseRow(i, run.prompts[i].prompt, 0.0, float(first.values[i])) for i in ordered]
    picks = pick_cases(rows, max(1, min(_CASES, len(rows) // 3)))
    return [
        Group(
            title,
            [Sample(row.prompt, run.picture(row.index), row.after) for row in chosen],
            f"{run.name}, by {first.scorer}",
        )
        for title, chosen in zip(("Highest", "Middle", "Lowest"), picks, strict=True)
    ]
