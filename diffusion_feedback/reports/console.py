"""Results in plain text, as commands print them."""

from __future__ import annotations

from ..evaluation.benchmarks.benchmark import OVERALL, ScorerResult
from ..evaluation.benchmarks.run import BenchmarkRun, RunComparison
from .pages.benchmark_tables import digits_of, in_unit


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
