"""What a benchmark is made of, and how scores of images become its metrics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np

from ...errors import UserError
from ...records import PromptRecord, ScoreRecord, content_hash
from ..bootstrap import Array
from .published import PublishedResult, published_value, unit_of

OVERALL = "all"
"""The name of the metrics over every prompt; a benchmark without styles has this one style."""

StyleMean = Callable[[Array], tuple[float, float | None]]
"""Scores of one style by prompt index, NaN where missing, to the mean and the spread that the benchmark reports."""


def plain_mean(values: Array) -> tuple[float, float | None]:
    """The mean of what is there, and no spread besides its standard error."""
    return float(np.nanmean(values)), None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark. ``source`` says who made it; ``prompts`` is where its prompts are read from when nothing is given.

    ``files`` maps styles to the files of a folder or hub repository; the style "" stands for a file whose rows name
    their own style in one of ``style_columns``, or that ``style_of`` tells from the prompt. ``per_style`` and ``total``
    are the numbers of prompts that published results stand on. ``unique`` leaves prompts out that came before.
    ``scorers`` are the specs taken when none are given. Metrics are in the unit of the published tables; ``published``
    are their results by the version of the scorer.
    """

    name: str
    title: str
    source: str
    prompts: str | None
    files: Mapping[str, str]
    scorers: tuple[str, ...]
    styles: tuple[str, ...] = ()
    style_columns: tuple[str, ...] = ("style", "category")
    style_of: Callable[[str], str] | None = None
    per_style: int | None = None
    total: int | None = None
    unique: bool = False
    style_mean: StyleMean = plain_mean
    spread_name: str = ""
    published: Mapping[str, Sequence[PublishedResult]] = field(default_factory=dict)

    def shortfalls(self, prompts: Sequence[PromptRecord]) -> list[str]:
        """In which ways the number of ``prompts`` differs from the published one; empty for a whole set.

        Raises UserError for styles that the benchmark does not have.
        """
        numbers = Counter(style_of(prompt) for prompt in prompts)
        if self.styles and (unknown := [style for style in numbers if style not in self.styles]):
            problem = f"benchmark {self.name}: no style {unknown[0]!r}"
            raise UserError(problem, f"its styles are {', '.join(self.styles)}; name each prompt's style")
        shortfalls = []
        if self.per_style is not None:
            counts = {style: numbers[style] for style in self.styles or numbers}
            shortfalls = [
                f"{style}: {n} of {self.per_style} prompts" for style, n in counts.items() if n != self.per_style
            ]
        if self.total is not None and len(prompts) != self.total:
            shortfalls.append(f"{len(prompts)} of {self.total} prompts")
        return shortfalls

    @property
    def has_own_prompts(self) -> bool:
        """Whether it is a list of prompts at all, which another file is not."""
        return self.prompts is not None

    def own_file(self, files: Sequence[Path]) -> str:
        """The names of the ``files`` that were read, where they are none of the benchmark's own; else empty.

        A copy goes by the name of the file that it is a copy of.
        """
        own = {PurePath(file).name for file in self.files.values()}
        return "" if {file.name for file in files} <= own else ", ".join(sorted(file.name for file in files))

    @property
    def without_styles(self) -> str:
        """What to do where a style has no image."""
        others = "`prompts` FOLDER/STYLE.json with `allow_short`" if self.styles else "`prompts` without them"
        return f"give images of every style, or measure the styles that you have: {others}"

    def whole_styles(self, prompts: Sequence[PromptRecord]) -> list[str]:
        """The styles of which every prompt is there, so that their metrics compare with published ones."""
        numbers = Counter(style_of(prompt) for prompt in prompts)
        return [style for style in self.styles if self.per_style is not None and numbers[style] == self.per_style]

    def style_order(self, prompts: Sequence[PromptRecord]) -> list[str]:
        """The styles of ``prompts``: in the benchmark's own order where it has one, else as they come."""
        known = dict.fromkeys(style_of(prompt) for prompt in prompts)
        return [style for style in self.styles if style in known] or list(known)


def style_of(prompt: PromptRecord) -> str:
    """The style of a prompt of a benchmark."""
    return str(prompt.extra.get("style", OVERALL))


def prompts_hash(prompts: Sequence[PromptRecord]) -> str:
    """Content hash of the prompts with their styles, in order, whatever file they stood in."""
    return content_hash(*[part for prompt in prompts for part in (style_of(prompt), prompt.prompt)])


# --- metrics ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StyleMetrics:
    """The metrics of one style (or of all prompts, ``OVERALL``) under one scorer.

    ``mean`` in the scorer's unit; ``standard_error`` of the mean over prompts, None for fewer than two; ``spread`` as
    the benchmark defines it, or None; ``num`` prompts were scored and ``missing`` were not.
    """

    style: str
    mean: float
    standard_error: float | None
    spread: float | None
    num: int
    missing: int

    def to_json(self) -> dict[str, object]:
        """As it stands in results.json; incomplete metrics say so."""
        return {
            "mean": self.mean,
            "standard_error": self.standard_error,
            "spread": self.spread,
            "num_prompts": self.num,
            "missing": self.missing,
            "complete": self.missing == 0,
        }


@dataclass(frozen=True, slots=True)
class PromptValues:
    """What one scorer says of each prompt: ``values`` (N,) in the order of the prompts, NaN where no image is.

    ``cut`` are the places of the prompts of which it read the beginning only; ``by_image`` are the values of each prompt's
    images, in their order, whose means the ``values`` are.
    """

    scorer: str
    recipe_id: str
    values: Array
    cut: tuple[int, ...] = ()
    by_image: Sequence[Sequence[float]] = ()


@dataclass(frozen=True, slots=True)
class ScorerResult:
    """The metrics of one scorer, style by style and over all."""

    scorer: str
    recipe_id: str
    styles: tuple[StyleMetrics, ...]
    overall: StyleMetrics

    @property
    def unit(self) -> str:
        """What the metrics are in the place of the scores themselves; empty where they are these."""
        return unit_of(self.recipe_id)


def prompt_values(images: Sequence[Sequence[str]], records: Sequence[ScoreRecord]) -> list[PromptValues]:
    """The mean of each prompt's images under each scorer; ``images`` are the names of the images of each prompt.

    In the unit of the published tables, and with the prompts that the scorer has read in part only.

    Raises UserError for a score that is not finite, and for one scorer under two recipes.
    """
    place = {name: index for index, names in enumerate(images) for name in names}
    scored: dict[str, tuple[str, dict[str, float]]] = {}
    cut: dict[str, set[int]] = {}
    for record in records:
        if record.scorer not in scored:
            scored[record.scorer] = (record.recipe_id, {})
        recipe_id, by_name = scored[record.scorer]
        if record.recipe_id != recipe_id:
            problem = f"scorer {record.scorer!r} stands under the recipes {recipe_id!r} and {record.recipe_id!r}"
            raise UserError(problem, "score the images again by one of them")
        value = published_value(record)
        if not math.isfinite(value):
            raise UserError(f"{record.sample}: its {record.scorer} score is {value}", "score the image again")
        if record.sample in place:
            by_name[record.sample] = value
            if record.prompt_cut:
                cut.setdefault(record.scorer, set()).add(place[record.sample])
    values = []
    for scorer, (recipe_id, by_name) in scored.items():
        rows = [[by_name.get(name, math.nan) for name in names] for names in images]
        known = [[value for value in row if not math.isnan(value)] for row in rows]
        means = np.array([np.mean(row) if row else np.nan for row in known])
        values.append(PromptValues(scorer, recipe_id, means, tuple(sorted(cut.get(scorer, ()))), rows))
    return values


def evaluate(benchmark: Benchmark, prompts: Sequence[PromptRecord], scored: PromptValues) -> ScorerResult:
    """The metrics of one scorer. Raises UserError where no prompt, or none of a style, was scored."""
    labels = np.array([style_of(prompt) for prompt in prompts])
    rows = []
    for style in benchmark.style_order(prompts):
        values = scored.values[labels == style]
        if np.isnan(values).all():
            problem = f"{scored.scorer}: none of the {len(values)} prompts of {style!r} has a scored image"
            raise UserError(problem, benchmark.without_styles)
        rows.append(_metrics(style, values, *benchmark.style_mean(values)))
    return ScorerResult(
        scored.scorer, scored.recipe_id, tuple(rows), _metrics(OVERALL, scored.values, *plain_mean(scored.values))
    )


def _metrics(style: str, values: Array, mean: float, spread: float | None) -> StyleMetrics:
    there = values[~np.isnan(values)]
    error = float(there.std(ddof=1) / math.sqrt(len(there))) if len(there) > 1 else None
    return StyleMetrics(style, mean, error, spread, len(there), len(values) - len(there))
