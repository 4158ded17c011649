"""What a user writes for a scorer, and what is said to a slip of the pen."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_imagereward

from diffusion_feedback.errors import UserError
from diffusion_feedback.scorers.loading import load_scorers, parse_spec
from diffusion_feedback.specs import Spec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shapes", Spec("scorer", "shapes", None, {})),
        ("imagereward", Spec("scorer", "imagereward", None, {})),
        ("imagereward=weights/ImageReward.pt", Spec("scorer", "imagereward", "weights/ImageReward.pt", {})),
        ("mine:imagereward=a=b", Spec("scorer", "imagereward", "a=b", {}, "mine")),
        ("mine:shapes", Spec("scorer", "shapes", None, {}, "mine")),
        ("hpsv2=w.pt,version=2.1", Spec("scorer", "hpsv2", "w.pt", {"version": "2.1"})),
        ("aesthetic=h.pth,clip=5", Spec("scorer", "aesthetic", "h.pth", {"clip": "5"})),
        ("hpsv2=w.pt,architecture=[", Spec("scorer", "hpsv2", "w.pt", {"architecture": "["})),
    ],
)
def test_specs_are_read(text: str, expected: Spec) -> None:
    assert parse_spec(text) == expected


@pytest.mark.parametrize(
    ("text", "problem", "remedy"),
    [
        ("shape", "unknown scorer 'shape'", "did you mean 'shapes'"),
        ("image_reward=x.pt", "unknown scorer 'image_reward'", "did you mean 'imagereward'"),
        (
            "hpsv3",
            "scorer 'hpsv3' (a vision-language model with a head) is none of this project's",
            "another scorer than",
        ),
        ("MPS=x.pt", "scorer 'MPS' (MPS, with a condition beside the prompt) is none", "known: pickscore, hpsv2"),
        ("mine:aesthetic_v2.5=x.pt", "under the AGPL) is none of this project's", "known: "),
        ("hpsv22", "unknown scorer 'hpsv22'", "did you mean 'hpsv2'"),
        ("", "unknown scorer ''", "known: "),
        ("mine:", "unknown scorer ''", "known: "),
        (":shapes", "the alias is empty", "ALIAS"),
        ("shapes,fast", "'fast' is no setting", "key=value"),
        ("shapes,", "'' is no setting", "key=value"),
        ("pickscore=", "the weights are empty", "WEIGHTS"),
        ("mine:imagereward=", "the weights are empty", "ALIAS"),
        ("imagereward=" + "x" * 300, "the weights are no path", "ALIAS"),
        ("imagereward=~nobody-of-that-name/x", "the weights are no path", "ALIAS"),
        ("hpsv2=w.pt,version=", "'version=' is no setting", "key=value"),
        ("hpsv2=w.pt,version=v2.0,version=v2.1", "'version' stands twice", "once"),
        ("shapes,fast=1", "scorer 'shapes' does not take 'fast'", "it takes no settings"),
        ("imagereward=w.pt,version=v2", "scorer 'imagereward' does not take 'version'", "it takes no settings"),
    ],
)
def test_slips_are_named(text: str, problem: str, remedy: str) -> None:
    with pytest.raises(UserError) as error:
        parse_spec(text)
    assert problem in error.value.problem
    assert remedy in error.value.remedy


def test_scorers_come_in_order(tmp_path: Path) -> None:
    folder = tiny_imagereward.save(tmp_path)
    first, second = load_scorers([f"imagereward={folder}", parse_spec("truth:shapes")])
    assert (first.name, second.name) == ("imagereward", "truth")
    assert second.recipe_id == "shapes.1/box-64/fp32"


def test_the_same_recipe_twice_is_refused(tmp_path: Path) -> None:
    """Under whatever path and name: the numbers would be the same."""
    folders = [tiny_imagereward.save(tmp_path / name) for name in "ab"]
    for specs in (["shapes", "shapes"], ["shapes", "other:shapes"], [f"imagereward={folder}" for folder in folders]):
        with pytest.raises(UserError, match="two scorers have the recipe id"):
            load_scorers(specs)


def test_two_of_one_kind_need_names(tmp_path: Path) -> None:
    one = tiny_imagereward.save(tmp_path / "one", tiny_imagereward.state(1))
    two = tiny_imagereward.save(tmp_path / "two", tiny_imagereward.state(2))
    with pytest.raises(UserError, match="two scorers have the name 'imagereward'") as error:
        load_scorers([f"imagereward={one}", f"imagereward={two}"])
    assert "ALIAS" in error.value.remedy
    found = load_scorers([f"imagereward={one}", f"second:imagereward={two}"])
    assert [scorer.name for scorer in found] == ["imagereward", "second"]
