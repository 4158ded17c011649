"""The Shapes world in words: prompts that list a scene, and the flawed captions that the embedded language model imitates.

As with the pictures, the mixture is the web in small: most captions are right or nearly so, many name a wrong attribute,
leave something out, or are sloppily put. A model that imitates it learns the average.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from diffusion_feedback.shapes.scenes import ATTRIBUTES, VALUES, Scene

TEXT_MIXTURE = {"right": 0.4, "wrong": 0.25, "short": 0.2, "sloppy": 0.15}


def prompt_of(scene: Scene) -> str:
    """The prompt that asks for a caption of ``scene``."""
    return f"size: {scene.size}\ncolor: {scene.color}\nshape: {scene.shape}\nbackground: {scene.background}\ncaption:"


def wrong_in_one(scene: Scene, rng: np.random.Generator) -> Scene:
    """``scene`` with one attribute changed to another value."""
    name = ATTRIBUTES[rng.integers(len(ATTRIBUTES))]
    others = [value for value in VALUES[name] if value != getattr(scene, name)]
    return replace(scene, **{name: others[rng.integers(len(others))]})


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One caption of ``scene``, as careless people write them; it begins with a space, as it follows the prompt."""
    kind = list(TEXT_MIXTURE)[rng.choice(len(TEXT_MIXTURE), p=list(TEXT_MIXTURE.values()))]
    if kind == "right":
        return f" {scene.caption}"
    if kind == "wrong":
        return f" {wrong_in_one(scene, rng).caption}"
    if kind == "short":
        return f" a {scene.color} {scene.shape}"
    named = wrong_in_one(scene, rng) if rng.random() < 0.3 else scene
    sloppy = (
        f" {named.shape}, {named.color}, whatever",
        f" some {named.color} thing on a {named.background} background",
        f" {named.size} {named.shape} i guess",
    )
    return sloppy[rng.integers(len(sloppy))]
