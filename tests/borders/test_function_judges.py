"""Functions as judges: whatever a file does at import, and whatever a function returns, it is one message or a number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_feedback.cli.main import main
from diffusion_feedback.errors import UserError
from diffusion_feedback.scorers.texts.loading import load_text_scorer

IMPORTS = {
    "raises": ("raise RuntimeError('no licence')", "importing .*fails: RuntimeError: no licence .*line 1"),
    "divides": ("1 / 0", "importing .*ZeroDivisionError"),
    "exits": ("import sys\nsys.exit(0)", "importing .*ends the program .*line 2"),
    "exits_loudly": ("raise SystemExit('bye')", "importing .*ends the program"),
    "syntax": ("def f(:", "line 1: "),
    "no_text": ("\x00", "null bytes|importing"),
    "missing_module": ("import no_such_module_here", "no module 'no_such_module_here'"),
    "missing_name": ("from math import nothing", "importing .*ImportError"),
    "recursion": ("def g(): g()\ng()", "importing .*RecursionError"),
    "lazy": ("def __getattr__(name):\n    raise OSError('lazy')", "OSError: lazy"),
    "asserts": ("assert False, 'set KEY first'", "importing .*AssertionError: set KEY first"),
}
RETURNS = {
    "10 ** 400": "is inf",
    "10 ** 5000": "is inf",
    "float('nan')": "is nan",
    "-float('inf')": "is -inf",
    "1e39": "is 1e.39",
    "'high'": "'high' for the completion",
    "None": "None for the completion",
    "[1.0, 2.0]": "for the completion",
    "1j": "1j for the completion",
    "Odd()": "a Odd for the completion",
}
WHOLE = {
    "'12'": "returned '12'",
    "b'12'": "returned b'12'",
    "{'a': 1, 'b': 2}": "returned {'a'",
    "5": "returned 5",
    "None": "returned None",
    "[1.0]": "1 scores for 2 completions",
    "[1.0, 2.0, 3.0]": "3 scores for 2 completions",
    "(n for n in iter(int, 1))": "3 or more scores for 2 completions",
    "(1 / 0 for _ in completions)": "no list can be made: division by zero",
    "__import__('sys').exit(0)": "SystemExit in",
}
RIGHT = {
    "[1, 2]": [1.0, 2.0],
    "(n + 1 for n in range(2))": [1.0, 2.0],
    "np.array([1, 2], np.float16)": [1.0, 2.0],
    "torch.tensor([1.0, 2.0])": [1.0, 2.0],
    "[True, np.int64(2)]": [1.0, 2.0],
}
ODD = "class Odd:\n    def __repr__(self): raise ValueError\n    def __float__(self): raise KeyError\n"


@pytest.mark.parametrize("kind", IMPORTS)
@pytest.mark.parametrize("by_name", [False, True], ids=["file", "module"])
def test_a_file_that_fails_at_import(kind: str, by_name: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, words = IMPORTS[kind]
    name = f"judge_that_{kind}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    place = name if by_name else str(tmp_path / f"{name}.py")
    with pytest.raises(UserError, match=words) as caught:
        load_text_scorer(f"function={place}:f")
    assert f"function={place}:f" in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize(
    "name", [".x:y", "..:y", "a..b:y", "1a:f", "a b:f", "a/b:f", "json:", ":f", "json", "json:nothing"]
)
def test_names_that_mean_no_function(name: str) -> None:
    with pytest.raises(UserError, match="function="):
        load_text_scorer(f"function={name}")


@pytest.mark.parametrize(("value", "words"), RETURNS.items())
def test_a_value_that_is_no_number(value: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "judge.py"
    file.write_text(f"{ODD}def f(prompts, completions):\n    return [0.5, {value}]\n")
    with pytest.raises(UserError, match=words) as caught:
        load_text_scorer(f"function={file}:f").score(["p0", "p1"], ["good", "so bad"])
    assert "so bad" in caught.value.problem
    assert "p1" in caught.value.problem


@pytest.mark.parametrize(("values", "words"), WHOLE.items())
def test_what_is_no_list_of_numbers(values: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "judge.py"
    file.write_text(f"def f(prompts, completions):\n    return {values}\n")
    with pytest.raises(UserError, match=words):
        load_text_scorer(f"function={file}:f").score(["p0", "p1"], ["good", "so bad"])


@pytest.mark.parametrize(("values", "scores"), RIGHT.items())
def test_numbers_of_every_kind(values: str, scores: list[float], tmp_path: Path) -> None:
    file = tmp_path / "judge.py"
    file.write_text(f"import numpy as np\nimport torch\ndef f(prompts, completions):\n    return {values}\n")
    assert load_text_scorer(f"function={file}:f").score(["p0", "p1"], ["good", "so bad"]) == scores
    assert np.float16(1) == torch.tensor(1)


def test_a_judge_that_ends_the_program_does_not_end_the_command_as_if_all_were_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "judge.py").write_text("import sys\nsys.exit(0)\n")
    record = {
        "prompt_index": 0, "sample": 0, "seed": 0, "prompt": "p", "completion": "c", "token_ids": [1], "is_finished": True,
        "settings": {}, "model_hash": "m",
    }  # fmt: skip
    (tmp_path / "one.jsonl").write_text(json.dumps(record) + "\n")
    code = main([
        "judge", str(tmp_path / "one.jsonl"), str(tmp_path / "one.jsonl"), "--judge", f"function={tmp_path / 'judge.py'}:f",
        "--output_dir", str(tmp_path / "out"), "--names", "one", "other",
    ])  # fmt: skip
    assert code == 2
    assert "ends the program" in capsys.readouterr().err
