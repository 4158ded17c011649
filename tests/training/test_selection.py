"""The best step, and the end of a run that gets no better: by evaluations alone, whatever interrupted the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_feedback.errors import UserError
from diffusion_feedback.training.run_folder import RunFolder
from diffusion_feedback.training.selection import Evaluations, Selection, best_line

ACCURACIES = st.lists(st.sampled_from([0.25, 0.5, 0.625, 0.75, math.nan]), min_size=1, max_size=8)


def history(values: Sequence[float], metric: str) -> dict[int, dict[str, float]]:
    return {10 * (number + 1): {metric: value} for number, value in enumerate(values)}


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 20), ("nll", 10), ("wins/pickscore", 20)])
def test_the_earliest_of_the_best_in_the_direction_of_its_row(metric: str, best: int) -> None:
    values = history([0.5, 0.7, 0.7, math.nan, 0.5], metric)
    assert Selection(keep_best=metric).best({0: {metric: 5.0}} | values) == (best, values[best][metric])
    assert Selection().best(values) is None
    assert (
        Selection(keep_best=metric).best({0: {metric: 0.9}}) is None
    )  # of the model as it came there is no checkpoint


@pytest.mark.parametrize(
    ("values", "patience", "min_delta", "stops"),
    [
        ([0.5, 0.6, 0.6, 0.6], 2, 0.0, 40),
        ([0.5, 0.6, 0.6, 0.6], 3, 0.0, None),
        ([0.5, 0.6, 0.7, 0.8], 2, 0.05, None),
        ([0.5, 0.55, 0.6, 0.65], 2, 0.1, 30),
        ([0.5, 0.4, 0.6, 0.5, 0.5], 2, 0.0, 50),
    ],
)
@pytest.mark.parametrize("metric", ["accuracy", "error/chosen"])
def test_a_run_ends_after_so_many_evaluations_without_a_gain(
    metric: str, values: list[float], patience: int, min_delta: float, stops: int | None
) -> None:
    signed = values if metric == "accuracy" else [-value for value in values]
    selection = Selection(early_stopping=metric, patience=patience, min_delta=min_delta)
    seen = history(signed, metric)
    ends = [step for step in seen if selection.stop({at: seen[at] for at in seen if at <= step})]
    assert ends[:1] == ([stops] if stops else [])


def test_a_metric_that_the_evaluations_lack_is_named() -> None:
    with pytest.raises(UserError, match=r"'nll' is no metric of this run's evaluations\n  -> they have accuracy, loss"):
        Selection(keep_best="nll").best({10: {"loss": 1.0, "accuracy": 0.5}})
    with pytest.raises(UserError, match="they have none, as nothing is held out"):
        Selection(early_stopping="accuracy").stop({10: {}})


@given(values=ACCURACIES, cut=st.integers(1, 8), is_marked=st.booleans())
def test_after_a_kill_the_mark_is_that_of_a_run_without_one(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], cut: int, is_marked: bool
) -> None:
    """Killed behind the evaluation of a step, before its mark or after; its checkpoint knows the evaluations before it."""
    folder, selection = RunFolder(tmp_path_factory.mktemp("run")), Selection(keep_best="accuracy")
    evaluations, seen = Evaluations(folder, selection), history(values, "accuracy")
    for number, (step, metrics) in enumerate(seen.items(), start=1):
        folder.place_of(step).mkdir(parents=True)
        before = dict(evaluations.metrics)
        folder.log({"step": step, **{f"validation/{name}": value for name, value in metrics.items()}})
        evaluations.note(step, metrics)
        if evaluations.is_best(step) and (is_marked or number != cut):
            evaluations.mark(step, writes=True)
        if number == cut:
            evaluations = Evaluations(folder, selection)
            evaluations.restore(step, before, writes=True)
        folder.prune(1)
    marked, expected = folder.read_best(), selection.best(seen)
    assert (None if marked is None else (marked[0], marked[2])) == expected
    assert expected is None or folder.place_of(expected[0]).is_dir()


def logged(folder: RunFolder, evaluations: dict[int, dict[str, float]]) -> None:
    for step, metrics in evaluations.items():
        folder.place_of(step).mkdir(parents=True)
        folder.log({"step": step, **{f"validation/{name}": value for name, value in metrics.items()}})


def test_the_evaluation_of_an_end_that_is_none_any_more_counts_for_nothing(tmp_path: Path) -> None:
    """Evaluated every 2 steps and at its end, 3, a run goes on to 8: one without that break has nothing at step 3."""
    folder = RunFolder(tmp_path)
    logged(folder, {2: {"accuracy": 0.5}, 3: {"accuracy": 0.75}})
    evaluations = Evaluations(folder, Selection(keep_best="accuracy"))
    evaluations.restore(3, {}, writes=True, is_due=lambda step: step % 2 == 0)
    assert (evaluations.best, list(evaluations.metrics)) == ((2, 0.5), [2])
    evaluations.restore(3, {}, writes=True, is_due=lambda step: step == 3)
    assert evaluations.best == (3, 0.75)


def test_a_metric_may_be_watched_from_a_later_step_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    logged(folder, {2: {"accuracy": 0.5}, 4: {"accuracy": 0.75}})
    evaluations = Evaluations(folder, Selection(keep_best="wins/pickscore", early_stopping="wins/pickscore"))
    evaluations.restore(4, {}, writes=True)
    assert evaluations.best is None
    assert not evaluations.can_judge(4)
    evaluations.note(6, {"wins/pickscore": 0.5})
    assert evaluations.can_judge(6)
    assert evaluations.is_best(6)
    assert evaluations.stop() is None


def test_a_metric_of_held_out_examples_is_missed_before_the_first_update(tmp_path: Path) -> None:
    def of(name: str) -> Evaluations:
        return Evaluations(RunFolder(tmp_path), Selection(keep_best=name), {0: {"nll": 1.0}})

    with pytest.raises(UserError, match=r"'accuracy' is no metric .*\n  -> they have nll"):
        of("accuracy").check_first()
    of("nll").check_first()
    of("wins/pickscore").check_first()  # of samples there are none to compare with yet


def test_the_line_says_how_the_best_is_given(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    assert best_line(folder) is None
    folder.mark_best(40, "accuracy", 0.7125)
    assert best_line(folder) == f"best step: 40 (held-out accuracy 0.7125); its weights are {tmp_path / 'a'}@best"
