"""CONTRIBUTING's walks are the ways that calls really take: each file that it lists is called from one above it."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from PIL import Image

import diffusion_feedback as dfb
from diffusion_feedback.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = str(Path(dfb.__file__).parent) + "/"


def listed(title: str) -> list[str]:
    """The files below ``title`` in CONTRIBUTING, in order."""
    section = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split(title)[1].split("\n\n")[1]
    return re.findall(r"`([\w/]+\.py)`", section)


@contextmanager
def calls() -> Iterator[set[tuple[str, str]]]:
    """The calls between files of the package that are made meanwhile, as (caller, called)."""
    seen: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        called = frame.f_code.co_filename
        if event != "call" or not called.startswith(PACKAGE) or frame.f_code.co_name == "<module>":
            return
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(PACKAGE):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != called:
            seen.add((caller.f_code.co_filename.removeprefix(PACKAGE), called.removeprefix(PACKAGE)))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def check(walk: list[str], seen: set[tuple[str, str]]) -> None:
    for place, file in enumerate(walk[1:], 1):
        assert any((earlier, file) in seen for earlier in walk[:place]), f"nothing above {file} calls it"


def test_from_the_command_to_the_loss(make_recipe: Callable[..., Path]) -> None:
    walk = listed("From `dfb train` to the loss")
    assert (walk[0], walk[-1]) == ("cli/main.py", "objectives/pairwise.py")
    assert len(walk) <= 21
    recipe = make_recipe(training={"max_train_steps": 1})
    with calls() as seen:
        assert main(["train", "--config", str(recipe)]) == 0
    check(walk, seen)


def test_from_dfb_score_to_a_score() -> None:
    walk = listed("From `dfb.score` to a score")
    assert (walk[0], walk[-1]) == ("workflows/scoring.py", "scorers/scorer.py")
    assert len(walk) <= 12
    with calls() as seen:
        dfb.score(
            Image.new("RGB", (64, 64)), "a black square", scorers="pickscore=assets/shapes-scorer", cache_dir=None
        )
    check(walk, seen)


def test_a_wrong_walk_would_be_noticed() -> None:
    with pytest.raises(AssertionError, match="nothing above b.py"):
        check(["a.py", "b.py"], {("b.py", "a.py")})
