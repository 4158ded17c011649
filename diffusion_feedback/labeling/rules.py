"""Rules that pick pairs from the ranked candidates of a prompt. A rule's keyword-only settings are its schema.

Each function checks its settings at once and returns the rule itself: from a standing to pairs of places (i, j), i
ranked above j, 0 the best; the pairs it cares for most come first, so that a cap keeps those. Which sample of a pair is
preferred is for the panel to say, not for the rule. All of them depend on content alone: not on the order of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from operator import index
from typing import Any

import numpy as np

from ..catalog import check_settings, name_of, names, resolve
from ..catalog.sources import calling
from ..documents import parse_yaml
from ..errors import UserError
from ..records import content_hash
from ..specs import split_spec
from .candidates import Standing
from .ensembles import ROUNDING

Rule = Callable[[Standing], list[tuple[int, int]]]


def best_worst() -> Rule:
    """The best against the worst."""
    return lambda standing: [(0, len(standing) - 1)]


def adjacent() -> Rule:
    """Each against the next one down, from the top."""
    return lambda standing: [(place, place + 1) for place in range(len(standing) - 1)]


def opposite() -> Rule:
    """The best against the worst, the second best against the second worst, and so on: every sample in one pair."""
    return lambda standing: [(place, len(standing) - 1 - place) for place in range(len(standing) // 2)]


def all_pairs() -> Rule:
    """Every two candidates, the widest gaps in rank first."""
    return lambda standing: sorted(combinations(range(len(standing)), 2), key=lambda pair: (pair[0] - pair[1], pair))


def random(*, pairs_per_prompt: int = 1, margin: float = 0.0, seed: int = 0) -> Rule:
    """``pairs_per_prompt`` of the pairs with P(preferred sample preferred) >= 0.5 + ``margin``, drawn without replacement.

    Fewer where there are fewer. The draw is a function of the seed, the prompt and the two samples: a larger
    ``pairs_per_prompt`` adds pairs to those of a smaller one. A ``margin`` in [0, 0.5) above 0 needs logit scales.
    Raises UserError for other values.
    """
    for name, value, least in (("pairs_per_prompt", pairs_per_prompt, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"rule random: {name} is {value!r}", f"allowed: whole numbers, {least} or more")
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin < 0.5:
        raise UserError(f"rule random: margin is {margin!r}", "allowed: 0 or more, below 0.5")

    def draw(standing: Standing) -> list[tuple[int, int]]:
        pairs = list(combinations(range(len(standing)), 2))
        if margin > 0:
            margins = standing.margins()
            pairs = [pair for pair in pairs if margins[pair] >= margin - ROUNDING]

        def lot(pair: tuple[int, int]) -> str:
            return content_hash(
                f"random {seed}", standing.prompt, *sorted(standing.candidates[place].key for place in pair)
            )

        return sorted(pairs, key=lot)[:pairs_per_prompt]

    return draw


def mu_minus_2sigma() -> Rule:
    """The best against the candidate whose strength is nearest to mean - 2 standard deviations of the prompt's.

    Over many samples the very worst makes a poor rejected one (Xiao et al., arXiv:2502.16825). The deviation is that of
    the candidates themselves (divided by n); fewer than five never reach so far down, and where none does, the worst is
    the nearest. Of two that are equally near, the lower ranked is taken; the best is never its own rejected one.
    """

    def pick(standing: Standing) -> list[tuple[int, int]]:
        target = standing.strengths.mean() - 2 * standing.strengths.std()
        distances = np.abs(standing.strengths[1:] - target)
        return [(0, len(standing) - 1 - int(np.argmin(distances[::-1])))]

    return pick


@dataclass(frozen=True, slots=True)
class NamedRule:
    """A rule, and the text by which results name it."""

    name: str
    pick: Rule

    def __call__(self, standing: Standing) -> list[tuple[int, int]]:
        """The pairs of places that the rule picks."""
        return self.pick(standing)


def rule_of(given: str | Callable[..., Any], label: str) -> NamedRule:
    """The rule that ``given`` means; ``label``, where it stands, begins the message of a UserError.

    A text is ``NAME[,key=value...]`` with a name of the catalog, "file.py:attribute" or "module:attribute". A user's own
    rule, named so or handed in, is a function from a ``Standing`` to pairs of places (0 is the best); its keyword-only
    parameters are its settings. Raises UserError for an unknown rule or setting, and for a bad value.
    """
    if not isinstance(given, str):
        return NamedRule(name_of(given), _own_rule(given, {}, name_of(given)))
    form = "write NAME,key=value,..."
    spec = split_spec(given, f"{label} {given}", form)
    name = given.partition(",")[0]
    settings: dict[str, Any] = {}
    for key, value in spec.settings.items():
        try:
            settings[key] = parse_yaml(value, label)
        except UserError as error:
            raise UserError(f"{label} {given}: {value!r} is no value", form) from error
    function = resolve("rule", name)
    check_settings("rule", name, settings)
    return NamedRule(given, function(**settings) if name in names("rule") else _own_rule(function, settings, name))


def _own_rule(function: Callable[..., Any], settings: dict[str, Any], name: str) -> Rule:
    """A user's rule: what it picks is checked, and whatever it raises is one UserError."""
    label = f"rule {name}"

    def pick(standing: Standing) -> list[tuple[int, int]]:
        with calling(label):
            pairs = [(index(first), index(second)) for first, second in function(standing, **settings)]
        number = len(standing)
        for first, second in pairs:
            if first == second or not (0 <= first < number and 0 <= second < number):
                problem = f"{label}: picks ({first}, {second}) of {number} candidates of {standing.prompt!r}"
                raise UserError(problem, f"give two different places, from 0 (the best) to {number - 1}")
        return pairs

    return pick
