"""Benchmarks against figures worked out by hand, and what they refuse."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from diffusion_feedback.catalog import names, resolve
from diffusion_feedback.errors import UserError
from diffusion_feedback.evaluation.benchmarks.benchmark import (
    OVERALL,
    Benchmark,
    PromptValues,
    evaluate,
    prompt_values,
    prompts_hash,
)
from diffusion_feedback.evaluation.benchmarks.hpsv2 import grouped_mean
from diffusion_feedback.evaluation.benchmarks.paired import compare_scorers, disagreements
from diffusion_feedback.evaluation.benchmarks.published import PUBLISHED, STYLES, published_value, version_of
from diffusion_feedback.records import PromptRecord, ScoreRecord


def prompts(counts: dict[str, int]) -> list[PromptRecord]:
    return [PromptRecord(f"{style} {n}", {"style": style}) for style, count in counts.items() for n in range(count)]


def record(image: str, score: float, scorer: str = "judge", recipe: str = "judge.1/a/fp32/00") -> ScoreRecord:
    return ScoreRecord(image, f"key of {image}", "a prompt", scorer, recipe, score, score / 100, 100.0)


def values(*found: float, scorer: str = "judge", recipe: str = "judge.1/a/fp32/00") -> PromptValues:
    return PromptValues(scorer, recipe, np.array(found, np.float64))


# --- the HPSv2 protocol ----------------------------------------------------------------------------------------------


def test_ten_groups_of_eighty_by_hand() -> None:
    # Group g is all g, so the ten group means are 0 ... 9: mean 4.5, variance (ddof 0) (10^2 - 1) / 12.
    mean, spread = grouped_mean(np.repeat(np.arange(10.0), 80))
    assert mean == 4.5
    assert spread == pytest.approx(math.sqrt(99 / 12), rel=1e-12)


def test_groups_are_consecutive_and_agree_with_plain_python() -> None:
    scores = np.random.default_rng(0).normal(28, 1.5, 800)
    groups = [statistics.fmean(scores[start : start + 80].tolist()) for start in range(0, 800, 80)]
    assert grouped_mean(scores) == pytest.approx((statistics.fmean(groups), statistics.pstdev(groups)), rel=1e-12)
    shuffled = np.random.default_rng(1).permutation(scores)
    assert grouped_mean(shuffled)[1] != pytest.approx(grouped_mean(scores)[1], rel=1e-3)


def test_a_missing_image_moves_no_other() -> None:
    scores = np.repeat(np.arange(10.0), 80)
    scores[[0, 1, 2, 85]] = np.nan
    assert grouped_mean(scores) == (4.5, pytest.approx(math.sqrt(99 / 12)))
    scores[:80] = np.nan  # a whole group: nine means 1 ... 9 are left
    assert grouped_mean(scores) == (5.0, pytest.approx(math.sqrt(80 / 12)))


def test_short_sets_have_fewer_groups() -> None:
    assert grouped_mean(np.array([1.0, 3.0])) == (2.0, None)
    assert grouped_mean(np.concatenate([np.full(80, 1.0), np.full(20, 2.0)])) == (1.5, 0.5)


def test_the_average_is_over_images_and_the_styles_over_groups() -> None:
    found = resolve("benchmark", "hpsv2")()
    rows = prompts(dict.fromkeys(STYLES, 800))
    scores = np.random.default_rng(3).normal(27, 1.2, 3200)
    result = evaluate(found, rows, PromptValues("hpsv2", "r", scores))
    assert [row.style for row in result.styles] == list(STYLES)
    assert result.overall.mean == pytest.approx(statistics.fmean(scores.tolist()), rel=1e-12)
    assert result.overall.standard_error == pytest.approx(statistics.stdev(scores.tolist()) / math.sqrt(3200))
    assert result.overall.spread is None
    photo = scores[2400:].tolist()
    assert result.styles[3].mean == pytest.approx(statistics.fmean(photo), rel=1e-12)
    assert result.styles[3].standard_error == pytest.approx(statistics.stdev(photo) / math.sqrt(800))
    assert (result.styles[3].num, result.styles[3].missing) == (800, 0)


def test_the_unit_is_a_hundred_times_the_cosine() -> None:
    scorer = record("a", 31.4, recipe="hpsv2.1/letterbox/fp32/00")
    assert published_value(scorer) == pytest.approx(31.4)
    assert published_value(ScoreRecord("a", "k", "p", "mine", "hpsv2.0/x/fp32/00", 0.28, 0.28, 100.0)) == pytest.approx(
        28.0
    )
    assert published_value(record("a", 21.5)) == 21.5  # every other scorer as it stands


@pytest.mark.parametrize(
    ("recipe", "version"),
    [
        ("hpsv2.1/letterbox-224/fp32/ab12", "v2.1"),
        ("hpsv2.0/letterbox-224/fp32/ab12", "v2.0"),
        ("hpsv2.11/letterbox-224/fp32/ab12", None),
        ("hpsv3/letterbox-224/fp32/ab12", None),
        ("pickscore.1/crop/fp32/hpsv2.1/", None),
        ("shapes.1/box-64/fp32", None),
    ],
)
def test_the_version_is_read_from_the_recipe(recipe: str, version: str | None) -> None:
    assert version_of(recipe) == version


def test_numbers_of_prompts_are_checked() -> None:
    found = resolve("benchmark", "hpsv2")()
    assert found.shortfalls(prompts(dict.fromkeys(STYLES, 800))) == []
    assert found.shortfalls(prompts({"anime": 799, "photo": 801})) == [
        "anime: 799 of 800 prompts",
        "concept-art: 0 of 800 prompts",
        "paintings: 0 of 800 prompts",
        "photo: 801 of 800 prompts",
    ]
    with pytest.raises(UserError, match="no style 'sketch'"):
        found.shortfalls(prompts({"sketch": 800}))
    assert resolve("benchmark", "drawbench")().shortfalls(prompts({"Colors": 199})) == ["199 of 200 prompts"]
    assert resolve("benchmark", "partiprompts")().shortfalls(prompts({"Arts": 1632})) == []
    assert resolve("benchmark", "pickapic")().shortfalls(prompts({OVERALL: 7})) == []


def test_styles_keep_the_order_of_the_board() -> None:
    found = resolve("benchmark", "hpsv2")()
    assert found.style_order(prompts({"photo": 1, "anime": 1})) == ["anime", "photo"]
    assert resolve("benchmark", "drawbench")().style_order(prompts({"b": 1, "a": 1})) == ["b", "a"]


@pytest.mark.parametrize("name", names("benchmark"))
def test_every_benchmark_is_described(name: str) -> None:
    found: Benchmark = resolve("benchmark", name)()
    assert found.name == name
    assert found.title
    assert found.source
    assert set(found.scorers) <= {*names("scorer"), "pickscore", "hpsv2"}


def test_shapes_take_the_size_for_style() -> None:
    found = resolve("benchmark", "shapes")()
    assert found.style_of("a small red triangle on a blue background") == "small"
    assert found.style_of("a large red triangle on a blue background") == "large"
    assert found.style_of("something else") == OVERALL


def test_the_hash_follows_prompts_styles_and_order() -> None:
    one = prompts({"a": 2, "b": 1})
    assert prompts_hash(one) == prompts_hash(prompts({"a": 2, "b": 1}))
    assert len({prompts_hash(rows) for rows in (one, one[::-1], one[:2], prompts({"a": 2, "c": 1}))}) == 4


# --- values of prompts -----------------------------------------------------------------------------------------------


def test_seeds_of_a_prompt_are_averaged() -> None:
    found = resolve("benchmark", "pickapic")()
    records = [record("a-s0", 1.0), record("a-s1", 3.0), record("b-s0", 5.0), record("stray", 99.0)]
    (judged,) = prompt_values([["a-s0", "a-s1"], ["b-s0"], []], records)
    assert judged.values.tolist() == pytest.approx([2.0, 5.0, math.nan], nan_ok=True)
    result = evaluate(found, prompts({OVERALL: 3}), judged)
    assert (result.overall.mean, result.overall.num, result.overall.missing) == (3.5, 2, 1)
    assert result.overall.standard_error == pytest.approx(1.5)  # sd(2, 5) = 3 / sqrt(2), over sqrt(2)
    assert result.overall.to_json()["complete"] is False


def test_what_cannot_be_a_value_is_refused() -> None:
    found = resolve("benchmark", "pickapic")()
    with pytest.raises(UserError, match="a: its judge score is nan"):
        prompt_values([["a"]], [record("a", math.nan)])
    with pytest.raises(UserError, match="under the recipes 'judge.1/a/fp32/00' and 'other'"):
        prompt_values([["a"], ["b"]], [record("a", 1.0), record("b", 1.0, recipe="other")])
    with pytest.raises(UserError, match="none of the 1 prompts of 'b' has a scored image"):
        evaluate(found, prompts({"a": 1, "b": 1}), values(1.0, math.nan))


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_paired_figures_by_hand() -> None:
    before, after = values(1.0, 2.0, 3.0, 4.0), values(2.0, 4.0, 3.0, 3.0)
    (found,) = compare_scorers(["a", "a", "a", "b"], [before], [after])
    assert (found.overall.win_rate.wins, found.overall.win_rate.ties, found.overall.win_rate.losses) == (2, 1, 1)
    assert found.overall.difference.value == 0.5
    assert found.overall.p_value == 6 / 8  # signings of (1, 2, 1) with a sum of at least 2 or at most -2
    assert [(row.style, row.win_rate.num) for row in found.styles] == [("a", 3), ("b", 1)]
    (lenient,) = compare_scorers(["a"] * 4, [before], [after], tie_margin=1.0)
    assert (lenient.overall.win_rate.wins, lenient.overall.win_rate.ties) == (1, 3)
    assert found.to_json()["styles"]["b"]["mean_difference"] == {"value": -1.0, "low": None, "high": None, "num": 1}


def test_only_like_is_compared_with_like() -> None:
    one, two = values(1.0, 2.0), values(2.0, 1.0, recipe="judge.2/a/fp32/00")
    with pytest.raises(UserError, match=r"judge.2/a/fp32/00 here and judge.1/a/fp32/00 in the baseline"):
        compare_scorers(["a", "a"], [one], [two])
    with pytest.raises(UserError, match="no scorer in common: other here, judge in the baseline"):
        compare_scorers(["a", "a"], [one], [values(1.0, 2.0, scorer="other", recipe="o")])
    # The recipe is what counts, not the name that a run gave it.
    (found,) = compare_scorers(["a", "a"], [one], [values(2.0, 3.0, scorer="alias")])
    assert (found.scorer, found.overall.win_rate.wins) == ("alias", 2)


def test_missing_prompts_are_left_out_only_when_both_allow_it() -> None:
    before, after = values(1.0, math.nan, 3.0, 1.0), values(2.0, 2.0, math.nan, 0.0)
    with pytest.raises(UserError, match="1 prompt has no judge score here, 1 in the baseline"):
        compare_scorers(["a"] * 4, [before], [after])
    (found,) = compare_scorers(["a", "b", "b", "c"], [before], [after], allow_missing=True)
    assert (found.overall.win_rate.num, [row.style for row in found.styles]) == (2, ["a", "c"])
    with pytest.raises(UserError, match="share no prompt"):
        compare_scorers(["a"] * 2, [values(1.0, math.nan)], [values(math.nan, 1.0)], allow_missing=True)


def test_disagreement_needs_one_beyond_doubt() -> None:
    base, many = [0.0] * 30, {"up": [1.0] * 30, "down": [-1.0] * 16 + [1.0] * 14, "even": [1.0, -1.0] * 15}
    before = [values(*base, scorer=name, recipe=name) for name in many]
    found = compare_scorers(["a"] * 30, before, [values(*row, scorer=n, recipe=n) for n, row in many.items()])
    assert [(pair.up.scorer, pair.down.scorer) for pair in disagreements(found)] == [("up", "down")]
    assert disagreements(found[1:]) == []


# --- published results -----------------------------------------------------------------------------------------------


def test_published_averages_are_those_of_their_styles() -> None:
    """A slip in a digit would show: the board's average is the mean of its four styles, each of 800 prompts."""
    for results in PUBLISHED.values():
        for result in results:
            assert not result.reproduced
            assert result.source
            if result.styles:
                assert result.average == pytest.approx(statistics.fmean(result.styles), abs=0.011), result.model


def test_published_boards() -> None:
    assert [len(PUBLISHED[version]) for version in ("v2.0", "v2.1")] == [23, 22]
    assert PUBLISHED["v2.0"][0].average == 28.16
    assert PUBLISHED["v2.0"][0].by_style() == {}
    averages = {result.model: result.average for result in PUBLISHED["v2.1"]}
    assert (averages["SDXL Base 0.9"], averages["Stable Diffusion v1.4"]) == (30.63, 25.35)
    assert PUBLISHED["v2.1"][1].by_style() == {"anime": 32.84, "concept-art": 31.36, "paintings": 30.86, "photo": 27.48}
    for results in PUBLISHED.values():
        assert [result.average for result in results] == sorted((r.average for r in results), reverse=True)


def test_versions_and_benchmarks_are_never_mixed() -> None:
    assert {name for name in names("benchmark") if resolve("benchmark", name)().published} == {"hpsv2"}
