"""Results in plain text, as commands print them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from statistics import fmean, stdev

from ..data.image_folders import natural_order
from ..evaluation.benchmarks.benchmark import OVERALL, ScorerResult
from ..evaluation.benchmarks.run import BenchmarkRun, RunComparison
from ..evaluation.benchmarks.units import unit_of
from ..evaluation.calibrated import CalibrationResult
from ..evaluation.judged import Judged
from ..evaluation.statistics import Interval, proportion_interval
from ..labeling.pairs import PairCounts
from ..labeling.panel import Panel
from ..labeling.relabel import RelabelCounts
from ..records import ScoreRecord
from .html import significant
from .pages.benchmark_tables import digits_of, in_unit

_MOST_FOLDERS = 30  # a table of more says nothing on a screen


def benchmark_summary(run: BenchmarkRun, comparison: RunComparison | None) -> str:
    """Means by style, the nearest published ones, and the comparison with a baseline."""
    lines = []
    for result in run.results:
        digits = digits_of([result])
        lines.append(f"\n{result.scorer}{in_unit(result.recipe_id)}  ({result.recipe_id})")
        for row in (*(row for row in result.styles if row.style != OVERALL), result.overall):
            spread = f" +- {row.spread:.{digits}f} (groups)" if row.spread is not None else ""
            error = f", standard error {row.standard_error:.{digits}f}" if row.standard_error is not None else ""
            missing = f"  INCOMPLETE: {row.missing} of {row.num + row.missing} missing" if row.missing else ""
            lines.append(f"  {row.style:<18} {row.mean:.{digits}f}{spread}{error}, {row.num} prompts{missing}")
        nearest = _nearest_published(run, result)[:5]
        lines += [f"  published, not reproduced here: {model} {value:.2f}" for model, value in nearest]
    return "\n".join([*lines, *(_comparison_lines(comparison) if comparison else [])]).strip("\n")


def _comparison_lines(comparison: RunComparison) -> list[str]:
    lines, total = [], len(comparison.run.prompts)
    for row in comparison.scorers:
        won, change = row.overall.win_rate, row.overall.difference
        absent = f"; {total - won.num} of {total} prompts left out, as one of the runs lacks them"
        lines.append(
            f"\n{row.scorer} against {comparison.baseline.name}: win rate {won.win_rate:.3f} "
            f"({won.low:.3f} to {won.high:.3f}, {won.ties} ties of {won.num}{absent if won.num < total else ''}), "
            f"mean difference {change.value:+.4f} ({change.low:+.4f} to {change.high:+.4f}), "
            f"permutation p {row.overall.p_value:.4f}"
        )
    for pair in comparison.disagreements:
        alarm = f"{pair.up.scorer} rises while {pair.down.scorer} falls: reward hacking? Look at the images."
        lines.append(f"\nALARM: {alarm}")
    return lines


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
    counts = result.pairs.counts
    per_prompt = f"{'per prompt':<21} " if result.per_prompt else ""
    rankings = f", {counts['rankings']:,} rankings" if counts["rankings"] != counts["prompts"] else ""
    lines = [
        f"{counts['num']:,} labelled pairs of {counts['prompts']:,} prompts{rankings}, {counts['ties']:,} ties",
        f"{'scorer':<18} {'accuracy':<21} {per_prompt}{'with ties':>9} {'t':>4} {'log loss':>15} {'ECE':>13} {'logit scale':>17}",
    ]
    for scorer in result.ranked:
        shown = [scorer.accuracy, *([scorer.accuracy_per_prompt] if result.per_prompt else [])]
        accuracy = " ".join(f"{f'{share.value:.3f} ({share.low:.3f}-{share.high:.3f})':<21}" for share in shown)
        known = [probabilities for probabilities in (scorer.own, scorer.fitted) if probabilities]
        scales = [scale for scale in (scorer.own_logit_scale, scorer.fit.logit_scale) if scale is not None]
        losses = " -> ".join(f"{each.log_loss.value:.3f}" for each in known)
        errors = " -> ".join(f"{100 * each.ece:.1f}" for each in known) + " %"
        ties = f"{scorer.accuracy_with_ties.value:>9.3f} {scorer.tie_threshold:>4.1f}"
        mark = "  noise ceiling" if scorer.name == result.ceiling else ""
        cells = f"{losses:>15} {errors:>13} {' -> '.join(map(significant, scales)):>17}"
        lines.append(f"{scorer.name:<18} {accuracy} {ties} {cells}{mark}")
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def judge_summary(judged: Judged) -> str:
    """Win rates, mean scores and bias by judge; perplexity and divergence by model."""
    a, b = judged.names
    lines = list(judged.notes)
    for verdict in judged.verdicts:
        rate = verdict.win_rate
        interval = f"95 % interval {rate.low:.3f} to {rate.high:.3f}"
        lines.append(f"{a} against {b} by {verdict.spec}: win rate {rate.win_rate:.3f} ({interval})")
        lines.append(f"  {rate.wins} won, {rate.ties} ties, {rate.losses} lost, p = {rate.p_value:.3g}")
        if verdict.means:
            lines.append("  mean scores " + " and ".join(map(_mean_with_interval, verdict.means)))
        if verdict.bias:
            bias = verdict.bias
            lines.append(
                f"  prefers the one shown first in {bias.first_share.value:.1%} of its answers,"
                f" contradicts itself on {bias.disagreement.value:.1%} of the pairs (ties)"
            )
    for name, fluency in judged.fluency.items():
        ppl = fluency.perplexity
        lines.append(
            f"{name}: perplexity {ppl.value:.3f} ({ppl.low:.3f} to {ppl.high:.3f}) a token,"
            f" {fluency.bits_per_byte:.4f} bits a byte"
        )
    for name, distance in judged.distance.items():
        exact = f", exactly {distance.exact:.4f}" if distance.exact is not None else ""
        lines.append(
            f"{name}: KL to the reference {distance.kl.value:.4f} +- {distance.kl_error:.4f} nats{exact}"
            f" (by log-ratios {distance.log_ratio:.4f} +- {distance.log_ratio_error:.4f})"
        )
    return "\n".join(lines)


def _mean_with_interval(mean: Interval) -> str:
    bounds = f"{mean.low:.4f} to {mean.high:.4f}" if math.isfinite(mean.low) else "one prompt gives no interval"
    return f"{mean.value:.4f} ({bounds})"


def scores_summary(records: Sequence[ScoreRecord]) -> str:
    """For each scorer the number of images, mean with standard error, range, and recipe."""
    lines = [f"{'scorer':<18} {'images':>7} {'mean':>9} {'+- se':>8} {'min':>9} {'max':>9}  recipe"]
    by_scorer: dict[tuple[str, str], list[float]] = {}
    for record in records:
        by_scorer.setdefault((record.scorer, record.recipe_id), []).append(record.score)
    for (name, recipe), values in by_scorer.items():
        error = f"{stdev(values) / len(values) ** 0.5:.4f}" if len(values) > 1 else "-"
        columns = f"{fmean(values):>9.4f} {error:>8} {min(values):>9.4f} {max(values):>9.4f}"
        lines.append(f"{name:<18} {len(values):>7} {columns}  {recipe}")
    units = {name: unit_of(recipe) for name, recipe in by_scorer}
    notes = [f"{name}: the cosine; published tables and benchmarks show {unit}" for name, unit in units.items() if unit]
    return "\n".join([*lines, *notes])


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
    lonely = f" ({counts.lonely_prompts:,} with fewer than two candidates)" if counts.lonely_prompts else ""
    identical = f" ({counts.identical:,} identical ones removed)" if counts.identical else ""
    lines = [
        f"prompts           {counts.prompts:,}{lonely}",
        f"candidates        {counts.candidates:,}{identical}",
        f"picked            {counts.picked:,}",
        *_dropped(counts, panel),
    ]
    if counts.capped:
        lines.append(f"over the cap      {counts.capped:,}")
    return "\n".join([*lines, *_kept(counts)])


def relabelled_summary(counts: RelabelCounts, panel: Panel, identical: int, unscored: int) -> str:
    """How far new labels agree with the old, and what was left out: ``identical`` images, and pairs that were ``unscored``."""
    unlabelled = f" ({counts.unlabelled:,} without an old label)" if counts.unlabelled else ""
    lines = [f"pairs judged      {counts.num:,}{unlabelled}"]
    if identical:
        lines.append(f"identical images  {identical:,} pairs left out")
    if unscored:
        lines.append(f"not scored        {unscored:,} pairs left out")
    lines += _dropped(counts, panel)
    agreement = "no pair that both the old labels and the scorers decide"
    if counts.compared:
        share = proportion_interval(counts.agreed, counts.compared)
        agreement = (
            f"{share.value:.1%} of {counts.compared:,} pairs that both decide (95 % interval {share.low:.1%} to"
            f" {share.high:.1%})"
        )
    lines.append(f"agreement         {agreement}")
    ties = f"{counts.old_ties:,} old, {counts.new_ties:,} new, {counts.both_tied:,} both"
    lines.append(f"ties              {ties}; old ties are labelled again like all other pairs")
    return "\n".join([*lines, *_kept(counts)])


def _dropped(counts: PairCounts | RelabelCounts, panel: Panel) -> list[str]:
    policy = panel.policy
    lines = [f"ties dropped      {counts.ties_dropped:,}"] if policy.ties == "drop" else []
    if policy.ensemble == "abstain" and len(panel.judges) > 1:
        lines.append(f"abstained         {counts.abstained:,}")
    if policy.min_probability > 0.5:
        lines.append(f"below {policy.min_probability:<11g} {counts.improbable:,}")
    return lines


def _kept(counts: PairCounts | RelabelCounts) -> list[str]:
    lines = [f"pairs             {counts.pairs:,}"]
    if counts.mean_probability is not None:
        lines.append(f"mean probability  {counts.mean_probability:.4f} that the preferred image is preferred")
    return lines
