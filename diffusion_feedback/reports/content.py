"""What a report says: frozen parts of plain numbers, words and pictures, checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from ..errors import UserError
from ..evaluation.calibrated import CalibrationResult
from ..evaluation.statistics import Interval, WinRate
from .figures import CurveFigure, Picture, PointsFigure

Part = TypeVar("Part")
Mark = Literal["", "better", "worse", "differs", "quiet"]
Tone = Literal["alarm", "caution", "calm"]


@dataclass(frozen=True, slots=True)
class Rate:
    """How often the model ``label`` won, as a share; ``detail`` is a few words beside it.

    ``num_prompts``: how many prompts the comparisons are of; where these are more, no sign test is shown, as the samples of
    one prompt are alike.
    """

    label: str
    won: WinRate
    detail: str = ""
    num_prompts: int | None = None

    @property
    def p_value(self) -> float | None:
        """That of the sign test, where one is shown."""
        return self.won.p_value if self.num_prompts in (None, self.won.num) else None


@dataclass(frozen=True, slots=True)
class Claim:
    """A result in one ``value`` and one ``sentence`` where no win rate says it; ``label`` is what the value is.

    ``share`` draws a value in [0, 1] with its interval, against one half.
    """

    value: str
    label: str
    sentence: str
    facts: Mapping[str, str] = field(default_factory=dict)
    share: Interval | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric before and after, in one unit; ``is_share`` shows values in [0, 1] as per cent.

    ``bounds`` is the 95 % interval of after - before: only a change whose interval leaves out 0 is coloured. Raises
    UserError for values that are not finite, and bounds in the wrong order.
    """

    label: str
    before: float
    after: float
    bounds: Interval | None = None
    is_share: bool = False
    higher_is_better: bool = True
    detail: str = ""

    def __post_init__(self) -> None:
        where = f"metric {self.label!r}"
        _check_finite(where, before=self.before, after=self.after)
        if self.bounds is not None and not self.bounds.low <= self.bounds.high:
            problem = f"{where}: the change lies between {self.bounds.low} and {self.bounds.high}"
            raise UserError(problem, "give the lower bound first")

    @property
    def change(self) -> float:
        """after - before."""
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval of the change leaves out 0, else ``same``."""
        if self.bounds is None or self.bounds.low <= 0 <= self.bounds.high:
            return "same"
        return "better" if (self.bounds.low > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt with its image before and after, and the score of each; higher is better; ``detail`` is a few words
    beside the scores. Raises UserError for scores that are not finite.
    """

    prompt: str
    before_image: Picture
    after_image: Picture
    before_score: float
    after_score: float
    seed: int | None = None
    detail: str = ""

    def __post_init__(self) -> None:
        _check_finite(f"case {self.prompt!r}", before_score=self.before_score, after_score=self.after_score)

    @property
    def delta(self) -> float:
        """after_score - before_score."""
        return self.after_score - self.before_score


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its prompt and its score; higher is better. Raises UserError for a score that is not finite."""

    prompt: str
    image: Picture
    score: float
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_finite(f"image of {self.prompt!r}", score=self.score)


@dataclass(frozen=True, slots=True)
class Strip:
    """One prompt with the images that several models, or several steps of one, made from the same noise, each named."""

    prompt: str
    pictures: Sequence[tuple[str, Picture]]
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Mistake:
    """A pair that a scorer ranks otherwise than people: what they ``preferred``, what it does, and how sure it is.

    ``votes`` is the share of votes for what people preferred, ``confidence`` the scorer's probability of the other one, both in
    [0.5, 1].
    """

    prompt: str
    preferred: Picture
    favoured: Picture
    votes: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Group(Generic[Part]):
    """Win rates, cases, samples or strips under one heading; ``after_name`` where that of cases is not the report's own."""

    title: str
    parts: Sequence[Part]
    detail: str = ""
    after_name: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """A message above everything else; ``tone`` "alarm" cannot be overlooked, "caution" and "calm" can."""

    title: str
    text: str
    tone: Tone = "calm"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: ``text`` with smaller words below, one line for each of ``detail``; ``mark`` colours it, or says that
    it differs in its row.
    """

    text: str
    detail: str = ""
    mark: Mark = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table under its own heading: each row is its name and one cell a column.

    Without rows it leaves no trace on the page. ``is_text`` sets the cells as words, not as numbers; ``is_folded`` shows the heading alone until it is opened. Raises UserError for a row whose cells are not one a column.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[Cell, Sequence[Cell]]]
    detail: str = ""
    corner: str = ""
    is_text: bool = False
    is_folded: bool = False

    def __post_init__(self) -> None:
        for name, cells in self.rows:
            if len(cells) != len(self.columns):
                problem = f"table {self.title!r}, row {name.text!r}: {len(cells)} cells, {len(self.columns)} columns"
                raise UserError(problem, "give one cell for each column")


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one page says; a part that is left empty leaves no trace on the page.

    ``headline`` is the win rate of ``after_name`` over ``before_name``, ``claim`` what stands in its place; ``methods`` are win rates of several models
    against ``before_name``. ``score_name`` says what the cases were scored by, ``facts`` are a few words at the top,
    ``is_same_seed`` says that both images of a case start from one seed,
    ``medium`` what a model draws for a prompt; ``curves_title`` stands above the curves. ``strips`` show images side by side. ``code`` says how a result is loaded. ``recipe`` is YAML, ``notes`` (title, text) are added to "How to read this". ``notices`` stand at the top;
    ``tables`` and ``rate_groups`` (win rates against ``before_name``, by scorer) below the headline; ``setup`` says
    how several models were run, with their differences marked; ``mistakes`` are pairs on which scorers are surely wrong.
    """

    title: str
    summary: str = ""
    before_name: str = "base"
    after_name: str = "tuned"
    headline: Rate | None = None
    claim: Claim | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Metric] = ()
    methods: Sequence[Rate] = ()
    score_name: str = "score"
    cases: Sequence[Group[Case]] = ()
    curves: Sequence[CurveFigure | PointsFigure] = ()
    calibration: CalibrationResult | None = None
    recipe: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[tuple[str, str]] = ()
    notices: Sequence[Notice] = ()
    tables: Sequence[Table] = ()
    rate_groups: Sequence[Group[Rate]] = ()
    samples: Sequence[Group[Sample]] = ()
    mistakes: Sequence[Group[Mistake]] = ()
    strips: Sequence[Group[Strip]] = ()
    code: str = ""
    setup: Table | None = None
    is_same_seed: bool = True
    medium: str = "an image"
    curves_title: str = "Training"

    def __post_init__(self) -> None:
        if not self.title.strip():
            raise UserError("the report has no title", "give a title of at least one character")


def _check_finite(where: str, **values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise UserError(f"{where}: {name} is {value}", "score it again, or leave it out of the report")
