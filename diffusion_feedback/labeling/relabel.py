"""New labels for pairs that are there already, and how far they agree with the old ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .candidates import Candidate
from .pairs import judge_pairs, mean_probability, settle
from .panel import Panel


@dataclass(frozen=True, slots=True)
class RelabelCounts:
    """What became of the pairs, and the agreement of old labels and verdicts.

    ``agreed`` of ``compared``: pairs where old label and verdict choose the same side, of those where neither is a tie
    and the panel does not abstain. ``old_ties``, ``new_ties`` and ``both_tied`` count ties on either side and on both;
    ``unlabelled`` pairs had no old label. ``num`` = ``pairs`` + ``abstained`` + ``ties_dropped`` + ``improbable``.
    """

    num: int
    agreed: int
    compared: int
    old_ties: int
    new_ties: int
    both_tied: int
    unlabelled: int
    abstained: int
    ties_dropped: int
    improbable: int
    pairs: int
    mean_probability: float | None


@dataclass(frozen=True, slots=True)
class Relabelled:
    """New labels of all pairs in their order; ``label_0`` is None where a pair is left out.

    ``probability_0`` is the calibrated probability that sample 0 is preferred, None without logit scales.
    """

    label_0: Sequence[float | None]
    probability_0: Sequence[float | None]
    counts: RelabelCounts


def relabel(
    pairs: Sequence[tuple[Candidate, Candidate]], old_labels: Sequence[float | None], panel: Panel
) -> Relabelled:
    """Label ``pairs`` by ``panel``, old ties and unlabelled pairs (None) too: a scorer may well decide them.

    ``old_labels`` in [0, 1] are shares of votes for sample 0; above 0.5 they choose sample 0, below it sample 1.
    """
    verdicts = judge_pairs(panel, pairs)
    labels, outcomes = settle(panel, verdicts)
    labelled = np.array([label is not None for label in old_labels], bool)
    old_side = np.sign(np.array([0.5 if label is None else label for label in old_labels], np.float64) - 0.5)
    old_tie = (old_side == 0) & labelled
    new_tie = (verdicts.side == 0) & verdicts.agreed
    compared = (old_side != 0) & (verdicts.side != 0)
    tally = Counter(outcomes)
    counts = RelabelCounts(
        num=len(pairs),
        agreed=int(np.sum(compared & (old_side == verdicts.side))),
        compared=int(compared.sum()),
        old_ties=int(old_tie.sum()),
        new_ties=int(new_tie.sum()),
        both_tied=int(np.sum(old_tie & new_tie)),
        unlabelled=int(np.sum(~labelled)),
        abstained=tally["abstained"],
        ties_dropped=tally["tie"],
        improbable=tally["improbable"],
        pairs=tally["pair"],
        mean_probability=mean_probability(verdicts, outcomes),
    )
    kept = [label if outcome == "pair" else None for label, outcome in zip(labels, outcomes, strict=True)]
    probabilities = [None] * len(pairs) if verdicts.probability is None else verdicts.probability.tolist()
    return Relabelled(kept, probabilities, counts)
