"""New labels beside old ones: what is kept and how the two agree, all by hand."""

from __future__ import annotations

from typing import Any

import pytest
from scored import logistic, one, panel_and_candidates, policy_of

from diffusion_feedback.labeling.relabel import RelabelCounts, Relabelled, relabel

# image 0 against image 1 of each pair, and the label that it had
PAIRS = [
    ((2.0, 1.0), 1.0),
    ((1.0, 2.0), 1.0),
    ((0.0, 3.0), 0.2),
    ((1.0, 1.0), 0.5),
    ((4.0, 1.0), 0.5),
    ((1.0, 1.0), 0.0),
    ((5.0, 0.0), None),
]


def relabelled(**policy: Any) -> Relabelled:
    raws = [raw for pair, _ in PAIRS for raw in pair]
    panel, candidates = panel_and_candidates(one(raws), [1.0], policy_of(**policy))
    return relabel(list(zip(candidates[::2], candidates[1::2], strict=True)), [label for _, label in PAIRS], panel)


def test_labels_and_agreement() -> None:
    found = relabelled()
    assert found.label_0 == [1, 0, 0, None, 1, None, 1]
    chances = [logistic(a - b) for (a, b), _ in PAIRS]
    assert found.probability_0 == pytest.approx(chances)
    # Both sides decide pairs 0, 1 and 2; they disagree about pair 1.
    assert found.counts == RelabelCounts(
        num=7,
        agreed=2,
        compared=3,
        old_ties=2,
        new_ties=2,
        both_tied=1,
        unlabelled=1,
        abstained=0,
        ties_dropped=2,
        improbable=0,
        pairs=5,
        mean_probability=pytest.approx(sum(logistic(d) for d in (1, 1, 3, 3, 5)) / 5),
    )


def test_ties_that_are_kept() -> None:
    assert relabelled(ties="half").label_0 == [1, 0, 0, 0.5, 1, 0.5, 1]
    assert relabelled(ties="soft").label_0 == pytest.approx([logistic(a - b) for (a, b), _ in PAIRS])


def test_a_dropped_pair_still_tells_of_agreement() -> None:
    found = relabelled(min_probability=0.8)
    assert found.label_0 == [None, None, 0, None, 1, None, 1]
    assert (found.counts.agreed, found.counts.compared, found.counts.improbable) == (2, 3, 2)


def test_a_panel_that_abstains_agrees_with_nobody() -> None:
    table = {"p": {"u": [1.0, 0.0], "v": [0.0, 1.0], "w": [1.0, 1.0], "x": [0.0, 0.0]}}
    panel, (u, v, w, x) = panel_and_candidates(table, [1.0, 1.0], policy_of("abstain"))
    found = relabel([(u, v), (w, x), (x, w)], [1.0, 1.0, 1.0], panel)
    assert found.label_0 == [None, 1, 0]
    assert (found.counts.abstained, found.counts.compared, found.counts.agreed, found.counts.new_ties) == (1, 2, 1, 0)
