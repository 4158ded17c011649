"""What predicts labels by itself: against independent numbers, planted strengths, and the stated rate of false alarms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binomtest

from diffusion_feedback.errors import UserError
from diffusion_feedback.evaluation.shortcuts import (
    FALSE_ALARMS,
    JOINT,
    MOST_NAMES,
    POSITION,
    ComparedPairs,
    find_shortcuts,
    fit_logistic,
    heldout_credit,
    holm,
    sign_flip_p_values,
)


def made(strength: float = 0.5, *, prompts: int = 300, seed: int = 0, **more: object) -> ComparedPairs:
    """Two pairs a prompt, of which ``strength`` prefer the side with more ``size``; ``noise`` says nothing."""
    source = np.random.default_rng(seed)
    numbers = {name: source.normal(size=(2 * prompts, 2)) for name in ("size", "noise")}
    has_more = np.subtract(*numbers["size"].T) > 0
    wins = source.random(2 * prompts) < strength
    return replace(ComparedPairs(has_more == wins, np.arange(2 * prompts) // 2, numbers, {}), **more)


def test_a_logistic_model_is_at_its_optimum() -> None:
    source = np.random.default_rng(1)
    columns, labels = source.normal(size=(80, 3)), source.random(80) < 0.6

    def loss(weights: np.ndarray) -> float:
        logits = columns @ weights
        return float(np.logaddexp(0, np.where(labels, -logits, logits)).sum() + 0.5 * weights @ weights)

    assert fit_logistic(columns, labels) == pytest.approx(minimize(loss, np.zeros(3), tol=1e-12).x, abs=1e-5)
    assert np.isfinite(fit_logistic(np.ones((5, 2)), np.array([True] * 5))).all()  # separable, and collinear


def test_one_pair_a_prompt_is_the_sign_test() -> None:
    labels = np.array([True] * 36 + [False] * 24)
    (p_value,) = sign_flip_p_values([np.ones((60, 1))], labels, np.arange(60))
    assert p_value == pytest.approx(binomtest(36, 60).pvalue, abs=0.02)
    # Twenty copies of three prompts are three prompts.
    (p_value,) = sign_flip_p_values([np.ones((60, 1))], np.array([True] * 60), np.arange(60) % 3)
    assert p_value == pytest.approx(0.25, abs=0.02)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize("strength", [0.6, 0.75, 0.95, 0.3])
def test_a_planted_strength_lies_in_the_interval(strength: float) -> None:
    shortcuts = {each.name: each for each in find_shortcuts(made(strength, seed=3))}
    size, share = shortcuts["size"], max(strength, 1 - strength)
    assert size.accuracy is not None
    assert size.accuracy.low <= share <= size.accuracy.high
    assert size.level == ("weak" if share == 0.6 else "strong")
    assert size.prefers_more == (strength > 0.5)
    assert shortcuts["noise"].level == "none"
    assert [*shortcuts][-1] == JOINT


def test_shuffled_labels_raise_no_more_alarms_than_stated() -> None:
    def alarms(seed: int) -> bool:
        pairs = made(seed=seed, prompts=40)
        columns = [*pairs.columns().values(), pairs.joint()]
        return min(holm(sign_flip_p_values(columns, pairs.first_preferred, pairs.codes))) < FALSE_ALARMS

    # Above 9 of 80 with a probability of 1 % where 5 % is the rate.
    assert sum(map(alarms, range(80))) <= 9


def test_the_answer_does_not_depend_on_which_side_comes_first() -> None:
    pairs = made(0.7)
    turned = replace(
        pairs, first_preferred=~pairs.first_preferred, numbers={n: v[:, ::-1] for n, v in pairs.numbers.items()}
    )
    first, second = ({s.name: s.accuracy for s in find_shortcuts(each)} for each in (pairs, turned))
    assert first.pop(POSITION) is not None
    second.pop(POSITION)
    first.pop(JOINT)
    second.pop(JOINT)
    assert first == second


def test_the_position_counts_unless_it_is_the_label() -> None:
    source = np.random.default_rng(0)
    pairs = made(first_preferred=source.random(600) < 0.75)
    assert (find_shortcuts(pairs)[0].name, find_shortcuts(pairs)[0].prefers_more) == (POSITION, True)
    assert POSITION not in {each.name for each in find_shortcuts(made(first_preferred=np.array([True] * 600)))}


def test_names_of_models_predict() -> None:
    source = np.random.default_rng(0)
    drawn = source.integers(0, 3, (600, 2))
    wins = source.random(600) < 0.8
    labels = np.where(drawn[:, 0] == drawn[:, 1], source.random(600) < 0.5, (drawn[:, 0] > drawn[:, 1]) == wins)
    names = [(f"model {a}", "" if number % 10 == 0 else f"model {b}") for number, (a, b) in enumerate(drawn)]
    pairs = made(first_preferred=labels, names={"source model": names, "file format": [("PNG", "PNG")] * 600})
    best, *others = find_shortcuts(pairs)
    assert (best.name, best.level, best.prefers_more) == ("source model", "strong", None)
    assert best.accuracy is not None
    assert best.accuracy.low <= 0.8 <= best.accuracy.high
    assert best.accuracy.num + best.num_equal == 600
    assert best.accuracy.num < 450
    assert "file format" not in {each.name for each in others}


def test_rare_names_are_as_good_as_unknown() -> None:
    """Names of their own on every side neither cost hours nor drown what the other properties say together."""
    size = 2000
    names = [(f"run {2 * n}", f"run {2 * n + 1}") for n in range(size)]
    names[:200] = [("new", "old") if n % 2 else ("old", "new") for n in range(200)]
    pairs = made(0.9, prompts=size // 2, names={"source model": names})
    assert pairs.rare_names == {"source model": 2 * (size - 200)}
    assert pairs.columns()["source model"].any(axis=0).sum() == 2
    shortcuts = {each.name: each for each in find_shortcuts(pairs)}
    assert shortcuts["source model"].num_equal == size - 200
    assert shortcuts[JOINT].level == "strong"
    # Each of sixty names stands on 33 prompts or 34: the commonest thirty count.
    many = [(f"model {n % 60}", f"model {(n + 1 + n // 60) % 60}") for n in range(size)]
    pairs = made(0.9, prompts=size // 2, names={"source model": many})
    assert pairs.columns()["source model"].any(axis=0).sum() == MOST_NAMES
    assert pairs.rare_names == {"source model": 30}
    assert made().rare_names == {}


def test_what_does_not_differ_or_is_unknown_is_left_out() -> None:
    pairs = made(0.9)
    values = pairs.numbers["size"].copy()
    values[:100, 1] = values[:100, 0]
    values[100:150, 0] = np.nan
    pairs = replace(pairs, numbers={"size": values, "constant": np.ones((600, 2)), "unknown": values * np.nan})
    shortcuts = {each.name: each for each in find_shortcuts(pairs)}
    assert shortcuts.keys() == {"size", POSITION, JOINT}
    assert shortcuts["size"].num_equal == 150
    assert shortcuts["size"].accuracy is not None
    assert shortcuts["size"].accuracy.num == 450
    credit = heldout_credit(np.sign(np.nan_to_num(values[:, :1] - values[:, 1:])), pairs.first_preferred, pairs.codes)
    assert not credit[:150].any()


def test_too_few_prompts_and_no_pairs() -> None:
    shortcuts = find_shortcuts(made(1.0, prompts=9))
    assert {each.accuracy for each in shortcuts} == {None}
    assert {each.level for each in shortcuts} == {"none"}
    with pytest.raises(UserError, match="no decided pairs to audit"):
        made(first_preferred=np.array([], bool))
