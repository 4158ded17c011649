"""Exact verifier of captions in the Shapes world: how much of a scene a sentence tells rightly, and how well it is put.

A function for ``function=diffusion_feedback.shapes.captions:reward``: it needs no model and cannot be flattered.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .scenes import ATTRIBUTES, COLORS, SHAPES, SIZES, Scene, parse_caption

_PROMPT = re.compile(r"size: (\w+)\ncolor: (\w+)\nshape: (\w+)\nbackground: (\w+)\ncaption:\s*")
_FORM = "a prompt of this world is 'size: small\\ncolor: red\\nshape: circle\\nbackground: blue\\ncaption:'"


@dataclass(frozen=True, slots=True)
class CaptionReading:
    """What a caption says of a scene: ``named`` attributes that are right, in [0, 4], and whether it is a whole sentence."""

    named: int
    is_sentence: bool

    @property
    def score(self) -> float:
        """Half the share of attributes named rightly plus half for the sentence, in [0, 1]."""
        return 0.5 * self.named / len(ATTRIBUTES) + 0.5 * self.is_sentence


def scene_of(prompt: Any) -> Scene:
    """The scene that ``prompt`` (a text, or messages of which the last is read) asks for. Raises UserError for another."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    match = _PROMPT.search(text)
    if match is None:
        raise UserError(f"prompt {text!r} asks for no caption of the Shapes world", _FORM)
    return Scene(*match.groups())


def read(scene: Scene, completion: Any) -> CaptionReading:
    """Read ``completion`` against ``scene``.

    An attribute is named rightly when its value stands in its place and no other value does: the colour before the shape
    and the background after "on". Words outside the grammar name nothing.
    """
    text = (completion if isinstance(completion, str) else completion[-1]["content"]).strip().removesuffix(".").strip()
    before, _, after = text.partition(" on ")
    first, last = before.split(), after.split()
    stated = {
        "size": [word for word in first if word in SIZES],
        "color": [word for word in first if word in COLORS],
        "shape": [word for word in first if word in SHAPES],
        "background": [word for word in last if word in COLORS],
    }
    named = sum(stated[name] == [getattr(scene, name)] for name in ATTRIBUTES)
    try:
        parse_caption(text)
    except ValueError:
        return CaptionReading(named, is_sentence=False)
    return CaptionReading(named, is_sentence=True)


def reward(prompts: Sequence[object], completions: Sequence[object]) -> list[float]:
    """Scores in [0, 1], one a completion. Raises UserError for a prompt of another world."""
    return [read(scene_of(prompt), completion).score for prompt, completion in zip(prompts, completions, strict=True)]
