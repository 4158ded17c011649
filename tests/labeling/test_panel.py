"""Panels: calibrated probabilities, ensembles and the tie zone by hand; scores and policies that do not fit."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from scored import logistic, logit, one, panel_and_candidates, policy_of, records_of

from diffusion_feedback.errors import UserError
from diffusion_feedback.labeling.candidates import join_scores, rank
from diffusion_feedback.labeling.ensembles import Verdicts, sigmoid
from diffusion_feedback.labeling.panel import (
    Judge,
    LabelPolicy,
    Panel,
    build_panel,
    chosen_probability,
    read_calibration,
)


def verdict(probabilities: list[float], **policy: Any) -> Verdicts:
    """What scorers with these probabilities of image 0, under odd scales of their own, say of one pair."""
    scales = [2.0, 0.5, 40.0, 7.0][: len(probabilities)]
    judges = tuple(Judge(name, f"{name}.1", scale) for name, scale in zip("abcd", scales, strict=False))
    raws = [[logit(p) / scale] for p, scale in zip(probabilities, scales, strict=True)]
    return Panel(judges, policy_of(**policy)).judge(np.array(raws), np.zeros((len(raws), 1)))


@given(st.lists(st.floats(-1e4, 1e4), min_size=1))
def test_sigmoid_is_scipy_s(logits: list[float]) -> None:
    np.testing.assert_allclose(sigmoid(np.array(logits)), expit(logits), rtol=1e-14, atol=1e-300)


def test_one_scorer() -> None:
    panel = Panel((Judge("a", "a.1", 100.0),), policy_of("abstain"))
    found = panel.judge(np.array([[0.21, 0.2, 0.2]]), np.array([[0.2, 0.23, 0.2]]))
    assert found.side.tolist() == [1, -1, 0]
    assert found.agreed.all()
    assert found.probability == pytest.approx([logistic(1), logistic(-3), 0.5])
    assert found.soft == pytest.approx([logistic(1), logistic(-3), 0.5])
    unscaled = Panel((Judge("a", "a.1", None),), policy_of()).judge(np.array([[3.0, 1, 2]]), np.array([[1.0, 2, 2]]))
    assert (unscaled.side.tolist(), unscaled.probability, unscaled.soft) == ([1, -1, 0], None, None)


@pytest.mark.parametrize(
    ("ensemble", "probabilities", "side", "agreed", "soft"),
    [
        ("mean", [0.8, 0.4], 1, True, 0.6),
        ("vote", [0.8, 0.4], 0, True, 0.5),
        ("abstain", [0.8, 0.4], 0, False, 0.6),
        ("mean", [0.9, 0.4, 0.4], 1, True, 1.7 / 3),
        ("vote", [0.9, 0.4, 0.4], -1, True, 1 / 3),
        ("abstain", [0.9, 0.8, 0.6], 1, True, 2.3 / 3),
        ("abstain", [0.1, 0.2], -1, True, 0.15),
        ("mean", [0.7, 0.3], 0, True, 0.5),
        ("vote", [0.5, 0.5, 0.9], 1, True, 2 / 3),
        ("vote", [0.5, 0.1, 0.9], 0, True, 0.5),
        ("abstain", [0.5, 0.9], 0, False, 0.7),
        ("abstain", [0.5, 0.5], 0, True, 0.5),
    ],
)
def test_ensembles_by_hand(ensemble: str, probabilities: list[float], side: int, agreed: bool, soft: float) -> None:
    found = verdict(probabilities, ensemble=ensemble)
    assert (found.side.tolist(), found.agreed.tolist()) == ([side], [agreed])
    assert found.soft == pytest.approx([soft])
    assert found.probability == pytest.approx([sum(probabilities) / len(probabilities)])
    mirrored = verdict([1 - p for p in probabilities], ensemble=ensemble)
    assert mirrored.side.tolist() == [-side]


@pytest.mark.parametrize(
    ("ensemble", "probabilities", "side", "agreed"),
    [
        ("mean", [0.6], 0, True),
        ("mean", [0.4], 0, True),
        ("mean", [0.6001], 1, True),
        ("mean", [0.3999], -1, True),
        ("mean", [0.9, 0.3], 0, True),  # mean 0.6
        ("vote", [0.55, 0.45, 0.7], 1, True),  # two of them are undecided
        ("vote", [0.55, 0.58, 0.3], -1, True),
        ("abstain", [0.55, 0.42], 0, True),  # both undecided
        ("abstain", [0.9, 0.55], 0, False),
    ],
)
def test_the_tie_zone_is_closed(ensemble: str, probabilities: list[float], side: int, agreed: bool) -> None:
    found = verdict(probabilities, ensemble=ensemble, tie_margin=0.1)
    assert (found.side.tolist(), found.agreed.tolist()) == ([side], [agreed])


def test_vote_and_abstain_need_no_scale() -> None:
    raw_0, raw_1 = np.array([[1.0, 5, 2], [1, 0, 2]]), np.array([[0.0, 1, 2], [0, 3, 2]])
    judges = (Judge("a", "a.1", None), Judge("b", "b.1", 3.0))
    voted = Panel(judges, policy_of("vote")).judge(raw_0, raw_1)
    assert (voted.side.tolist(), voted.probability) == ([1, 0, 0], None)
    assert voted.soft is not None
    assert voted.soft.tolist() == [1, 0.5, 0.5]
    agreed = Panel(judges, policy_of("abstain")).judge(raw_0, raw_1)
    assert (agreed.side.tolist(), agreed.agreed.tolist()) == ([1, 0, 0], [True, False, True])


def test_probability_of_the_preferred_image() -> None:
    """A majority may decide against the mean of the probabilities; then it is below one half."""
    assert chosen_probability(verdict([0.9, 0.4, 0.4], ensemble="vote")) == pytest.approx([1 - 1.7 / 3])
    assert chosen_probability(verdict([0.2])) == pytest.approx([0.8])
    assert chosen_probability(verdict([0.45], tie_margin=0.1)) == pytest.approx([0.55])


RAW_TABLES = st.integers(2, 6).flatmap(
    lambda n: st.lists(st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3), min_size=n, max_size=n)
)


@given(RAW_TABLES, st.sampled_from(["mean", "vote", "abstain"]))
def test_strength_is_the_mean_gain_over_the_others(raws: list[list[float]], ensemble: str) -> None:
    scales = [1.0, 2.0, 0.3]
    table = {"p": {f"{i:02d}": row for i, row in enumerate(raws)}}
    panel, candidates = panel_and_candidates(table, scales, policy_of(ensemble))
    standing = rank("p", candidates, panel)
    expected = []
    for i, own in enumerate(raws):
        gains = []
        for j, other in enumerate(raws):
            if i != j:
                chances = [logistic(s * (x - y)) for s, x, y in zip(scales, own, other, strict=True)]
                votes = [0.5 if abs(c - 0.5) < 1e-12 else float(c > 0.5) for c in chances]
                gains.append(sum(chances if ensemble == "mean" else votes) / 3)
        expected.append(sum(gains) / len(gains))
    found = {candidate.name: s for candidate, s in zip(standing.candidates, standing.strengths, strict=True)}
    assert [found[f"{i:02d}"] for i in range(len(raws))] == pytest.approx(expected, abs=1e-11)
    assert list(standing.strengths) == sorted(standing.strengths, reverse=True)


def test_scores_that_cannot_be_compared() -> None:
    records = records_of(one([1.0, 2.0]), [1.0])
    mixed = [records[0], replace(records[1], recipe_id="a.2")]
    with pytest.raises(UserError, match=r"scorer 'a' has scores under two recipes: 'a.1', 'a.2'"):
        build_panel(mixed, policy_of())
    with pytest.raises(UserError, match=r"recipe 'a.1' has two logit scales: 1.0, 2.0"):
        build_panel([records[0], replace(records[1], logit_scale=2.0)], policy_of())
    with pytest.raises(UserError, match=r"recipe 'a.1' stands under two names: 'a', 'b'"):
        build_panel([records[0], replace(records[1], scorer="b")], policy_of())
    for field in ("raw", "score", "logit_scale"):
        for value in (math.nan, math.inf):
            with pytest.raises(UserError, match=rf"01: scorer 'a' gave {value} as {field}"):
                build_panel([records[0], replace(records[1], **{field: value})], policy_of())
    for scale in (0.0, -1.0):
        with pytest.raises(UserError, match="allowed: above 0"):
            build_panel([replace(record, logit_scale=scale) for record in records[:1]], policy_of())


@pytest.mark.parametrize(
    ("policy", "scorers", "named"),
    [
        (policy_of("mean"), 2, "`ensemble` mean"),
        (policy_of(ties="soft"), 1, "`ties` soft"),
        (policy_of("abstain", ties="soft"), 2, "`ties` soft"),
        (policy_of(tie_margin=0.1), 1, "`tie_margin` 0.1"),
        (policy_of("vote", min_probability=0.6), 2, "`min_probability` 0.6"),
    ],
)
def test_what_needs_a_logit_scale(policy: LabelPolicy, scorers: int, named: str) -> None:
    records = records_of({"p": {"x": [1.0, 1.0]}}, [None, 3.0][:scorers])
    with pytest.raises(UserError, match=named) as caught:
        build_panel(records, policy)
    assert "recipe 'a.1'" in caught.value.problem
    assert "`calibration`" in caught.value.remedy
    assert build_panel(records, policy, {"a.1": 2.0}).is_calibrated


def test_a_calibration_comes_first() -> None:
    records = records_of({"p": {"x": [1.0, 1.0]}}, [4.0, None])
    panel = build_panel(records, policy_of(), {"a.1": 2.5, "b.1": 0.5})
    assert panel.judges == (Judge("a", "a.1", 2.5), Judge("b", "b.1", 0.5))
    with pytest.raises(UserError, match=r"of other recipes \(c.1\), not of a.1, b.1"):
        build_panel(records, policy_of("vote"), {"c.1": 2.0})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"ensemble": "meen"}, "did you mean 'mean'"),
        ({"ties": "dropp"}, "did you mean 'drop'"),
        ({"tie_margin": 0.5}, "`tie_margin`: got 0.5"),
        ({"tie_margin": -0.1}, "`tie_margin`: got -0.1"),
        ({"tie_margin": math.nan}, "`tie_margin`: got nan"),
        ({"min_probability": 0.4}, "`min_probability`: got 0.4"),
        ({"min_probability": 1.0}, "`min_probability`: got 1.0"),
    ],
)
def test_policies_out_of_range(settings: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        policy_of(**settings)


def test_missing_scores_are_counted() -> None:
    table = {"p": {"x": [1.0, 2.0], "y": [3.0, 4.0]}}
    records = records_of(table, [1.0, 1.0])
    panel = build_panel(records, policy_of())
    images = [(r.sample, r.sample_key, "p") for r in records[:2]]
    found = join_scores(images, reversed(records), panel)
    assert [(c.name, c.scores, c.raws) for c in found] == [("x", (10, 20), (1, 2)), ("y", (30, 40), (3, 4))]
    with pytest.raises(UserError, match="1 samples have no score for their prompt; the first: y, by scorer 'b'"):
        join_scores(images, records[:-1], panel)
    with pytest.raises(UserError, match="2 samples have no score for their prompt; the first: x, by scorer 'a'"):
        join_scores([(name, key, "another") for name, key, _ in images], records, panel)


def test_one_image_scored_under_two_names() -> None:
    """The record whose image comes first counts, whatever the order; other recipes are no matter."""
    [record] = records_of(one([1.0]), [1.0])
    panel = build_panel([record], policy_of())
    other = replace(record, sample="zz", raw=1.5, score=15.0)
    foreign = replace(record, sample="00", recipe_id="b.1", raw=9.0)
    for table in ([record, other, foreign], [foreign, other, record]):
        [found] = join_scores([("here", record.sample_key, "p")], table, panel)
        assert (found.name, found.raws, found.scores) == ("here", (1.0,), (10.0,))


def test_calibration_files(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"scorers": {"a.1": {"logit_scale": 3, "note": "x"}, "b/2": {"logit_scale": 0.5}}}))
    assert read_calibration(path) == {"a.1": 3.0, "b/2": 0.5}
    for content, named in (
        ("{", "not JSON"),
        ("[]", "no key 'scorers'"),
        ('{"scorers": {}}', "no key 'scorers'"),
        ('{"scorers": {"a.1": {}}}', "recipe 'a.1': logit_scale is None"),
        ('{"scorers": {"a.1": 3}}', "recipe 'a.1': logit_scale is None"),
        ('{"scorers": {"a.1": {"logit_scale": -1}}}', "logit_scale is -1"),
        ('{"scorers": {"a.1": {"logit_scale": NaN}}}', "logit_scale is nan"),
        ('{"scorers": {"a.1": {"logit_scale": Infinity}}}', "logit_scale is inf"),
        ('{"scorers": {"a.1": {"logit_scale": true}}}', "logit_scale is True"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=named):
            read_calibration(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_calibration(tmp_path / "absent.json")
    # A scorer that knows nothing may stand in the file; it is refused where it is to judge.
    path.write_text('{"scorers": {"a.1": {"logit_scale": 0}, "b.1": {"logit_scale": 2}}}')
    assert read_calibration(path) == {"a.1": 0.0, "b.1": 2.0}
