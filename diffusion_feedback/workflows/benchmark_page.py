"""Benchmark runs as a page: figures, win rates, cases of every kind, and an alarm where scorers tell different stories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..evaluation.benchmarks.benchmark import OVERALL, ScorerResult
from ..evaluation.benchmarks.paired import Disagreement, ScorerComparison, disagreements
from ..evaluation.comparison import CaseRow, pick_cases
from ..evaluation.statistics import WinRate
from ..records import atomic_write
from ..reports.content import Case, CaseGroup, Rate, RateGroup, Report, Sample, SampleGroup
from ..reports.html import count, decimals, fixed, percent, write_report
from ..reports.parts import Notice
from .benchmark_folder import README, REPORT, BenchmarkRun, published_rows
from .benchmark_tables import digits_of, in_unit, means_table, paired_table, published_table, settings_table

CASES = 6  # two rows of three
Compared = Sequence[tuple[BenchmarkRun, Sequence[ScorerComparison]]]
"""Runs, each with its comparisons against the baseline by scorer."""

NOTES = {
    "spread": (
        "Spread of group means",
        "As published for this benchmark: the standard deviation of the means of groups of 80 prompts in their order. It "
        "says how far means of 80 prompts scatter, not how far the mean of all may be off; that is the standard error.",
    ),
    "permutation": (
        "p of the permutation test",
        "How often the mean difference would be at least so far from 0 if on each prompt the two runs were drawn by lot "
        "(10,000 draws, counted so that it is never 0; every case for few prompts). Many figures are tested here, so "
        "one of 0.03 by itself says little.",
    ),
    "recipe": (
        "Recipe",
        "Everything that makes a score: scorer and version, preprocessing, precision, hash of the weights. Scores are "
        "compared only under one recipe.",
    ),
}


def write_pages(run: BenchmarkRun, baseline: BenchmarkRun | None, comparisons: Sequence[ScorerComparison]) -> None:
    """Write report.html and README.md of one run."""
    report = runs_report([run], baseline, [(run, comparisons)] if baseline else [])
    write_report(report, run.folder / REPORT)
    with atomic_write(run.folder / README) as file:
        file.write_text(readme(run), "utf-8")


def runs_report(
    runs: Sequence[BenchmarkRun], baseline: BenchmarkRun | None, compared: Compared, *, title: str = ""
) -> Report:
    """One page over ``runs``, and over their comparisons with ``baseline``; the first scorer leads."""
    everyone = [*([baseline] if baseline else []), *runs]
    recipes = list(dict.fromkeys(result.recipe_id for run in [*runs, *everyone] for result in run.results))
    tables = []
    for recipe in recipes:
        tables.append(means_table(everyone, recipe))
        if baseline and any(row.recipe_id == recipe for _, rows in compared for row in rows):
            tables.append(paired_table(baseline, compared, recipe))
    boards = [published_table(run, result) for run in runs[:1] for result in run.results]
    single = compared[0] if len(compared) == 1 else None
    benchmark = runs[0].benchmark
    notes = [NOTES["recipe"]] + ([NOTES["spread"]] if benchmark.spread_name else [])
    return Report(
        title=title or f"{benchmark.title}: {', '.join(run.name for run in runs)}",
        summary=_summary(runs, baseline),
        before_name=baseline.name if baseline else "base",
        after_name=runs[0].name,
        headline=_rate(single[0].name, single[1][0].overall.win_rate, f"by {single[1][0].scorer}") if single else None,
        facts=_facts(everyone),
        notices=[*_agreement(baseline, compared), *_warnings(everyone), *_common(compared)],
        tables=[*tables, *(board for board in boards if board)],
        rate_groups=_rate_groups(compared) if baseline and (len(compared) > 1 or len(compared[0][1]) > 1) else [],
        score_name=f"{runs[0].values[0].scorer} score",
        cases=_cases(baseline, compared) if baseline else [],
        samples=[] if baseline else _samples(runs),
        setup=settings_table(everyone),
        is_same_seed=_is_same_seed(everyone),
        notes=notes + ([NOTES["permutation"]] if baseline else []),
    )


def _summary(runs: Sequence[BenchmarkRun], baseline: BenchmarkRun | None) -> str:
    scorers = " and ".join(dict.fromkeys(found.scorer for run in runs for found in run.values))
    against = f" Compared with {baseline.name} prompt by prompt." if baseline else ""
    return f"{count(len(runs[0].prompts))} prompts of {runs[0].benchmark.title} ({runs[0].benchmark.source}), judged by {scorers}.{against}"


def _facts(runs: Sequence[BenchmarkRun]) -> Mapping[str, str]:
    facts = {"prompts": count(len(runs[0].prompts)), "styles": str(len(dict.fromkeys(runs[0].styles)))}
    images = [count(sum(map(len, run.images))) for run in runs]
    facts["images"] = ", ".join(images) if len(set(images)) > 1 else images[0] + (" each" if len(runs) > 1 else "")
    return facts | {"runs": str(len(runs))}


# --- notices ---------------------------------------------------------------------------------------------------------


def _agreement(baseline: BenchmarkRun | None, compared: Compared) -> list[Notice]:
    """The alarm for scorers that tell different stories, and a calm line where several tell the same."""
    notices = [_alarm(run, found) for run, rows in compared for found in disagreements(rows)]
    for run, rows in compared:
        signs = {math.copysign(1, row.overall.win_rate.win_rate - 0.5) for row in rows}
        if baseline and len(rows) > 1 and len(signs) == 1 and not disagreements(rows):
            rates = ", ".join(f"{row.scorer} {percent(row.overall.win_rate.win_rate)}" for row in rows)
            side = "above" if signs == {1.0} else "below"
            notices.append(
                Notice(
                    f"All scorers agree on {run.name}",
                    f"Win rates against {baseline.name} are all {side} even: {rates}.",
                )
            )
    return notices


def _alarm(run: BenchmarkRun, found: Disagreement) -> Notice:
    up, down = found.up.overall.win_rate, found.down.overall.win_rate
    sure = "beyond doubt too" if down.high < 0.5 else "though not beyond doubt"
    return Notice(
        f"One scorer up while another falls: reward hacking? ({run.name})",
        f"{found.up.scorer} prefers {run.name} on {percent(up.win_rate)} of the prompts ({percent(up.low)} to "
        f"{percent(up.high)}), while {found.down.scorer} prefers it on {percent(down.win_rate)} only "
        f"({percent(down.low)} to {percent(down.high)}), {sure}. Look at the images where the two part before you "
        "trust either, above all if the model was trained on one of them.",
        "alarm",
    )


def _warnings(runs: Sequence[BenchmarkRun]) -> list[Notice]:
    notices = []
    for run in runs:
        if run.missing:
            parts = [f"{row.style}: {row.missing}" for row in run.results[0].styles if row.missing]
            text = f"{run.missing} of {len(run.prompts)} prompts have no scored image ({', '.join(parts)})."
            notices.append(Notice(f"{run.name} is incomplete", f"{text} Its means are those of the rest.", "caution"))
    whole = runs[0].benchmark.whole_styles(runs[0].prompts)
    for line in runs[0].settings["short"]:
        text = f"{line}. The figures do not compare with published ones, which stand on the whole set."
        text += f" Those of whole styles do, style by style: {', '.join(whole)}." if whole else ""
        notices.append(Notice("Not the whole benchmark", text, "caution"))
    for run in runs:
        for found in run.values:
            if found.cut:
                first = run.prompts[found.cut[0]].prompt
                text = (
                    f"{found.scorer} read the beginning only of {len(found.cut)} of {len(run.prompts)} prompts, beyond its "
                    f'token limit; the first: "{first[:100]}". All of them: results.json, cut_prompts.'
                )
                notices.append(Notice(f"Prompts cut, {run.name}", text, "caution"))
    return notices


def _common(compared: Compared) -> list[Notice]:
    """Said where runs were compared on a part of the prompts."""
    notices = []
    for run, rows in compared:
        num = min((row.overall.win_rate.num for row in rows), default=len(run.prompts))
        if num < len(run.prompts):
            text = f"{num} of {len(run.prompts)} prompts have a scored image in both runs; the others are left out."
            notices.append(Notice(f"{run.name} is compared on a part of the prompts", text, "caution"))
    return notices


# --- rates and pictures ----------------------------------------------------------------------------------------------


def _is_same_seed(runs: Sequence[BenchmarkRun]) -> bool:
    """Whether all runs were generated from the same seeds by the same rule; of given images nobody knows."""
    drawn = {str((run.settings.get("seeds"), run.settings.get("generation", {}).get("noise"))) for run in runs}
    return len(drawn) == 1 and bool(runs[0].settings.get("seeds"))


def _rate(label: str, won: WinRate, detail: str = "") -> Rate:
    return Rate(label, won.win_rate, won.low, won.high, won.num, won.tie_share, won.p_value, detail)


def _rate_groups(compared: Compared) -> list[RateGroup]:
    found: dict[str, list[Rate]] = {}
    for run, rows in compared:
        for row in rows:
            found.setdefault(row.scorer, []).append(
                _rate(run.name, row.overall.win_rate, f"{count(row.overall.win_rate.num)} prompts")
            )
    return [RateGroup(scorer, rates) for scorer, rates in found.items()]


def _cases(baseline: BenchmarkRun, compared: Compared) -> list[CaseGroup]:
    """For each run: the largest gains, typical cases and largest losses by the first scorer, and where scorers part."""
    groups = []
    for run, rows in compared:
        places = rows[0].scorer
        cases = _rows(baseline, run, rows[0].recipe_id)
        # All of them, for one run; fewer for each of several, so that the page stays light.
        number = max(1, min(CASES if len(compared) == 1 else CASES // 2, len(cases) // 3))
        picks = pick_cases(cases, number)
        named = (("Largest gains", picks.best), ("Typical cases", picks.median), ("Largest losses", picks.worst))
        told = f"{run.name}, by {places}"
        groups += [
            CaseGroup(title, [_case(baseline, run, case) for case in chosen], told, run.name) for title, chosen in named
        ]
        for found in disagreements(rows):
            parted = _parted(baseline, run, found)[:number]
            title = f"{found.up.scorer} rises, {found.down.scorer} falls"
            groups.append(CaseGroup(title, parted, f"{run.name}, where they part most", run.name))
    return [group for group in groups if group.cases]


def _rows(baseline: BenchmarkRun, run: BenchmarkRun, recipe_id: str) -> list[CaseRow]:
    old, new = (next(found.values for found in side.values if found.recipe_id == recipe_id) for side in (baseline, run))
    both = np.flatnonzero(~np.isnan(old) & ~np.isnan(new)).tolist()
    return [CaseRow(i, run.prompts[i].prompt, 0, float(old[i]), float(new[i])) for i in both]


def _parted(baseline: BenchmarkRun, run: BenchmarkRun, found: Disagreement) -> list[Case]:
    """Cases where the rising scorer gains most against what the falling one loses, each in its own spread."""
    up, down = (_rows(baseline, run, side.recipe_id) for side in (found.up, found.down))
    spreads = [float(np.std([row.delta for row in rows])) or 1.0 for rows in (up, down)]
    falls = {row.index: row.delta for row in down}
    parted = [row for row in up if row.delta > 0 > falls.get(row.index, 0.0)]
    parted.sort(key=lambda row: (-(row.delta / spreads[0] - falls[row.index] / spreads[1]), row.index))
    digits = decimals(spreads[1])
    return [
        _case(baseline, run, row, f"{found.down.scorer} {fixed(falls[row.index], digits, signed=True)}")
        for row in parted
    ]


def _case(baseline: BenchmarkRun, run: BenchmarkRun, row: CaseRow, detail: str = "") -> Case:
    images = baseline.picture(row.index), run.picture(row.index)
    return Case(row.prompt, *images, row.before, row.after, detail=detail)


def _samples(runs: Sequence[BenchmarkRun]) -> list[SampleGroup]:
    groups = []
    for run in runs:
        found = run.values[0]
        ordered = sorted(np.flatnonzero(~np.isnan(found.values)).tolist(), key=lambda i: (-found.values[i], i))
        rows = [CaseRow(i, run.prompts[i].prompt, 0, 0.0, float(found.values[i])) for i in ordered]
        picks = pick_cases(rows, max(1, min(CASES, len(rows) // 3)))
        for title, chosen in (("Highest", picks.best), ("Middle", picks.median), ("Lowest", picks.worst)):
            samples = [Sample(row.prompt, run.picture(row.index), row.after) for row in chosen]
            groups.append(SampleGroup(title, samples, f"{run.name}, by {found.scorer}"))
    return groups


# --- text ------------------------------------------------------------------------------------------------------------


def console_summary(run: BenchmarkRun, baseline: BenchmarkRun | None, comparisons: Sequence[ScorerComparison]) -> str:
    """The figures in plain text: means by style, the nearest published ones, and the comparison."""
    lines = []
    for result in run.results:
        digits = digits_of([result])
        lines.append(f"\n{result.scorer}{in_unit(result.recipe_id)}  ({result.recipe_id})")
        for row in (*(row for row in result.styles if row.style != OVERALL), result.overall):
            spread = f" +- {row.spread:.{digits}f} (groups)" if row.spread is not None else ""
            error = f", standard error {row.standard_error:.{digits}f}" if row.standard_error is not None else ""
            missing = f"  INCOMPLETE: {row.missing} of {row.num + row.missing} missing" if row.missing else ""
            lines.append(f"  {row.style:<18} {row.mean:.{digits}f}{spread}{error}, {row.num} prompts{missing}")
        lines += [
            f"  published, not reproduced here: {model} {value:.2f}" for model, value in _nearest(run, result)[:5]
        ]
    for line in comparisons:
        won, change = line.overall.win_rate, line.overall.difference
        lines.append(
            f"\n{line.scorer} against {baseline.name if baseline else ''}: win rate {won.win_rate:.3f} "
            f"({won.low:.3f} to {won.high:.3f}, {won.ties} ties of {won.num}{_left_out(run, won.num)}), mean difference {change.value:+.4f} "
            f"({change.low:+.4f} to {change.high:+.4f}), permutation p {line.overall.p_value:.4f}"
        )
    for found in disagreements(comparisons):
        up, down = found.up, found.down
        lines.append(f"\nALARM: {up.scorer} rises while {down.scorer} falls: reward hacking? Look at the images.")
    return "\n".join(lines).strip("\n")


def _nearest(run: BenchmarkRun, result: ScorerResult) -> list[tuple[str, float]]:
    """Published results by how near they are; of a single whole style, those of that style."""
    rows, whole = published_rows(run, result.recipe_id), run.benchmark.whole_styles(run.prompts)
    if not run.settings["short"]:
        found, own = [(row.model, row.average) for row in rows], result.overall.mean
    elif len(whole) == 1:
        found = [(f"{row.model}, {whole[0]}", row.by_style()[whole[0]]) for row in rows if whole[0] in row.by_style()]
        own = next(row.mean for row in result.styles if row.style == whole[0])
    else:
        found, own = [], 0.0
    return sorted(found, key=lambda named: abs(named[1] - own))


def _left_out(run: BenchmarkRun, num: int) -> str:
    return (
        f"; {len(run.prompts) - num} of {len(run.prompts)} prompts left out, as one of the runs lacks them"
        if num < len(run.prompts)
        else ""
    )


def readme(run: BenchmarkRun) -> str:
    """README.md of a run's folder."""
    images = (
        ""
        if run.settings.get("images")
        else "| `images/`, `metadata.jsonl` | the images, with prompt, seed and model |\n"
    )
    return f"""# {run.benchmark.title}: {run.name}

{len(run.prompts):,} prompts. Source: {run.benchmark.source}.

| | |
|---|---|
| `report.html` | the page to open: figures, comparison, images, settings |
| `results.json` | its figures: means by scorer and style, published results of the same scorer, comparison with a baseline |
| `scores.parquet` | one row for each image and scorer: score, raw value, recipe |
| `prompts.jsonl` | the prompts with their styles and the images of each |
| `benchmark.json` | the settings of the run: hashes of prompts and model, recipes of the scorers |
{images}
Compare another model with this run: `dfb benchmark {run.benchmark.name} ... --baseline {Path(run.folder).name}`.
"""
