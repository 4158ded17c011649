"""Tables of benchmark runs: means by style, paired comparisons, published results, settings side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ...errors import plural
from ...evaluation.benchmarks.benchmark import OVERALL, ScorerResult, StyleMetrics
from ...evaluation.benchmarks.paired import StyleComparison
from ...evaluation.benchmarks.published import SPREAD, unit_of, version_of
from ...evaluation.benchmarks.run import BenchmarkRun, RunComparison
from ..content import Cell, Mark, Table
from ..html import decimals, fixed, p_value
from ..results import leakage_words, share_cell

ALL_PROMPTS = "all prompts"
_NOT_COMPARED = Cell("none", "no common prompt")


def means_table(runs: Sequence[BenchmarkRun], recipe_id: str) -> Table:
    """Runs x styles under one scorer: mean, spread where the benchmark has one, standard error."""
    scored = [(run, result) for run in runs for result in run.results if result.recipe_id == recipe_id]
    styles = [ALL_PROMPTS, *(row.style for row in scored[0][1].styles if row.style != OVERALL)]
    digits = digits_of([result for _, result in scored])
    spread = runs[0].benchmark.spread_name if has_spread(runs) else ""
    detail = (
        f"Mean ± {spread}; below it SE, the standard error of the mean." if spread else "Mean ± its standard error."
    )
    rows = []
    for run, result in scored:
        metrics = {row.style: row for row in result.styles} | {ALL_PROMPTS: result.overall}
        rows.append((Cell(run.name), [_mean_cell(metrics[style], digits, bool(spread)) for style in styles]))
    title = f"Means, {scored[0][1].scorer}{in_unit(recipe_id)}"
    return Table(title, styles, rows, f"{detail} Recipe {recipe_id}.", "Run")


def has_spread(runs: Sequence[BenchmarkRun]) -> bool:
    """Whether any style has the spread of its benchmark; one of few prompts has none."""
    results = [result for run in runs for result in run.results]
    return any(row.spread is not None for result in results for row in (*result.styles, result.overall))


def in_unit(recipe_id: str) -> str:
    """What stands behind a scorer's name where metrics are not its scores: " (100 x cosine)"."""
    return f" ({unit_of(recipe_id)})" if unit_of(recipe_id) else ""


def digits_of(results: Sequence[ScorerResult]) -> int:
    """Decimals that show the standard errors of ``results`` with two digits, in 2 ... 4."""
    errors = [row.standard_error for result in results for row in (*result.styles, result.overall)]
    return max(2, min((decimals(error) for error in errors if error), default=2))


def _mean_cell(metrics: StyleMetrics, digits: int, has_spread: bool) -> Cell:
    text, details = fixed(metrics.mean, digits), []
    error = f"{metrics.standard_error:.{digits}f}" if metrics.standard_error is not None else "unknown"
    if has_spread:
        text += f" ± {metrics.spread:.{digits}f}" if metrics.spread is not None else ""
        details.append(f"SE {error}")
    else:
        text += f" ± {error}"
    if metrics.missing:
        details.append(f"incomplete: {metrics.missing} of {metrics.num + metrics.missing} missing")
    return Cell(text, "\n".join(details), "differs" if metrics.missing else "")


def paired_table(comparisons: Sequence[RunComparison], recipe_id: str) -> Table:
    """Each run against the baseline under one scorer: difference of means with interval and p-value, and win rate."""
    scored = [(each.run, row) for each in comparisons for row in each.scorers if row.recipe_id == recipe_id]
    styles = list(dict.fromkeys(style.style for _, row in scored for style in row.styles if style.style != OVERALL))
    rows = []
    for run, comparison in scored:
        by_style = {row.style: row for row in comparison.styles} | {ALL_PROMPTS: comparison.overall}
        cells = [by_style.get(style) for style in (ALL_PROMPTS, *styles)]
        rows.append((Cell(run.name, "difference of means"), [_difference_cell(cell) for cell in cells]))
        rows.append((Cell(run.name, "win rate"), [_win_rate_cell(cell) for cell in cells]))
    baseline = comparisons[0].baseline.name
    detail = (
        f"Each run against {baseline}, prompt by prompt. Below each figure its 95 % interval; p is that of the paired "
        "permutation test. Coloured where the interval leaves out an even match."
    )
    title = f"Against {baseline}, {scored[0][1].scorer}{in_unit(recipe_id)}"
    return Table(title, [ALL_PROMPTS, *styles], rows, detail, "Run")


def _difference_cell(row: StyleComparison | None) -> Cell:
    if row is None:
        return _NOT_COMPARED
    difference = row.difference
    digits = max(2, decimals(difference.value))
    value, low, high = (fixed(x, digits, signed=True) for x in (difference.value, difference.low, difference.high))
    return Cell(value, f"{low} to {high}\np {p_value(row.p_value)}", _mark(difference.low > 0, difference.high < 0))


def _win_rate_cell(row: StyleComparison | None) -> Cell:
    if row is None:
        return _NOT_COMPARED
    won = row.win_rate
    ties = [plural(won.ties, "tie")] if won.ties else []
    return share_cell(won, *ties, mark=_mark(won.low > 0.5, won.high < 0.5))


def _mark(is_better: bool, is_worse: bool) -> Mark:
    return "better" if is_better else "worse" if is_worse else ""


def published_table(run: BenchmarkRun, result: ScorerResult) -> Table:
    """What was published under the same version of the scorer; no rows where nothing was."""
    rows = run.published(result.recipe_id)
    whole = run.benchmark.whole_styles(run.prompts)
    styles = [row.style for row in result.styles if not run.settings["short"] or row.style in whole]
    board, cells = rows[-1].source if rows else "", []
    for row in rows:
        means = row.by_style()
        texts = [Cell(f"{means[style]:.2f}" if style in means else "not reported") for style in styles]
        # The source of most stands above the table; whoever has another one says so.
        name = Cell(row.model, row.source if row.source != board else "", "quiet")
        cells.append((name, [*([] if run.settings["short"] else [Cell(f"{row.average:.2f}")]), *texts]))
    detail = f"Source: {board}. The same version of the scorer, by other hands; reproduced here: no. {SPREAD}"
    title = f"Published results of the same scorer, {version_of(result.recipe_id)}"
    columns = styles if run.settings["short"] else [ALL_PROMPTS, *styles]
    return Table(title, columns, cells, detail, "Model", is_folded=True)


# --- settings --------------------------------------------------------------------------------------------------------


def settings_table(runs: Sequence[BenchmarkRun]) -> Table:
    """How each run was made; where they differ, every cell of the row is marked."""
    flat = [_flat(run) for run in runs]
    rows = []
    for key in dict.fromkeys(key for settings in flat for key in settings):
        values = [settings.get(key) for settings in flat]
        if any(value is not None for value in values):
            mark: Mark = "differs" if any(value != values[0] for value in values) else ""
            rows.append((Cell(key), [Cell("not set" if value is None else value, mark=mark) for value in values]))
    detail = "What differs is marked." if len(runs) > 1 else ""
    return Table("Settings", [run.name for run in runs], rows, detail, "Setting", is_text=True)


def _flat(run: BenchmarkRun) -> dict[str, str | None]:
    names = ("model", "lora", "model_hash", "images", "seeds")
    flat: dict[str, Any] = {name.replace("_", " "): run.settings.get(name) for name in names}
    flat |= {name.replace("_", " "): value for name, value in run.settings.get("generation", {}).items()}
    flat |= {f"recipe of {value.scorer}": value.recipe_id for value in run.values}
    flat |= {"prompts": run.settings["prompts"], "prompts hash": run.settings["prompts_hash"]}
    flat |= leakage_words(run.leakage)
    flat |= {"images per prompt": sum(map(len, run.images)) / max(1, sum(map(bool, run.images)))}
    flat |= {"prompts without an image": run.missing, "version": run.settings.get("version")}
    return {name: None if value is None else _text(value) for name, value in flat.items()}


def _text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
