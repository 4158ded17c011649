"""Benchmark runs as a page: metrics, win rates, cases of every kind, and an alarm where scorers tell different stories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from ...errors import plural
from ...evaluation.benchmarks.paired import Disagreement
from ...evaluation.benchmarks.run import BenchmarkRun, RunComparison
from ...evaluation.comparison import CaseRow, pick_cases
from ..content import Case, Claim, Group, Notice, Rate, Report, Sample
from ..html import count, decimals, fixed
from ..results import case_groups, explanations, leakage_notices, notice
from .benchmark_tables import digits_of, has_spread, in_unit, means_table, paired_table, published_table, settings_table

_CASES = 6  # three rows of two


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
    needed = {"Spread of group means": has_spread(everyone), "p of the permutation test": baseline}
    return Report(
        title=title or f"{runs[0].title}: {', '.join(run.name for run in runs)}",
        summary=_summary(runs, baseline),
        before_name=baseline.name if baseline else "base",
        after_name=runs[0].name,
        headline=_headline(comparisons[0]) if len(comparisons) == 1 else None,
        claim=None if comparisons else _claim(runs[0]),
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


def _claim(run: BenchmarkRun) -> Claim:
    """The mean under the first scorer, of a run that is compared with none."""
    first = run.results[0]
    digits, overall = digits_of([first]), first.overall
    error = overall.standard_error
    sentence = f"{run.name} has a mean {first.scorer} score of {fixed(overall.mean, digits)}"
    sentence += f" ± {fixed(error, digits)}, the standard error over prompts." if error is not None else "."
    others = {
        result.scorer: fixed(result.overall.mean, digits_of([result])) + (f" {result.unit}" if result.unit else "")
        for result in run.results[1:]
    }
    label = f"mean {first.scorer} score{in_unit(first.recipe_id)} over {plural(overall.num, 'prompt')}"
    return Claim(fixed(overall.mean, digits), label, f"{sentence} A baseline would say whether that is better.", others)


def _summary(runs: Sequence[BenchmarkRun], baseline: BenchmarkRun | None) -> str:
    scorers = " and ".join(dict.fromkeys(values.scorer for run in runs for values in run.values))
    against = f" Compared with {baseline.name} prompt by prompt." if baseline else ""
    prompts, first = plural(len(runs[0].prompts), "prompt"), runs[0]
    source = f"of {first.benchmark.title} ({first.source})" if not first.own_file else f"from {first.source}"
    return f"{prompts} {source}, judged by {scorers}.{against}"


def _facts(runs: Sequence[BenchmarkRun]) -> Mapping[str, str]:
    facts, styles = {"prompts": count(len(runs[0].prompts))}, len(dict.fromkeys(runs[0].styles))
    if styles > 1:
        facts["styles"] = str(styles)
    images = [count(sum(map(len, run.images))) for run in runs]
    facts["images"] = ", ".join(images) if len(set(images)) > 1 else images[0] + (" each" if len(runs) > 1 else "")
    numbers = {len(names) for run in runs for names in run.images if names}
    if numbers != {1}:
        facts["images per prompt"] = " to ".join(map(str, sorted({min(numbers), max(numbers)})))
    return facts | ({"runs": str(len(runs))} if len(runs) > 1 else {})


def _notices(runs: Sequence[BenchmarkRun], comparisons: Sequence[RunComparison]) -> list[Notice]:
    """Alarms first, then where scorers agree, then what is not whole."""
    notices = [
        notice("alarm", "alarm", run=each.run, up=pair.up, down=pair.down)
        for each in comparisons
        for pair in each.disagreements
    ]
    notices += [each for run in runs for each in leakage_notices(run.name, run.leakage, run.prompts)]
    for each in comparisons:
        sides = {"below" if row.overall.win_rate.win_rate < 0.5 else "above" for row in each.scorers}
        if len(each.scorers) > 1 and len(sides) == 1 and not each.disagreements and each.run.leakage.is_clean:
            notices.append(notice("agreement", "calm", comparison=each, side=sides.pop()))
    notices += [notice("incomplete", run=run) for run in runs if run.missing]
    whole = runs[0].benchmark.whole_styles(runs[0].prompts)
    if runs[0].settings["short"]:
        notices.append(notice("short", shortfall="; ".join(runs[0].settings["short"]), whole=whole))
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
            rate = Rate(comparison.run.name, won, plural(won.num, "prompt"))
            rates.setdefault(row.scorer, []).append(rate)
    return [Group(scorer, own) for scorer, own in rates.items()] if sum(map(len, rates.values())) > 1 else []


def _case_groups(comparison: RunComparison, *, of: int) -> list[Group[Case]]:
    """The largest gains, typical cases and largest losses by the first scorer, and where scorers part.

    Fewer of them where the page is ``of`` several comparisons, so that it stays light.
    """
    first, run = comparison.scorers[0], comparison.run
    rows = _score_rows(comparison, first.recipe_id)
    number = max(1, min(_CASES if of == 1 else _CASES // 2, len({row.index for row in rows}) // 3))
    groups = case_groups(rows, number, partial(_case, comparison), f"{run.name}, by {first.scorer}", run.name)
    for disagreement in comparison.disagreements:
        cases = _disagreeing_cases(comparison, disagreement)[:number]
        title = f"{disagreement.up.scorer} rises, {disagreement.down.scorer} falls"
        groups += [Group(title, cases, f"{run.name}, where they part most", run.name)] if cases else []
    return groups


def _score_rows(comparison: RunComparison, recipe_id: str) -> list[CaseRow]:
    """The scores of every image under one recipe, beside that of the same place of its prompt in the baseline."""
    run = comparison.run
    old = {(index, image): value for index, image, value in comparison.baseline.image_rows(recipe_id)}
    return [
        CaseRow(index, run.prompts[index].prompt, old[index, image], value, image)
        for index, image, value in run.image_rows(recipe_id)
        if (index, image) in old
    ]


def _disagreeing_cases(comparison: RunComparison, disagreement: Disagreement) -> list[Case]:
    """Cases where the rising scorer gains most against what the falling one loses, each in its own spread."""
    up, down = (_score_rows(comparison, side.recipe_id) for side in (disagreement.up, disagreement.down))
    spreads = [float(np.std([row.delta for row in rows])) or 1.0 for rows in (up, down)]
    falls = {(row.index, row.image): row.delta for row in down}
    parted = [row for row in up if row.delta > 0 > falls.get((row.index, row.image), 0.0)]
    parted.sort(key=lambda row: -(row.delta / spreads[0] - falls[row.index, row.image] / spreads[1]))
    first = {row.index: row for row in reversed(parted)}
    name, digits = disagreement.down.scorer, decimals(spreads[1])
    return [
        _case(comparison, row, f"{name} {fixed(falls[row.index, row.image], digits, signed=True)}")
        for row in parted
        if first[row.index] is row
    ]


def _case(comparison: RunComparison, row: CaseRow, detail: str = "") -> Case:
    runs = comparison.baseline, comparison.run
    before, after = (run.picture(row.index, row.image) for run in runs)
    seeds = {run.seed(row.index, row.image) for run in runs}
    if len(seeds) == 1 and seeds != {None}:
        return Case(row.prompt, before, after, row.before, row.after, seeds.pop(), detail)
    number = f"image {row.image + 1} of {len(comparison.run.images[row.index])}"
    is_one = all(len(run.images[row.index]) == 1 for run in runs)
    detail = ", ".join(filter(None, [detail, "" if is_one else number]))
    return Case(row.prompt, before, after, row.before, row.after, detail=detail)


def _sample_groups(run: BenchmarkRun) -> list[Group[Sample]]:
    """Images of a run that is compared with none: the highest, middle and lowest by the first scorer."""
    first = run.values[0]
    scored = run.image_rows(first.recipe_id)
    rows = [CaseRow(index, run.prompts[index].prompt, 0.0, value, image) for index, image, value in scored]
    picks = pick_cases(rows, max(1, min(_CASES, len({row.index for row in rows}) // 3)))

    def sample(row: CaseRow) -> Sample:
        picture, seed = run.picture(row.index, row.image), run.seed(row.index, row.image)
        return Sample(row.prompt, picture, row.after, seed)

    named = zip(("Highest", "Middle", "Lowest"), picks, strict=True)
    return [Group(title, list(map(sample, rows)), f"{run.name}, by {first.scorer}") for title, rows in named if rows]
