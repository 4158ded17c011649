"""Pairs from candidates: free of the order of the input, ties, probabilities, caps, weights, and every count by hand."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import key_of, logistic, logit, one, panel_and_candidates, policy_of

from diffusion_feedback.errors import UserError
from diffusion_feedback.labeling import rules
from diffusion_feedback.labeling.pairs import LabelledPair, PairCounts, build_pairs

RULES = [
    rules.best_worst(),
    rules.adjacent(),
    rules.opposite(),
    rules.all_pairs(),
    rules.random(pairs_per_prompt=2),
    rules.random(pairs_per_prompt=3, margin=0.05),
    rules.mu_minus_2sigma(),
]
SCALES = [1.0, 0.5, 3.0]

values = st.sampled_from([-1.0, 0.0, 0.5, 2.0]) | st.floats(-4, 4, width=32)
tables = st.dictionaries(
    st.sampled_from(["p", "q", "r"]),
    st.dictionaries(st.sampled_from("uvwxyz"), st.lists(values, min_size=3, max_size=3), min_size=1, max_size=6),
    min_size=1,
)


def built(
    table: dict[str, dict[str, list[float]]], rule: rules.Rule, *, cap: int | None = None, **policy: Any
) -> list[LabelledPair]:
    number = len(next(iter(next(iter(table.values())).values())))
    panel, candidates = panel_and_candidates(table, SCALES[:number], policy_of(**policy))
    return build_pairs(candidates, panel, rule, max_pairs_per_prompt=cap)[0]


def sides(pairs: list[LabelledPair]) -> list[tuple[str, str, float]]:
    """(preferred, other, label of the preferred one); of a tie, image 0 stands first."""
    return [
        (p.first.name, p.second.name, p.label_0) if p.label_0 >= 0.5 else (p.second.name, p.first.name, 1 - p.label_0)
        for p in pairs
    ]


@given(
    tables,
    st.sampled_from(RULES),
    st.sampled_from(["mean", "vote", "abstain"]),
    st.sampled_from(["drop", "soft", "half"]),
    st.sampled_from([None, 1, 2]),
    st.integers(0, 10**6),
)
def test_the_order_of_the_input_does_not_matter(
    table: dict[str, dict[str, list[float]]], rule: rules.Rule, ensemble: str, ties: str, cap: int | None, seed: int
) -> None:
    panel, candidates = panel_and_candidates(table, SCALES, policy_of(ensemble, ties))
    # Some images twice, under another name: nothing but a count may come of it.
    doubled = [replace(candidate, name=f"{candidate.name} again") for candidate in candidates[::2]]
    candidates = candidates + doubled
    first = build_pairs(candidates, panel, rule, max_pairs_per_prompt=cap)
    shuffled = random.Random(seed).sample(candidates, len(candidates))
    assert build_pairs(shuffled, panel, rule, max_pairs_per_prompt=cap) == first
    pairs, counts = first
    assert counts.identical == len(doubled)
    assert not any(candidate.name.endswith("again") for pair in pairs for candidate in (pair.first, pair.second))
    assert [pair.prompt for pair in pairs] == sorted(pair.prompt for pair in pairs)
    assert counts.picked == (counts.pairs + counts.abstained + counts.ties_dropped + counts.improbable + counts.capped)


@given(tables, st.sampled_from(RULES), st.sampled_from(["mean", "vote", "abstain"]), st.sampled_from([None, 1, 2]))
def test_weights_and_caps(
    table: dict[str, dict[str, list[float]]], rule: rules.Rule, ensemble: str, cap: int | None
) -> None:
    whole = built(table, rule, ensemble=ensemble)
    pairs = built(table, rule, ensemble=ensemble, cap=cap)
    number = Counter(pair.prompt for pair in pairs)
    for pair in pairs:
        assert pair.weight == 1 / number[pair.prompt]
        assert pair.first.key < pair.second.key
        assert pair.first.prompt == pair.second.prompt == pair.prompt
    for prompt in {pair.prompt for pair in whole}:
        expected = [sides([pair]) for pair in whole if pair.prompt == prompt][:cap]
        assert [sides([pair]) for pair in pairs if pair.prompt == prompt] == expected


@given(tables, st.sampled_from(RULES[:4]))
def test_labels_are_the_definition(table: dict[str, dict[str, list[float]]], rule: rules.Rule) -> None:
    """Soft labels: the mean of the logistic of each scorer's difference, by the definition."""
    for pair in built(table, rule, ties="soft"):
        raws = [table[pair.prompt][candidate.name] for candidate in (pair.first, pair.second)]
        chances = [logistic(s * (x - y)) for s, x, y in zip(SCALES, *raws, strict=True)]
        assert pair.label_0 == pair.probability_0
        assert pair.label_0 == pytest.approx(sum(chances) / 3, rel=1e-12)
        assert pair.first.scores == tuple(10 * raw for raw in raws[0])


TIED = one([1.0, 1.0, 3.0])


def test_tie_policies_by_hand() -> None:
    low, high = sorted(("00", "01"), key=key_of)
    assert sides(built(TIED, rules.all_pairs())) == [("02", high, 1), ("02", low, 1)]
    halves = sides(built(TIED, rules.all_pairs(), ties="half"))
    assert halves == [("02", high, 1), ("02", low, 1), (low, high, 0.5)]
    soft = sides(built(TIED, rules.all_pairs(), ties="soft"))
    chance = pytest.approx(logistic(2))
    assert soft == [("02", high, chance), ("02", low, chance), (low, high, 0.5)]
    assert [pair.weight for pair in built(TIED, rules.all_pairs(), ties="half")] == [1 / 3] * 3
    assert [pair.weight for pair in built(TIED, rules.all_pairs())] == [1 / 2] * 2


NEAR = one([0.0, logit(0.6), logit(0.6) + logit(0.9)])
"""Chances of the better one: 01 over 00 0.6, 02 over 01 0.9, 02 over 00 0.9310."""


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, [("02", "00", 1), ("01", "00", 1), ("02", "01", 1)]),
        ({"min_probability": 0.6}, [("02", "00", 1), ("01", "00", 1), ("02", "01", 1)]),
        ({"min_probability": 0.61}, [("02", "00", 1), ("02", "01", 1)]),
        ({"min_probability": 0.92}, [("02", "00", 1)]),
        ({"tie_margin": 0.1}, [("02", "00", 1), ("02", "01", 1)]),
        ({"tie_margin": 0.1, "ties": "half"}, [("02", "00", 1), ("01", "00", 0.5), ("02", "01", 1)]),
        (
            {"tie_margin": 0.1, "ties": "half", "min_probability": 0.92},
            [("02", "00", 1), ("01", "00", 0.5)],  # a tie that is kept need not be probable
        ),
        ({"tie_margin": 0.1, "ties": "soft"}, [("02", "00", 27 / 29), ("01", "00", 0.6), ("02", "01", 0.9)]),
        ({"tie_margin": 0.1, "ties": "soft", "min_probability": 0.8}, [("02", "00", 27 / 29), ("02", "01", 0.9)]),
    ],
)
def test_margins_by_hand(policy: dict[str, object], expected: list[tuple[str, str, float]]) -> None:
    # A tie prefers neither, so its images are told by name.
    found = sorted(
        (*sorted(pair, reverse=True), label) if label == 0.5 else (*pair, label)
        for *pair, label in sides(built(NEAR, rules.all_pairs(), **policy))
    )
    assert [(a, b) for a, b, _ in found] == sorted((a, b) for a, b, _ in expected)
    for (*_, label), (*_, wanted) in zip(found, sorted(expected), strict=True):
        assert label == pytest.approx(wanted)


def test_the_panel_decides_not_the_rank() -> None:
    """w beats x for two of three scorers; by the mean of the probabilities x is far ahead, and so it is ranked."""
    table = {"p": {"w": [0.1, 0.2, 0.0], "x": [0.0, 0.0, 3.0]}}
    assert sides(built(table, rules.best_worst()))[0][:2] == ("x", "w")
    assert sides(built(table, rules.best_worst(), ensemble="vote"))[0][:2] == ("w", "x")
    assert built(table, rules.best_worst(), ensemble="abstain") == []


def test_every_count_by_hand() -> None:
    """p: 3 images and a copy of one, q: one image, r: two that the scorers see differently, s: two equal ones."""
    table = {
        "p": {"a": [0.0, 0.0], "b": [1.0, 3.0], "c": [1.5, 3.1]},
        "q": {"d": [9.0, 9.0]},
        "r": {"e": [1.0, 0.0], "f": [0.0, 1.0]},
        "s": {"g": [2.0, 2.0], "h": [2.0, 2.0]},
    }
    panel, candidates = panel_and_candidates(table, [2.0, 2.0], policy_of("abstain", "drop", min_probability=0.7))
    candidates.append(replace(candidates[0], name="copy"))
    pairs, counts = build_pairs(candidates, panel, rules.all_pairs(), max_pairs_per_prompt=1)
    # c over b: (logistic(1) + logistic(0.2)) / 2 = (0.7311 + 0.5498) / 2 = 0.6404, which is not enough.
    assert sides(pairs) == [("c", "a", 1)]
    assert counts == PairCounts(
        prompts=4,
        candidates=9,
        identical=1,
        lonely_prompts=1,
        picked=5,
        abstained=1,
        ties=1,
        ties_dropped=1,
        improbable=1,
        capped=1,
        pairs=1,
        mean_probability=pytest.approx((logistic(3) + logistic(6.2)) / 2),
    )


def test_ranks_alone() -> None:
    """Without a logit scale there are labels, and no probabilities."""
    panel, candidates = panel_and_candidates(TIED, [None], policy_of(ties="half"))
    pairs, counts = build_pairs(candidates, panel, rules.all_pairs())
    assert sorted(max(pair.label_0, 1 - pair.label_0) for pair in pairs) == [0.5, 1, 1]
    assert {pair.probability_0 for pair in pairs} == {None}
    assert counts.mean_probability is None


def test_nothing_to_pair() -> None:
    panel, candidates = panel_and_candidates(one([1.0]), [1.0])
    pairs, counts = build_pairs(candidates, panel, rules.all_pairs())
    assert (pairs, counts.lonely_prompts, counts.mean_probability) == ([], 1, None)
    with pytest.raises(UserError, match="`max_pairs_per_prompt`: got 0"):
        build_pairs(candidates, panel, rules.all_pairs(), max_pairs_per_prompt=0)
