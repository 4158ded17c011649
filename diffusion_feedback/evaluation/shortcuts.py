"""How well properties that nobody meant to judge, such as size or saturation, predict preferences by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ..errors import UserError
from .bootstrap import Array, share_intervals
from .statistics import Interval

FALSE_ALARMS = 0.05
"""Share of data sets without any shortcut in which at least one is reported, over all properties together."""
STRONG = 0.6
"""A shortcut whose interval lies above this accuracy is a strong one."""
FEWEST_PROMPTS = 10
"""Of fewer prompts with pairs that differ in a property, nothing is said of it."""
MOST_NAMES = 30
"""Of the names of one property the commonest that count; the others are as good as unknown."""
JOINT, POSITION = "all together", "position"

_FOLDS, _FLIPS = 5, 4999
_RIDGE = 1.0  # of the weights of columns with unit size: keeps names that always sum to zero apart
_LARGEST = 4.0  # standardized differences beyond it count as this much
_BATCH_VALUES = 4_000_000

Level = Literal["none", "weak", "strong"]


@dataclass(frozen=True, slots=True)
class ComparedPairs:
    """Properties of both sides of N decided pairs, in the order in which the data has the sides.

    ``first_preferred`` (N,) is true where side 0 is preferred; ``codes`` (N,) is the prompt of each pair, from 0.
    ``numbers`` are (N, 2), NaN where unknown; ``names`` are (N, 2) texts, "" where unknown. Raises UserError for no pairs.
    """

    first_preferred: NDArray[np.bool_]
    codes: NDArray[np.int64]
    numbers: Mapping[str, Array]
    names: Mapping[str, Sequence[tuple[str, str]]]

    def __post_init__(self) -> None:
        if not len(self.first_preferred):
            raise UserError("no decided pairs to audit", "give pairs with a preference")

    @property
    def is_ordered(self) -> bool:
        """Whether the preferred side always comes first, or always second: the position is then the label, and says nothing."""
        return len(set(self.first_preferred.tolist())) == 1

    @property
    def rare_names(self) -> dict[str, int]:
        """How many names of each property do not count, where some do not: too rare, or not among the commonest."""
        rare = {name: {*chain(*pairs)} - {""} - _common(pairs, self.codes) for name, pairs in self.names.items()}
        return {name: len(each) for name, each in rare.items() if each}

    def columns(self) -> dict[str, Array]:
        """What each property says of each pair, (N, K): zeros say nothing.

        Of numbers the sign of the difference, side 0 - side 1; of names 1 for that of side 0 and -1 for that of side 1.
        """
        columns = {name: np.sign(_difference(values))[:, None] for name, values in self.numbers.items()}
        columns |= {name: _one_hot(pairs, _common(pairs, self.codes)) for name, pairs in self.names.items()}
        if not self.is_ordered:
            columns[POSITION] = np.ones((len(self.codes), 1))
        return {name: values for name, values in columns.items() if values.any()}

    def joint(self) -> Array:
        """All properties of each pair, (N, K), in units of their size over all pairs; 0 for what is unknown."""
        parts = [_difference(values)[:, None] for values in self.numbers.values()]
        parts += [values for name, values in self.columns().items() if name not in self.numbers]
        known = np.concatenate(parts, axis=1) if parts else np.zeros((len(self.codes), 0))
        known = known[:, known.any(axis=0)]
        scaled: Array = np.clip(known / np.sqrt((known**2).mean(axis=0)), -_LARGEST, _LARGEST)
        return scaled


@dataclass(frozen=True, slots=True)
class Shortcut:
    """How well one property predicts the label.

    ``accuracy`` is the share of pairs, among those that differ in it, whose label it predicts in folds of prompts that it
    was not fitted on; None of too few prompts. ``p_value`` is that of "it says nothing of the label", ``adjusted`` the same
    for all properties together (Holm). ``prefers_more`` says which way: None for names and for all together. Of all pairs
    ``num_equal`` do not differ in it, or are not known.
    """

    name: str
    accuracy: Interval | None
    p_value: float
    adjusted: float
    prefers_more: bool | None
    num_equal: int

    @property
    def gain(self) -> float:
        """Labels that it predicts beyond chance, in number of pairs."""
        return (self.accuracy.value - 0.5) * self.accuracy.num if self.accuracy else 0.0

    @property
    def level(self) -> Level:
        """``weak``: the label depends on it, at FALSE_ALARMS over all properties; ``strong``: and by more than STRONG."""
        if self.accuracy is None or self.adjusted >= FALSE_ALARMS or self.accuracy.value <= 0.5:
            return "none"
        return "strong" if self.accuracy.low > STRONG else "weak"


def find_shortcuts(pairs: ComparedPairs) -> list[Shortcut]:
    """Every property of ``pairs`` that differs in some of them, the best predictor first; all together at the end.

    The model is logistic, on differences, without an intercept: antisymmetric, so that exchanging the sides of a pair
    exchanges the prediction. Pairs that do not differ in a property are left out of it and counted.
    """
    columns = pairs.columns()
    if not columns:
        return []
    columns[JOINT] = pairs.joint()
    p_values = sign_flip_p_values(list(columns.values()), pairs.first_preferred, pairs.codes)
    adjusted = holm(p_values)
    credits = [heldout_credit(values, pairs.first_preferred, pairs.codes) for values in columns.values()]
    counted = [values.any(axis=1) for values in columns.values()]
    known = [len(np.unique(pairs.codes[each])) >= FEWEST_PROMPTS for each in counted]
    rows = [number for number, is_known in enumerate(known) if is_known]
    intervals: dict[int, Interval] = {}
    if rows:
        top, bottom = np.stack([credits[row] for row in rows]), np.stack([counted[row] for row in rows])
        intervals = dict(zip(rows, share_intervals(top, bottom, pairs.codes), strict=True))
    sign = np.where(pairs.first_preferred, 1.0, -1.0)
    shortcuts = [
        Shortcut(
            name=name,
            accuracy=intervals.get(number),
            p_value=p_values[number],
            adjusted=adjusted[number],
            prefers_more=bool(sign @ values[:, 0] > 0) if name in pairs.numbers or name == POSITION else None,
            num_equal=int((~counted[number]).sum()),
        )
        for number, (name, values) in enumerate(columns.items())
    ]
    return sorted(shortcuts, key=lambda each: (each.name == JOINT, -each.gain))


def fit_logistic(columns: Array, first_preferred: NDArray[np.bool_]) -> Array:
    """Weights (K,) of P(side 0 is preferred) = sigmoid(columns @ weights), with a ridge penalty; by Newton's method."""
    weights = np.zeros(columns.shape[1])
    for _ in range(50):
        probability = expit(columns @ weights)
        slope = columns.T @ (first_preferred - probability) - _RIDGE * weights
        curvature = (columns * (probability * (1 - probability))[:, None]).T @ columns + _RIDGE * np.eye(len(weights))
        step = np.linalg.solve(curvature, slope)
        weights = weights + step
        if np.abs(step).max(initial=0.0) < 1e-8:
            break
    return weights


def heldout_credit(columns: Array, first_preferred: NDArray[np.bool_], codes: NDArray[np.int64]) -> Array:
    """1 where the label is predicted by a model that saw no pair of that prompt, 0.5 without a prediction, else 0, (N,).

    0 for pairs of which ``columns`` (N, K) say nothing. Whole prompts are held out, in five folds.
    """
    differs, prompts = columns.any(axis=1), np.unique(codes)
    order = np.random.default_rng(0).permutation(len(prompts))
    fold = dict(zip(prompts[order].tolist(), (np.arange(len(prompts)) % _FOLDS).tolist(), strict=True))
    folds = np.array([fold[code] for code in codes.tolist()])
    logits = np.zeros(len(codes))
    for number in range(_FOLDS):
        held = folds == number
        if (held & differs).any() and (~held & differs).any():
            logits[held] = columns[held] @ fit_logistic(columns[~held & differs], first_preferred[~held & differs])
    signs = np.where(first_preferred, logits, -logits)
    credit: Array = np.where(np.abs(logits) < 1e-12, 0.5, (signs > 0).astype(np.float64)) * differs
    return credit


def sign_flip_p_values(
    properties: Sequence[Array], first_preferred: NDArray[np.bool_], codes: NDArray[np.int64]
) -> list[float]:
    """P-value of "the labels do not depend on it" for each of ``properties`` (N, K), in (0, 1].

    Score test of the logistic model; its distribution comes from exchanging all labels of a prompt at once, which the
    dependence of pairs of one prompt survives. 4999 flips under a fixed seed, p = (b + 1) / (flips + 1).
    """
    num_prompts = int(codes.max()) + 1
    sign = np.where(first_preferred, 0.5, -0.5)
    scores, scales = [], []
    for values in properties:
        score = np.stack([np.bincount(codes, weights=sign * column, minlength=num_prompts) for column in values.T], 1)
        scores.append(score)
        scales.append(np.linalg.pinv(score.T @ score, hermitian=True))
    observed = [float(each.sum(0) @ scale @ each.sum(0)) for each, scale in zip(scores, scales, strict=True)]
    source, joined = np.random.default_rng(0), np.concatenate(scores, axis=1)
    ends = np.cumsum([each.shape[1] for each in scores])[:-1]
    extreme, left = np.zeros(len(scores)), _FLIPS
    while left:
        size = min(left, max(1, _BATCH_VALUES // num_prompts))
        totals = (1 - 2.0 * source.integers(0, 2, (size, num_prompts), np.int8)) @ joined
        for number, part in enumerate(np.split(totals, ends, axis=1)):
            flipped = np.einsum("rk,kl,rl->r", part, scales[number], part)
            extreme[number] += (flipped >= observed[number] * (1 - 1e-9)).sum()  # equal sums differ by rounding
        left -= size
    return [float(p_value) for p_value in (extreme + 1) / (_FLIPS + 1)]


def holm(p_values: Sequence[float]) -> list[float]:
    """``p_values`` for many questions at once (Holm, Scandinavian Journal of Statistics 6:65, 1979).

    Of true null hypotheses one or more falls below a level with at most that probability, however they depend.
    """
    adjusted, highest = [1.0] * len(p_values), 0.0
    for place, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[number]))
        adjusted[number] = highest
    return adjusted


def _difference(values: Array) -> Array:
    return np.nan_to_num(values[:, 0] - values[:, 1])


def _common(pairs: Sequence[tuple[str, str]], codes: NDArray[np.int64]) -> set[str]:
    """The commonest names, of those that stand on enough prompts for something to be said of them."""
    prompts: dict[str, set[int]] = {}
    for both, code in zip(pairs, codes.tolist(), strict=True):
        for name in filter(None, both):
            prompts.setdefault(name, set()).add(code)
    enough = [name for name, where in prompts.items() if len(where) >= FEWEST_PROMPTS]
    return {*sorted(enough, key=lambda name: (-len(prompts[name]), name))[:MOST_NAMES]}


def _one_hot(pairs: Sequence[tuple[str, str]], common: Set[str]) -> Array:
    """(N, K): 1 for the name of side 0 and -1 for that of side 1; 0 where they are the same, or one is not ``common``."""
    known = [(first, second) if {first, second} <= common else ("", "") for first, second in pairs]
    place = {name: number for number, name in enumerate(sorted({name for pair in known for name in pair}))}
    columns, rows = np.zeros((len(pairs), len(place))), np.arange(len(pairs))
    for side, sign in ((0, 1.0), (1, -1.0)):
        columns[rows, [place[pair[side]] for pair in known]] += sign  # each row once a side
    return columns
