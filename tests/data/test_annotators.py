"""Agreement of people: against published and hand-made numbers, and on people who are planted."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from diffusion_feedback.cli.main import main
from diffusion_feedback.data.annotators import AnnotatorVotes, cohen_kappa, nominal_alpha, wilson

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), part C: four observers, twelve units; nominal 0.743.
PUBLISHED = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)


def test_published_alpha() -> None:
    units = [[float(v) for v in unit if v != "."] for unit in zip(*map(str.split, PUBLISHED), strict=True)]
    assert round(nominal_alpha(units), 3) == 0.743


def by_enumeration(units: Sequence[Sequence[float]]) -> float:
    """Alpha as its definition has it: shares of unlike values within units, and over all of them."""
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    observed = sum(sum(a != b for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in units) / len(values)
    expected = sum(a != b for a, b in permutations(values, 2)) / (len(values) * (len(values) - 1))
    return 1 - observed / expected


@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_its_definition(seed: int) -> None:
    draw = np.random.default_rng(seed)
    units = [draw.choice([0.0, 0.5, 1.0], size=draw.integers(1, 6)).tolist() for _ in range(20)]
    assert nominal_alpha(units) == pytest.approx(by_enumeration(units), abs=1e-12)
    assert nominal_alpha([[1, 1], [0, 0]]) == 1
    assert math.isnan(nominal_alpha([[1], [0]]))
    assert math.isnan(nominal_alpha([[1, 1], [1, 1]]))


def test_kappa_and_interval_by_hand() -> None:
    # 50 applications, two readers: both yes 20, both no 15, 5 and 10 unlike: kappa 0.4.
    both = [(1.0, 1.0)] * 20 + [(1.0, 0.0)] * 5 + [(0.0, 1.0)] * 10 + [(0.0, 0.0)] * 15
    assert cohen_kappa(both) == pytest.approx(0.4)
    assert math.isnan(cohen_kappa([(1.0, 1.0)] * 3))
    for successes, trials in ((0, 5), (3, 7), (90, 100), (12, 12)):
        interval = binomtest(successes, trials).proportion_ci(0.95, "wilson")
        assert wilson(successes, trials) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert wilson(0, 0) == (0, 1)


def votes_of(accuracies: dict[str, float], number: int, seed: int = 0) -> AnnotatorVotes:
    draw, votes = np.random.default_rng(seed), AnnotatorVotes()
    for example in range(number):
        truth = draw.random() < 0.5
        for name, accuracy in accuracies.items():
            votes.add(str(example), name, float(truth == (draw.random() < accuracy)))
    return votes


GOOD = {"anna": 0.9, "ben": 0.9, "carla": 0.85, "dora": 0.9}


@pytest.mark.parametrize("seed", range(5))
def test_who_is_at_chance_and_who_has_the_sides_mixed_up(seed: int) -> None:
    people = votes_of(GOOD | {"coin": 0.5, "mirror": 0.1}, 80, seed)
    assert ([each.name for each in people.at_chance], [each.name for each in people.against]) == (["coin"], ["mirror"])
    assert [each.name for each in people.people[:2]] == ["mirror", "coin"]
    fine = votes_of(GOOD, 80, seed)
    assert [*fine.at_chance, *fine.against] == []
    assert 0.4 < fine.alpha < 0.8
    assert set(fine.kappas) == {(a, b) for a in GOOD for b in GOOD if a < b}


def test_no_alarm_where_nobody_differs() -> None:
    """Six people of the same skill on 40 examples: at most one in twenty is flagged, over 100 sets of votes."""
    flagged = sum(
        len(votes.at_chance) + len(votes.against)
        for s in range(100)
        for votes in [votes_of(dict.fromkeys("abcdef", 0.75), 40, s)]
    )
    assert flagged / 600 < 0.05


def test_counts() -> None:
    votes = AnnotatorVotes()
    assert not votes
    for example, name, share in [
        ("x", "a", 1.0), ("x", "b", 1.0), ("x", "c", 0.0), ("y", "a", 0.5), ("y", "b", 1.0), ("z", "a", 1.0),
        ("x", "", 0.0), ("w", "a", 1.0), ("w", "a", 0.0), ("w", "b", 0.0),
    ]:  # fmt: skip
        votes.add(example, name, share)
    assert (votes.votes_each, votes.num_shared) == ([1, 3, 5], 3)
    compared = {each.name: (each.num_votes, each.num_compared, each.agreed) for each in votes.people}
    # a and b are compared on x alone with evenly divided others, which says nothing; c against both.
    assert compared == {"a": (5, 0, 0), "b": (3, 0, 0), "c": (1, 1, 0)}


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_the_check_says_how_people_agree(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, rows = np.random.default_rng(3), []
    from support.pairs_data import jpeg

    names = {"images": ("image_a", "image_b"), "texts": ("response_a", "response_b")}[kind]
    for number in range(40):
        sides = [f"{side}{number}" for side in "ab"]
        if kind == "images":
            for side in sides:
                (tmp_path / f"{side}.jpg").write_bytes(jpeg(number * 6, ord(side[0])))
            sides = [f"{side}.jpg" for side in sides]
        truth = draw.random() < 0.5
        for name, accuracy in {"anna": 0.95, "ben": 0.95, "carla": 0.9, "coin": 0.5}.items():
            vote = "ab"[int(truth == (draw.random() < accuracy))]
            rows.append({"user_id": name, "prompt": f"p{number}", **dict(zip(names, sides, strict=True)), "vote": vote})
    path = tmp_path / "votes.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    for place in (path, tmp_path / ("kept.parquet" if kind == "images" else "kept.jsonl")):
        if place != path:
            assert main(["data", "convert", str(path), str(place)]) == 0
            capsys.readouterr()
        assert main(["data", "check", str(place)]) == 0
        said = capsys.readouterr().out
        one = "pair" if kind == "images" else "example"
        assert f"annotators: 4, 40 votes each; two or more voted on 40 {one}s" in said
        assert "Krippendorff's alpha 0." in said
        assert "1 annotator votes at chance: coin -> their votes add noise" in said
