"""Benchmark runs as a page: metrics, win rates, cases of every kind, and an alarm where scorers tell different stories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...evaluation.benchmarks.paired import Disagreement
from ...evaluation.benchmarks.run import BenchmarkRun, RunComparison
from ...evaluation.comparison import CaseRow, pick_cases
from ..content import Case, CaseGroup, Rate, RateGroup, Report, Sample, SampleGroup
from ..html import count, decimals, fixed, percent, write_report
from ..parts import Notice
from ..results import case_groups, rate_of
from .benchmark_tables import means_table, paired_table, published_table, settings_table
from .folder import write_readme

_CASES = 6  # two rows of three

_NOTES = {
    "spread": (
        "Spread of group means",
        "As published for this benchmark: the standard deviation of the means of groups of 80 prompts in their order. It "
        "says how far means of 80 prompts scatter, not how far the mean of all may be off; that is the standard error.",
    ),
    "permutation": (
        "p of the permutation test",
        "How often the mean difference would be at least so far from 0 if on each prompt the two runs were drawn by lot "
        "(10,000 draws, counted so that it is never 0; every case for few prompts). Many means are tested here, so "
        "one of 0.03 by itself says little.",
    ),
    "recipe": (
        "Recipe",
        "Everything that makes a score: scorer and version, preprocessing, precision, hash of the weights. Scores are "
        "compared only under one recipe.",
    ),
}


def write_benchmark_pages(run: BenchmarkRun, comparison: RunComparison | None) -> None:
    """Write report.html and README.md of one run into its folder."""
    write_report(benchmark_report([run], [comparison] if comparison else []), run.folder / "report.html")
    write_readme("benchmark", run.folder, run=run)


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
    notes = [_NOTES["recipe"]] + ([_NOTES["spread"]] if benchmark.spread_name else [])
    return Report(
        title=title or f"{benchmark.title}: {', '.join(run.name for run in runs)}",
        summary=_summary(runs, baseline),
        before_name=baseline.name if baseline else "base",
        after_name=runs[0].name,
        headline=_headline(comparisons[0]) if len(comparisons) == 1 else None,
        facts=_facts(everyone),
        notices=[
            *_agreement_notices(comparisons),
            *_incomplete_notices(everyone),
            *_partial_comparison_notices(comparisons),
        ],
        tables=[*tables, *(board for board in boards if board)],
        rate_groups=_rate_groups(comparisons),
        score_name=f"{runs[0].values[0].scorer} score",
        cases=[group for comparison in comparisons for group in _case_groups(comparison, of=len(comparisons))],
        samples=[] if baseline else [group for run in runs for group in _sample_groups(run)],
        setup=settings_table(everyone),
        is_same_seed=_is_same_seed(everyone),
        notes=notes + ([_NOTES["permutation"]] if baseline else []),
    )


def _headline(comparison: RunComparison) -> Rate:
    first = comparison.scorers[0]
    return rate_of(comparison.run.name, first.overall.win_rate, f"by {first.scorer}")


def _summary(runs: Sequence[BenchmarkRun], baseline: BenchmarkRun | None) -> str:
    scorers = " and ".join(dict.fromkeys(values.scorer for run in runs for values in run.values))
    against = f" Compared with {baseline.name} prompt by prompt." if baseline else ""
    return f"{count(len(runs[0].prompts))} prompts of {runs[0].benchmark.title} ({runs[0].benchmark.source}), judged by {scorers}.{against}"


def _facts(runs: Sequence[BenchmarkRun]) -> Mapping[str, str]:
    facts = {"prompts": count(len(runs[0].prompts)), "styles": str(len(dict.fromkeys(runs[0].styles)))}
    images = [count(sum(map(len, run.images))) for run in runs]
    facts["images"] = ", ".join(images) if len(set(images)) > 1 else images[0] + (" each" if len(runs) > 1 else "")
    return facts | {"runs": str(len(runs))}


# --- notices ---------------------------------------------------------------------------------------------------------


def _agreement_notices(comparisons: Sequence[RunComparison]) -> list[Notice]:
    """The alarm for scorers that tell different stories, and a calm line where several tell the same."""
    notices = [_alarm(each.run, disagreement) for each in comparisons for disagreement in each.disagreements]
    for comparison in comparisons:
        rows = comparison.scorers
        signs = {math.copysign(1, row.overall.win_rate.win_rate - 0.5) for row in rows}
        if len(rows) > 1 and len(signs) == 1 and not comparison.disagreements:
            rates = ", ".join(f"{row.scorer} {percent(row.overall.win_rate.win_rate)}" for row in rows)
            side = "above" if signs == {1.0} else "below"
            text = f"Win rates against {comparison.baseline.name} are all {side} even: {rates}."
            notices.append(Notice(f"All scorers agree on {comparison.run.name}", text))
    return notices


def _alarm(run: BenchmarkRun, disagreement: Disagreement) -> Notice:
    rising, falling = disagreement.up, disagreement.down
    up, down = rising.overall.win_rate, falling.overall.win_rate
    sure = "beyond doubt too" if down.high < 0.5 else "though not beyond doubt"
    return Notice(
        f"One scorer up while another falls: reward hacking? ({run.name})",
        f"{rising.scorer} prefers {run.name} on {percent(up.win_rate)} of the prompts ({percent(up.low)} to "
        f"{percent(up.high)}), while {falling.scorer} prefers it on {percent(down.win_rate)} only "
        f"({percent(down.low)} to {percent(down.high)}), {sure}. Look at the images where the two part before you "
        "trust either, above all if the model was trained on one of them.",
        "alarm",
    )


def _incomplete_notices(runs: Sequence[BenchmarkRun]) -> list[Notice]:
    """What is not whole: runs that lack images, a set of prompts cut short, prompts that a scorer read in part."""
    notices = []
    for run in runs:
        if run.missing:
            parts = [f"{row.style}: {row.missing}" for row in run.results[0].styles if row.missing]
            text = f"{run.missing} of {len(run.prompts)} prompts have no scored image ({', '.join(parts)})."
            notices.append(Notice(f"{run.name} is incomplete", f"{text} Its means are those of the rest.", "caution"))
    whole = runs[0].benchmark.whole_styles(runs[0].prompts)
    for line in runs[0].settings["short"]:
        text = f"{line}. The means do not compare with published ones, which stand on the whole set."
        text += f" Those of whole styles do, style by style: {', '.join(whole)}." if whole else ""
        notices.append(Notice("Not the whole benchmark", text, "caution"))
    for run in runs:
        for values in run.values:
            if values.cut:
                first = run.prompts[values.cut[0]].prompt
                text = (
                    f"{values.scorer} read the beginning only of {len(values.cut)} of {len(run.prompts)} prompts, beyond its "
                    f'token limit; the first: "{first[:100]}". All of them: results.json, cut_prompts.'
                )
                notices.append(Notice(f"Prompts cut, {run.name}", text, "caution"))
    return notices


def _partial_comparison_notices(comparisons: Sequence[RunComparison]) -> list[Notice]:
    """Said where runs were compared on a part of the prompts."""
    notices = []
    for comparison in comparisons:
        num, total = min(row.overall.win_rate.num for row in comparison.scorers), len(comparison.run.prompts)
        if num < total:
            text = f"{num} of {total} prompts have a scored image in both runs; the others are left out."
            title = f"{comparison.run.name} is compared on a part of the prompts"
            notices.append(Notice(title, text, "caution"))
    return notices


# --- rates and pictures ----------------------------------------------------------------------------------------------


def _is_same_seed(runs: Sequence[BenchmarkRun]) -> bool:
    """Whether all runs were generated from the same seeds by the same rule; of given images nobody knows."""
    drawn = {str((run.settings.get("seeds"), run.settings.get("generation", {}).get("noise"))) for run in runs}
    return len(drawn) == 1 and bool(runs[0].settings.get("seeds"))


def _rate_groups(comparisons: Sequence[RunComparison]) -> list[RateGroup]:
    """Win rates by scorer; none for a single one, which is the headline."""
    rates: dict[str, list[Rate]] = {}
    for comparison in comparisons:
        for row in comparison.scorers:
            won = row.overall.win_rate
            rate = rate_of(comparison.run.name, won, f"{count(won.num)} prompts")
            rates.setdefault(row.scorer, []).append(rate)
    return [RateGroup(scorer, own) for scorer, own in rates.items()] if sum(map(len, rates.values())) > 1 else []


def _case_groups(comparison: RunComparison, *, of: int) -> list[CaseGroup]:
    """The largest gains, typical cases and largest losses by the first scorer, and where scorers part.

    Fewer of them where the page is ``of`` several comparisons, so that it stays light.
    """
    first, run = comparison.scorers[0], comparison.run
    rows = _score_rows(comparison, first.recipe_id)
    number = max(1, min(_CASES if of == 1 else _CASES // 2, len(rows) // 3))

    def case_of(row: CaseRow) -> Case:
        return _case(comparison, row)

    groups = case_groups(rows, number, case_of, f"{run.name}, by {first.scorer}", run.name)
    for disagreement in comparison.disagreements:
        cases = _disagreeing_cases(comparison, disagreement)[:number]
        title = f"{disagreement.up.scorer} rises, {disagreement.down.scorer} falls"
        groups += [CaseGroup(title, cases, f"{run.name}, where they part most", run.name)] if cases else []
    return groups


def _score_rows(comparison: RunComparison, recipe_id: str) -> list[CaseRow]:
    """The scores of every prompt that both runs have under one recipe."""
    runs = comparison.baseline, comparison.run
    old, new = (next(own.values for own in run.values if own.recipe_id == recipe_id) for run in runs)
    both = np.flatnonzero(~np.isnan(old) & ~np.isnan(new)).tolist()
    return [CaseRow(i, comparison.run.prompts[i].prompt, 0, float(old[i]), float(new[i])) for i in both]


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


def _sample_groups(run: BenchmarkRun) -> list[SampleGroup]:
    """Images of a run that is compared with none: the highest, middle and lowest by the first scorer."""
    first = run.values[0]
    ordered = sorted(np.flatnonzero(~np.isnan(first.values)).tolist(), key=lambda i: (-first.values[i], i))
    rows = [CaseRow(i, run.prompts[i].prompt, 0, 0.0, float(first.values[i])) for i in ordered]
    picks = pick_cases(rows, max(1, min(_CASES, len(rows) // 3)))
    return [
        SampleGroup(
            title,
            [Sample(row.prompt, run.picture(row.index), row.after) for row in chosen],
            f"{run.name}, by {first.scorer}",
        )
        for title, chosen in (("Highest", picks.best), ("Middle", picks.median), ("Lowest", picks.worst))
    ]
