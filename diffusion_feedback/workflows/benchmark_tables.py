"""Tables of benchmark runs: means by style, paired comparisons, published results, settings side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..evaluation.benchmarks.benchmark import OVERALL, Figures, ScorerResult
from ..evaluation.benchmarks.paired import ScorerComparison, StyleComparison
from ..evaluation.benchmarks.published import SPREAD
from ..evaluation.benchmarks.units import unit_of, version_of
from ..reports.html import decimals, fixed, p_value, percent
from ..reports.parts import Cell, Table
from .benchmark_folder import BenchmarkRun, published_rows

if TYPE_CHECKING:
    from ..evaluation.benchmarks.published import PublishedResult
    from ..reports.parts import Mark

ALL_PROMPTS = "all prompts"


def means_table(runs: Sequence[BenchmarkRun], recipe_id: str) -> Table:
    """Runs x styles under one scorer: mean, spread where the benchmark has one, standard error."""
    found = [(run, result) for run in runs for result in run.results if result.recipe_id == recipe_id]
    styles = _styles(found[0][1])
    digits = digits_of([result for _, result in found])
    spread = runs[0].benchmark.spread_name
    told = f"Mean ± {spread}; below it SE, the standard error of the mean." if spread else "Mean ± its standard error."
    rows = []
    for run, result in found:
        figures = {row.style: row for row in result.styles} | {ALL_PROMPTS: result.overall}
        rows.append((Cell(run.name), [_mean(figures[style], digits, bool(spread)) for style in styles]))
    return Table(f"Means, {found[0][1].scorer}{in_unit(recipe_id)}", styles, rows, f"{told} Recipe {recipe_id}.", "Run")


def in_unit(recipe_id: str) -> str:
    """What stands behind a scorer's name where figures are not its scores: " (100 x cosine)"."""
    return f" ({unit_of(recipe_id)})" if unit_of(recipe_id) else ""


def _styles(result: ScorerResult) -> list[str]:
    return [ALL_PROMPTS, *(row.style for row in result.styles if row.style != OVERALL)]


def digits_of(results: Sequence[ScorerResult]) -> int:
    """Decimals that show the standard errors of ``results`` with two digits, in 2 ... 4."""
    errors = [row.standard_error for result in results for row in (*result.styles, result.overall)]
    return max(2, min((decimals(error) for error in errors if error), default=2))


def _mean(figures: Figures, digits: int, has_spread: bool) -> Cell:
    text, details = fixed(figures.mean, digits), []
    error = f"{figures.standard_error:.{digits}f}" if figures.standard_error is not None else "unknown"
    if has_spread:
        text += f" ± {figures.spread:.{digits}f}" if figures.spread is not None else ""
        details.append(f"SE {error}")
    else:
        text += f" ± {error}"
    if figures.missing:
        details.append(f"incomplete: {figures.missing} of {figures.num + figures.missing} missing")
    return Cell(text, "\n".join(details), "differs" if figures.missing else "")


def paired_table(
    baseline: BenchmarkRun, compared: Sequence[tuple[BenchmarkRun, Sequence[ScorerComparison]]], recipe_id: str
) -> Table:
    """Each run against the baseline under one scorer: difference of means with interval and p-value, and win rate."""
    found = [(run, row) for run, rows in compared for row in rows if row.recipe_id == recipe_id]
    first = found[0][1]
    styles = list(dict.fromkeys(style.style for _, row in found for style in row.styles if style.style != OVERALL))
    rows = []
    for run, comparison in found:
        by_style = {row.style: row for row in comparison.styles} | {ALL_PROMPTS: comparison.overall}
        cells = [by_style.get(style) for style in (ALL_PROMPTS, *styles)]
        rows.append((Cell(run.name, "difference of means"), [_difference(cell) for cell in cells]))
        rows.append((Cell(run.name, "win rate"), [_win_rate(cell) for cell in cells]))
    detail = (
        f"Each run against {baseline.name}, prompt by prompt. Below each figure its 95 % interval; p is that of the paired "
        "permutation test. Coloured where the interval leaves out an even match."
    )
    return Table(
        f"Against {baseline.name}, {first.scorer}{in_unit(recipe_id)}", [ALL_PROMPTS, *styles], rows, detail, "Run"
    )


def _difference(row: StyleComparison | None) -> Cell:
    if row is None:
        return Cell("none", "no common prompt")
    found = row.difference
    digits = max(2, decimals(found.value))
    low, high = (fixed(bound, digits, signed=True) for bound in (found.low, found.high))
    return Cell(
        fixed(found.value, digits, signed=True),
        f"{low} to {high}\np {p_value(row.p_value)}",
        _mark(found.low > 0, found.high < 0),
    )


def _win_rate(row: StyleComparison | None) -> Cell:
    if row is None:
        return Cell("none", "no common prompt")
    won = row.win_rate
    detail = f"{percent(won.low)} to {percent(won.high)}" + (f"\n{won.ties} ties" if won.ties else "")
    return Cell(percent(won.win_rate), detail, _mark(won.low > 0.5, won.high < 0.5))


def _mark(is_better: bool, is_worse: bool) -> Mark:
    return "better" if is_better else "worse" if is_worse else ""


def published_table(run: BenchmarkRun, result: ScorerResult) -> Table | None:
    """What was published under the same version of the scorer, where there is such."""
    rows: Sequence[PublishedResult] = published_rows(run, result.recipe_id)
    if not rows:
        return None
    whole = run.benchmark.whole_styles(run.prompts)
    styles = [row.style for row in result.styles if not run.settings["short"] or row.style in whole]
    board, cells = rows[-1].source, []
    for row in rows:
        figures = row.by_style()
        texts = [Cell(f"{figures[style]:.2f}" if style in figures else "not told") for style in styles]
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
    found: dict[str, Any] = {name.replace("_", " "): run.settings.get(name) for name in names}
    found |= {name.replace("_", " "): value for name, value in run.settings.get("generation", {}).items()}
    found |= {f"recipe of {value.scorer}": value.recipe_id for value in run.values}
    found |= {"prompts": run.settings["prompts"], "prompts hash": run.settings["prompts_hash"]}
    found |= {"images per prompt": sum(map(len, run.images)) / max(1, sum(map(bool, run.images)))}
    found |= {"prompts without an image": run.missing, "version": run.settings.get("version")}
    return {name: None if value is None else _text(value) for name, value in found.items()}


def _text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
