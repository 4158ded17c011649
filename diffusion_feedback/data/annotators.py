"""How far the people who voted agree: each with the majority of the others, two by two, and all together."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

_SHARED = 10  # examples that two people have to share before their kappa says anything


@dataclass(frozen=True, slots=True)
class Annotator:
    """One person: ``num_votes``, and how many of ``num_compared`` agree with the majority of the others on the same example.

    Ties, and examples on which the others are divided evenly, are not compared. ``interval`` is Wilson's of the share that
    ``agreed``, at 95 %.
    """

    name: str
    num_votes: int
    num_compared: int
    agreed: int
    interval: tuple[float, float]

    @property
    def agreement(self) -> float:
        """Share that agrees, in [0, 1]; NaN where nothing was compared."""
        return self.agreed / self.num_compared if self.num_compared else math.nan


class AnnotatorVotes:
    """Votes of named people on examples. Of one person's votes on one example their mean counts: above, at or below a half."""

    def __init__(self) -> None:
        self._votes: dict[str, dict[str, list[float]]] = {}
        self._counts: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, example: str, annotator: str, share: float) -> None:
        """Take in a vote, as its ``share`` for the side of ``example`` that comes first; one of nobody is left out."""
        if annotator:
            self._votes.setdefault(example, {}).setdefault(annotator, []).append(share)
            self._counts[annotator] += 1

    @property
    def votes_each(self) -> list[int]:
        """How many votes each person gave."""
        return sorted(self._counts.values())

    @cached_property
    def _choices(self) -> list[dict[str, float]]:
        """By example, each person's choice: 1, 0.5 or 0."""
        return [
            {name: _choice(math.fsum(shares) / len(shares)) for name, shares in votes.items()}
            for votes in self._votes.values()
        ]

    @property
    def num_shared(self) -> int:
        """Examples on which two people or more have voted."""
        return sum(len(choices) > 1 for choices in self._choices)

    @cached_property
    def people(self) -> list[Annotator]:
        """Everyone, the lowest agreement first; those with whom nothing was compared come last."""
        compared, agreed = Counter[str](), Counter[str]()
        for choices in self._choices:
            total = math.fsum(choices.values())
            for name, own in choices.items():
                others = (total - own) / (len(choices) - 1) if len(choices) > 1 else 0.5
                if own != 0.5 and abs(others - 0.5) > 1e-9:
                    compared[name] += 1
                    agreed[name] += (own > 0.5) == (others > 0.5)
        everyone = [
            Annotator(name, number, compared[name], agreed[name], wilson(agreed[name], compared[name]))
            for name, number in self._counts.items()
        ]
        return sorted(everyone, key=lambda each: (not each.num_compared, each.agreement, each.name))

    @property
    def at_chance(self) -> list[Annotator]:
        """Those whose interval holds a half and ends below the usual agreement, the median: they might toss a coin."""
        return [each for each in self._below if each.interval[1] >= 0.5]

    @property
    def against(self) -> list[Annotator]:
        """Those whose interval ends below a half: sides may have been mixed up."""
        return [each for each in self._below if each.interval[1] < 0.5]

    @property
    def _below(self) -> list[Annotator]:
        compared = [each for each in self.people if each.num_compared]
        usual = statistics.median(each.agreement for each in compared) if compared else 0.0
        return [each for each in compared if each.interval[0] <= 0.5 and each.interval[1] < max(usual, 0.5)]

    @property
    def alpha(self) -> float:
        """Krippendorff's alpha of the choices first, second, tie; NaN where no example has two votes, or all are alike."""
        return nominal_alpha([list(choices.values()) for choices in self._choices])

    @cached_property
    def kappas(self) -> Mapping[tuple[str, str], float]:
        """Cohen's kappa of every two people who share enough examples."""
        shared: defaultdict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for choices in self._choices:
            for one, other in combinations(sorted(choices), 2):
                shared[one, other].append((choices[one], choices[other]))
        kappas = {pair: cohen_kappa(both) for pair, both in shared.items() if len(both) >= _SHARED}
        return {pair: kappa for pair, kappa in kappas.items() if not math.isnan(kappa)}


def _choice(share: float) -> float:
    return 0.5 if abs(share - 0.5) < 1e-9 else float(share > 0.5)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's interval of a share at 95 %; (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    z = 1.959963984540054
    centre, spread = successes + z * z / 2, z * math.sqrt(successes * (trials - successes) / trials + z * z / 4)
    return max(0.0, (centre - spread) / (trials + z * z)), min(1.0, (centre + spread) / (trials + z * z))


def nominal_alpha(units: Iterable[Sequence[float]]) -> float:
    """Krippendorff's alpha for categories, of the values that each unit was given (Krippendorff, 2011).

    1 is full agreement, 0 what chance gives. Units with one value say nothing. NaN where no two values are to be
    compared, or all are of one category.
    """
    paired = [Counter(values) for values in units if len(values) > 1]
    totals = sum(paired, Counter[float]())
    number = totals.total()
    observed = math.fsum((_unlike(counts)) / (counts.total() - 1) for counts in paired)
    expected = _unlike(totals) / (number - 1) if number > 1 else 0.0
    return 1 - observed / expected if expected else math.nan


def _unlike(counts: Counter[float]) -> int:
    """Ordered pairs of values of different categories."""
    return counts.total() ** 2 - sum(count * count for count in counts.values())


def cohen_kappa(both: Sequence[tuple[float, float]]) -> float:
    """Cohen's kappa of two people's categories for the same things; NaN where chance alone would agree on all."""
    number = len(both)
    same = sum(one == other for one, other in both) / number
    firsts, seconds = (Counter(side) for side in zip(*both, strict=True))
    chance = sum(firsts[each] * seconds[each] for each in firsts) / number**2
    return (same - chance) / (1 - chance) if chance < 1 else math.nan
