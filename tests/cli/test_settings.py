"""Flags made of settings: types, defaults, choices, lists, and nothing but what was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pytest

from diffusion_feedback.cli.flags import Flags
from diffusion_feedback.cli.settings import add_flags
from diffusion_feedback.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Settings:
    scorers: Sequence[str] = ()
    batch_size: int = 16
    margin: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    seeds: Sequence[int] = (0, 1)
    overwrite: bool = False
    device: str | None = None


HELPS = {
    "scorers": "who judges",
    "batch_size": "images at once",
    "margin": "of ties",
    "dtype": "precision",
    "seeds": "of the noise",
    "overwrite": "replace what is there",
    "device": "where",
}


def parser() -> Flags:
    flags = Flags(prog="dfb")
    add_flags(flags, Settings, HELPS, scorers={"flag": "scorer", "metavar": "SPEC"})
    return flags


@pytest.mark.parametrize(
    ("argv", "settings"),
    [
        ([], Settings()),
        (["--scorer", "a", "--scorer", "b", "c"], Settings(scorers=["a", "b", "c"])),
        (["--batch_size", "2"], Settings(batch_size=2)),
        (["--batch-size=2"], Settings(batch_size=2)),
        (["--margin", "0.5"], Settings(margin=0.5)),
        (["--dtype", "bfloat16"], Settings(dtype="bfloat16")),
        (["--seeds", "3"], Settings(seeds=[3])),
        (["--overwrite"], Settings(overwrite=True)),
        (["--device", "cpu"], Settings(device="cpu")),
    ],
)
def test_settings_are_made_of_what_was_given(argv: list[str], settings: Settings) -> None:
    assert Settings(**vars(parser().parse_args(argv))) == settings


@pytest.mark.parametrize(
    "argv", [["--batch_size", "two"], ["--margin", "x"], ["--dtype", "int4"], ["--seeds", "a"], ["--batch"]]
)
def test_wrong_values_are_refused(argv: list[str]) -> None:
    with pytest.raises(UserError, match=argv[0]):
        parser().parse_args(argv)


def test_help_tells_the_defaults_of_the_settings() -> None:
    text = " ".join(parser().format_help().split())
    assert "images at once (default 16)" in text
    assert "of the noise (default 0 1)" in text
    assert "replace what is there (" not in text
    assert "{float32,bfloat16}" in text
