"""Case rows, their order, and the cases picked for a reader."""

from __future__ import annotations

import pytest

from diffusion_feedback.errors import UserError
from diffusion_feedback.evaluation.comparison import CaseRow, compare, pick_cases


def _rows(deltas: list[float]) -> list[CaseRow]:
    return [CaseRow(index, f"prompt {index}", 0.0, delta) for index, delta in enumerate(deltas)]


def test_rows_fall_by_delta_and_the_win_rate_agrees() -> None:
    found = compare(["a", "b", "c", "d"], [1.0, 2.0, 3.0, 1.0], [2.0, 2.0, 1.0, 4.0])
    assert [row.prompt for row in found.rows] == ["d", "a", "b", "c"]
    assert [row.delta for row in found.rows] == [3.0, 1.0, 0.0, -2.0]
    assert (found.win_rate.wins, found.win_rate.ties, found.win_rate.losses) == (2, 1, 1)
    assert [row.after for row in found.rows] == [4.0, 2.0, 2.0, 1.0]


def test_equal_deltas_keep_the_order_of_the_input() -> None:
    found = compare(["a", "b", "c"], [0.0] * 3, [1.0] * 3)
    assert [row.index for row in found.rows] == [0, 1, 2]


def test_picks_are_best_median_and_worst() -> None:
    picks = pick_cases(_rows([float(value) for value in range(11)]), 3)
    assert [[row.delta for row in rows] for rows in picks] == [[10, 9, 8], [6, 5, 4], [0, 1, 2]]


@pytest.mark.parametrize("num", range(1, 13))
@pytest.mark.parametrize("count", [1, 2, 4])
def test_picks_never_overlap_and_never_miss_the_worst(num: int, count: int) -> None:
    rows = _rows([float(value) for value in range(num)])
    picks = pick_cases(rows, count)
    chosen = [row.index for picked in picks for row in picked]
    assert len(chosen) == len(set(chosen)) == min(num, 3 * count)
    shown = [*picks[0], *picks[1], *reversed(picks[2])]
    assert [row.index for row in shown] == sorted(chosen, reverse=True)
    assert picks[2][0].index == 0
    if num >= 3 * count:
        assert [len(picked) for picked in picks] == [count] * 3


def test_a_prompt_of_several_images_stands_once_in_a_group_and_its_images_are_told_apart() -> None:
    rows = [
        CaseRow(index, f"prompt {index}", 0.0, float(10 * index + 7 * image), image)
        for index in range(9)
        for image in range(4)
    ]
    best, median, worst = pick_cases(rows, 3)
    assert [(row.index, row.image) for row in best] == [(8, 3), (7, 3), (6, 3)]
    assert [(row.index, row.image) for row in worst] == [(0, 0), (1, 0), (2, 0)]
    assert len({row.index for row in median}) == 3
    assert len({*best, *median, *worst}) == 9


def test_wrong_input_is_named() -> None:
    with pytest.raises(UserError, match="2 prompts, 2 scores before, 1 after"):
        compare(["a", "b"], [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="count must be 1 or more"):
        pick_cases([], 0)
