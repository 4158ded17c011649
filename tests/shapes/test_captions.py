"""The verifier of captions against readings by hand."""

from __future__ import annotations

import numpy as np
import pytest
from image_world import all_scenes
from text_world import TEXT_MIXTURE, caption, prompt_of

from diffusion_feedback.errors import UserError
from diffusion_feedback.shapes.captions import read, reward, scene_of
from diffusion_feedback.shapes.scenes import Scene

SCENE = Scene("small", "red", "circle", "blue")
PROMPT = "size: small\ncolor: red\nshape: circle\nbackground: blue\ncaption:"


@pytest.mark.parametrize(
    ("completion", "named", "is_sentence"),
    [
        (" a small red circle on a blue background", 4, True),
        ("a small red circle on a blue background.", 4, True),
        (" a large red circle on a blue background", 3, True),
        (" a small red circle on a green background", 3, True),
        (" a large green star on a black background", 0, True),
        (" a red circle", 2, False),
        (" some red thing on a blue background", 2, False),
        (" circle, red, whatever", 0, False),  # "circle," is no word of the grammar
        (" small circle i guess", 2, False),
        (" blue circle on a red background", 1, False),  # colours in each other's place
        (" a small red green circle on a blue background", 3, False),  # two colours are none
        ("", 0, False),
    ],
)
def test_readings_by_hand(completion: str, named: int, is_sentence: bool) -> None:
    found = read(SCENE, completion)
    assert (found.named, found.is_sentence) == (named, is_sentence)
    assert reward([PROMPT], [completion]) == [named / 8 + (0.5 if is_sentence else 0.0)]


def test_prompts_come_back_as_scenes() -> None:
    assert prompt_of(SCENE) == PROMPT
    assert all(scene_of(prompt_of(scene)) == scene for scene in all_scenes())
    assert scene_of([{"role": "user", "content": PROMPT}]) == SCENE
    with pytest.raises(UserError, match="asks for no caption"):
        reward(["how are you?"], ["fine"])


def test_the_mixture_is_as_stated() -> None:
    rng = np.random.default_rng(0)
    readings = [read(SCENE, caption(SCENE, rng)) for _ in range(4000)]
    right = sum(found.named == 4 and found.is_sentence for found in readings) / 4000
    sentences = sum(found.is_sentence for found in readings) / 4000
    assert right == pytest.approx(TEXT_MIXTURE["right"], abs=0.03)
    assert sentences == pytest.approx(TEXT_MIXTURE["right"] + TEXT_MIXTURE["wrong"], abs=0.03)
