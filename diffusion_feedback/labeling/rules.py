"""Rules that pick pairs from the ranked candidates of a prompt. A rule's keyword-only settings are its schema.

Each function checks its settings at once and returns the rule itself: from a standing to pairs of places (i, j), i
ranked above j, 0 the best; the pairs it cares for most come first, so that a cap keeps those. Which sample of a pair is
preferred is for the panel to say, not for the rule. All of them depend on content alone: not on the order of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np

from ..errors import UserError
from ..records import content_hash
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
