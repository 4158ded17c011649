"""Each rule against what it says in words, on made-up scores with many ties."""

from __future__ import annotations

import statistics
from collections import Counter
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import key_of, logistic, one, panel_and_candidates

from diffusion_feedback.catalog import check_settings, names, resolve
from diffusion_feedback.catalog.rows import settings_of
from diffusion_feedback.errors import UserError
from diffusion_feedback.labeling import rules
from diffusion_feedback.labeling.candidates import Standing, rank
from diffusion_feedback.labeling.rule_specs import rule_of

# Few values, so that equal scores are common.
RAWS = st.lists(
    st.sampled_from([-1.0, 0.0, 0.25, 0.5, 2.0, 7.0]) | st.floats(-50, 50, width=32), min_size=2, max_size=9
)


def standing_of(raws: list[float], scale: float | None = 1.0) -> Standing:
    panel, candidates = panel_and_candidates(one(raws), [scale])
    return rank("p", candidates, panel)


def picked(rule: rules.Rule, raws: list[float], scale: float | None = 1.0) -> list[tuple[int, int]]:
    """The pairs as places in ``raws``."""
    standing = standing_of(raws, scale)
    return [(int(standing.candidates[i].name), int(standing.candidates[j].name)) for i, j in rule(standing)]


def key(place: int) -> str:
    return key_of(f"{place:02d}")


@given(RAWS)
def test_ranks_follow_scores_then_hashes(raws: list[float]) -> None:
    standing = standing_of(raws)
    found = [int(candidate.name) for candidate in standing.candidates]
    assert sorted(found) == list(range(len(raws)))
    for better, worse in pairwise(found):
        assert raws[better] > raws[worse] or (raws[better] == raws[worse] and key(better) < key(worse))


@given(RAWS)
def test_best_worst(raws: list[float]) -> None:
    [(best, worst)] = picked(rules.best_worst(), raws, None)
    assert best != worst
    assert raws[best] == max(raws)
    assert raws[worst] == min(raws)
    assert key(best) == min(key(i) for i, raw in enumerate(raws) if raw == max(raws))
    assert key(worst) == max(key(i) for i, raw in enumerate(raws) if raw == min(raws))


@given(RAWS)
def test_adjacent(raws: list[float]) -> None:
    pairs = picked(rules.adjacent(), raws, None)
    assert len(pairs) == len(raws) - 1
    for (a, b), (c, _) in pairwise(pairs):
        assert b == c
        assert raws[a] >= raws[b]
        assert not any(raws[b] < raw < raws[a] for raw in raws)
    assert raws[pairs[0][0]] == max(raws)
    assert raws[pairs[-1][1]] == min(raws)


@given(RAWS)
def test_opposite(raws: list[float]) -> None:
    pairs = picked(rules.opposite(), raws, None)
    assert len({place for pair in pairs for place in pair}) == 2 * len(pairs) == 2 * (len(raws) // 2)
    gaps = [raws[better] - raws[worse] for better, worse in pairs]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] == max(raws) - min(raws)
    assert min(gaps) >= 0


@given(RAWS)
def test_all_pairs(raws: list[float]) -> None:
    pairs = picked(rules.all_pairs(), raws, None)
    assert sorted(tuple(sorted(pair)) for pair in pairs) == list(combinations(range(len(raws)), 2))
    assert all(raws[i] >= raws[j] for i, j in pairs)
    assert pairs[:1] == picked(rules.best_worst(), raws, None)
    standing = standing_of(raws)
    gaps = [j - i for i, j in rules.all_pairs()(standing)]
    assert gaps == sorted(gaps, reverse=True)


@given(RAWS, st.integers(1, 12), st.integers(0, 3), st.sampled_from([0.0, 0.1, 0.3]))
def test_random(raws: list[float], number: int, seed: int, margin: float) -> None:
    scale = 0.5
    pairs = picked(rules.random(pairs_per_prompt=number, margin=margin, seed=seed), raws, scale)
    chances = {(i, j): logistic(scale * abs(raws[i] - raws[j])) for i, j in combinations(range(len(raws)), 2)}
    fits = {pair for pair, chance in chances.items() if chance >= 0.5 + margin - 1e-9}
    drawn = {tuple(sorted(pair)) for pair in pairs}
    assert len(drawn) == len(pairs) == min(number, len(fits))
    assert drawn <= fits
    more = picked(rules.random(pairs_per_prompt=number + 1, margin=margin, seed=seed), raws, scale)
    assert more[: len(pairs)] == pairs


def test_random_draws_every_pair_alike() -> None:
    """Among 3 candidates each of 3 pairs has 600 draws in 1800 (standard deviation 20); another seed draws others."""
    found: Counter[tuple[str, ...]] = Counter()
    changed = 0
    for prompt in range(1800):
        panel, candidates = panel_and_candidates({f"p{prompt}": {"x": [0.0], "y": [1.0], "z": [2.0]}})
        standing = rank(f"p{prompt}", candidates, panel)
        [(i, j)] = rules.random()(standing)
        found[standing.candidates[i].name, standing.candidates[j].name] += 1
        changed += rules.random(seed=1)(standing) != [(i, j)]
    assert set(found) == {("z", "x"), ("z", "y"), ("y", "x")}
    assert all(abs(count - 600) < 100 for count in found.values())
    assert abs(changed - 1200) < 100


@given(RAWS)
def test_mu_minus_2sigma(raws: list[float]) -> None:
    [(best, rejected)] = picked(rules.mu_minus_2sigma(), raws, None)
    target = statistics.fmean(raws) - 2 * statistics.pstdev(raws)
    distances = {place: abs(raw - target) for place, raw in enumerate(raws) if place != best}
    assert best != rejected
    assert raws[best] == max(raws)
    assert distances[rejected] <= min(distances.values()) + 1e-9
    if min(raws) >= target:
        assert raws[rejected] == min(raws)


def test_mu_minus_2sigma_by_hand() -> None:
    """Mean 9.25, variance (85.5625 + 18.0625 + 18 * 0.5625) / 20 = 5.6875, so the target is 9.25 - 4.77 = 4.48."""
    raws = [0.0, 5.0, *[10.0] * 18]
    [(_, rejected)] = picked(rules.mu_minus_2sigma(), raws, None)
    assert raws[rejected] == 5.0
    # With few candidates nothing reaches two deviations down: the worst.
    [(best, rejected)] = picked(rules.mu_minus_2sigma(), [1.0, 4.0, 2.0, 3.0], None)
    assert (best, rejected) == (1, 0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"pairs_per_prompt": 0}, "pairs_per_prompt is 0"),
        ({"pairs_per_prompt": 1.5}, "pairs_per_prompt is 1.5"),
        ({"pairs_per_prompt": True}, "pairs_per_prompt is True"),
        ({"margin": 0.5}, "margin is 0.5"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"margin": "wide"}, "margin is 'wide'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_random_refuses_settings_at_once(settings: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        rules.random(**settings)  # type: ignore[arg-type]


def test_a_margin_needs_probabilities() -> None:
    with pytest.raises(UserError, match="scorer 'a'.*has no logit scale.*margin above 0"):
        picked(rules.random(margin=0.1), [1.0, 2.0], None)
    assert len(picked(rules.random(), [1.0, 2.0], None)) == 1


def test_the_catalog_knows_the_rules() -> None:
    assert names("rule") == ["best_worst", "adjacent", "opposite", "all_pairs", "random", "mu_minus_2sigma"]
    assert list(settings_of(resolve("rule", "random"))) == ["pairs_per_prompt", "margin", "seed"]
    with pytest.raises(UserError, match="does not take 'pairs'"):
        check_settings("rule", "random", {"pairs": 3})


@pytest.mark.parametrize(("margin", "expected"), [("1e-3", 0.001), ("0.25", 0.25)])
def test_numbers_of_a_rule_are_read_as_in_recipes(
    margin: str, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[float] = []
    monkeypatch.setattr(rules, "random", lambda *, margin: found.append(margin))
    rule_of(f"random,margin={margin}", "`rule`")
    assert found == [expected]
