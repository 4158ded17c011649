"""A user's own code by name: each way to miss it is one message, and its hash follows what it computes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion_feedback.catalog.sources import load_named, source_hash
from diffusion_feedback.errors import UserError


def test_a_file_runs_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    file, log = tmp_path / "mine.py", tmp_path / "log"
    text = f"with open({str(log)!r}, 'a') as log: log.write('x')\ndef double(x):\n    return 2 * x\nNUMBER = 3\n"
    file.write_text(text)
    assert load_named(f"{file}:double", "mine")(4) == 8
    assert load_named(f"{file}:double", "mine") is load_named(f"{file}:double", "mine")
    assert log.read_text() == "x"
    first = source_hash(f"{file}:double")
    assert first == source_hash(load_named(f"{file}:double", "mine"))
    file.write_text(text.replace("2 * x", "3 * x"))
    assert load_named(f"{file}:double", "mine")(4) == 12
    assert source_hash(f"{file}:double") != first
    file.write_text(text)
    assert source_hash(f"{file}:double") == first


def test_dataclasses_of_a_file_work(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Own:\n    x: int = 5\n"
    )
    assert load_named(f"{tmp_path / 'mine.py'}:Own", "mine")().x == 5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{file}:nothing", "mine: 'nothing' is not there(.|\n)*functions there: double"),
        ("{file}:NUMBER", "mine: 'NUMBER' is a int"),
        ("{none}.py:f", "mine: .*none.py: no such file"),
        ("double", "mine: no function is named(.|\n)*package.module:attribute"),
        ("no_such_package.x:f", "no module 'no_such_package'"),
        ("{bad}:f", "bad.py fails: ZeroDivisionError.*line 2"),
    ],
)
def test_each_way_to_miss_is_one_message(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def double(x):\n    return 2 * x\nNUMBER = 3\n")
    (tmp_path / "bad.py").write_text("x = 0\n1 / x\n")
    with pytest.raises(UserError, match=words):
        load_named(name.format(file=tmp_path / "mine.py", none=tmp_path / "none", bad=tmp_path / "bad.py"), "mine")
    assert load_named(f"{tmp_path / 'mine.py'}:NUMBER", "mine", also=int) == 3


def _scaled(factor: float, function: Callable[[float], float] = math.sqrt) -> Callable[[float], float]:
    return lambda x: factor * function(x)


class _Scaled:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: float) -> float:
        return self.factor * x

    def method(self, x: float) -> float:
        return self.factor * x


@pytest.mark.parametrize(
    "make",
    [
        _scaled,
        _Scaled,
        lambda factor: _Scaled(factor).method,
        lambda factor: functools.partial(_scaled, factor),
        lambda factor: functools.partial(_scaled, function=_scaled(factor)),
    ],
    ids=["closure", "instance", "method", "partial", "nested"],
)
def test_held_values_are_part_of_the_hash(make: Callable[[float], object]) -> None:
    assert source_hash(make(2.0)) == source_hash(make(2.0))
    assert source_hash(make(2.0)) != source_hash(make(3.0))


def test_what_cannot_be_compared_never_repeats() -> None:
    with (Path(__file__)).open() as file:
        function = functools.partial(print, file=file)
        assert source_hash(function) != source_hash(function)


def test_what_stands_in_no_file_has_a_hash() -> None:
    one: dict[str, object] = {}
    exec("def f(x): return x + 1\ndef g(x): return x + 2", one)
    assert source_hash(one["f"]) != source_hash(one["g"])
    assert source_hash(len) != source_hash(max)
