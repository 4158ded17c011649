"""The scenes of the Shapes world: what a picture can show, and the sentence that says so."""

from __future__ import annotations

import re
from dataclasses import dataclass

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (244, 140, 30),
    "yellow": (242, 222, 60),
    "green": (40, 160, 70),
    "blue": (40, 80, 210),
    "purple": (140, 60, 180),
    "white": (245, 245, 245),
    "black": (22, 22, 22),
}
SHAPES = ("circle", "square", "triangle", "ring", "cross", "star")
SIZES: dict[str, tuple[float, float]] = {"small": (9.0, 12.0), "large": (17.0, 21.0)}  # radius range, px of 64
ATTRIBUTES = ("size", "color", "shape", "background")
RESOLUTION = 64
VALUES: dict[str, list[str]] = {
    "size": list(SIZES),
    "color": list(COLORS),
    "shape": list(SHAPES),
    "background": list(COLORS),
}
_CAPTION = re.compile(r"a (\w+) (\w+) (\w+) on a (\w+) background")


@dataclass(frozen=True, slots=True)
class Scene:
    """The attributes that a caption names; ``caption`` gives the caption back."""

    size: str
    color: str
    shape: str
    background: str

    @property
    def caption(self) -> str:
        """The sentence that describes this scene."""
        return f"a {self.size} {self.color} {self.shape} on a {self.background} background"


def parse_caption(caption: str) -> Scene:
    """Return the scene that ``caption`` names. Raises ValueError for a sentence outside the Shapes grammar."""
    match = _CAPTION.fullmatch(caption.strip())
    if match is None:
        raise ValueError(f"caption {caption!r} is not of the form 'a small red circle on a blue background'")
    size, color, shape, background = match.groups()
    for (kind, allowed), value in zip(VALUES.items(), (size, color, shape, background), strict=True):
        if value not in allowed:
            raise ValueError(f"caption {caption!r}: unknown {kind} {value!r}; known: {', '.join(allowed)}")
    return Scene(size, color, shape, background)
