"""A leading ~ is the home folder in every path that a function or a command takes, and recorded as the whole path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import shapes_images
import text_recipes
import tiny_models
import tiny_text

import diffusion_feedback as dfb
from diffusion_feedback.cli.main import main

PAIRS = Path(__file__).resolve().parents[2] / "assets" / "pairs" / "validation-00000.parquet"
FAST = {"num_inference_steps": 1, "height": 16, "width": 16}
REWARD = "def length(prompts, completions):\n    return [float(len(each)) for each in completions]\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of somebody who works elsewhere."""
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "home"


def test_images_scores_and_labels(home: Path) -> None:
    shapes_images.write_folder(home / "set", 2, 2)
    (home / "own.py").write_text("def red(image):\n    return image.getpixel((0, 0))[0]\n")
    table = dfb.score("~/set", scorers=["shapes", "~/own.py:red"], cache_dir="~/cache", output="~/scores.parquet")
    assert len(table) == 8
    dfb.label(["~/set"], scores="~/scores.parquet", use=["shapes"], output="~/labels.parquet")
    pq.write_table(pq.read_table(PAIRS).slice(0, 100), home / "pairs.parquet")
    pq.write_table(pq.read_table(PAIRS).slice(100, 100), home / "others.parquet")
    own = {"scorers": "shapes", "cache_dir": "~/cache"}
    dfb.calibrate("~/pairs.parquet", tune="~/others.parquet", output_dir="~/calibration", **own)
    dfb.label("~/pairs.parquet", calibration="~/calibration/calibration.json", **own)
    assert dfb.check("~/labels.parquet").is_ready
    dfb.convert("~/labels.parquet", "~/again.parquet")
    assert main(["score", "~/set", "--scorer", "shapes", "--cache_dir=~/cache", "--output=~/c.csv"]) == 0
    names = {path.name for path in home.iterdir()}
    assert names >= {"scores.parquet", "labels.parquet", "calibration", "cache", "again.parquet", "c.csv"}
    assert not list(Path.cwd().iterdir())


def test_models_and_what_is_made_of_them(home: Path) -> None:
    tiny_models.save_sd(home / "sd")
    (home / "prompts.txt").write_text("a red circle\na blue square\n")
    dfb.generate("~/sd", "~/prompts.txt", output_dir="~/drawn", **FAST)
    own = {"prompts": "~/prompts.txt", "allow_short": True, "cache_dir": None, "scorers": "~/own.py:red"}
    (home / "own.py").write_text("def red(image):\n    return image.getpixel((0, 0))[0]\n")
    dfb.benchmark("pickapic", model="~/sd", output_dir="~/first", **FAST, **own)
    dfb.benchmark("pickapic", images="~/drawn", baseline="~/first", output_dir="~/second", **own)
    dfb.report(["~/second"], "~/page.html", baseline="~/first")
    settings = [json.loads((home / name / "benchmark.json").read_text()) for name in ("first", "second")]
    assert (settings[0]["model"], settings[0]["prompts"]) == (f"{home}/sd", f"{home}/prompts.txt")
    assert settings[1]["images"] == f"{home}/drawn"
    assert (home / "page.html").is_file()
    assert not list(Path.cwd().iterdir())


def test_language_models(home: Path) -> None:
    tiny_text.save_tiny_lm(home / "lm")
    (home / "reward.py").write_text(REWARD)
    (home / "template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    text_recipes.write_jsonl(home / "texts.jsonl", text_recipes.pairs(4))
    (home / "prompts.txt").write_text("the cat\n")
    settings = {"max_new_tokens": 2, "chat_template": "~/template.jinja"}
    dfb.generate("~/lm", "~/prompts.txt", output_dir="~/drawn", **settings)
    result = dfb.judge(
        "~/lm", "~/drawn", "~/prompts.txt", judges="~/reward.py:length", texts=None, output_dir="~/judged", **settings
    )
    assert result.folder == home / "judged"
    both = {"reference": "~/lm", "texts": "~/texts.jsonl", "names": ("a", "b"), "max_new_tokens": 2}
    assert dfb.judge("~/lm", "~/lm", Path("~/prompts.txt"), **both).divergences["a"].log_ratio == 0
    assert dfb.check("~/texts.jsonl", tokenizer="~/lm", chat_template="~/template.jinja")
    assert not list(Path.cwd().iterdir())


NOBODY = "~nobody-of-this-name/x.jsonl"
CALLS: dict[str, Callable[[Path], object]] = {
    "images": lambda folder: dfb.score(NOBODY, scorers="shapes"),
    "prompts": lambda folder: dfb.score(folder, NOBODY, scorers="shapes"),
    "output": lambda folder: dfb.score(folder, scorers="shapes", output=NOBODY),
    "scores": lambda folder: dfb.label(folder, scores=NOBODY),
    "pairs": lambda folder: dfb.calibrate(NOBODY, scorers="shapes"),
    "model": lambda folder: dfb.generate(NOBODY, ["a"]),
    "lora": lambda folder: dfb.generate(folder, ["a"], lora=NOBODY),
    "completions": lambda folder: dfb.judge(NOBODY, folder, ["a"], judges="shapes"),
    "check": lambda folder: dfb.check(NOBODY),
    "convert": lambda folder: dfb.convert(NOBODY, folder / "y.jsonl"),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_home_of_nobody_is_named(call: str, tmp_path: Path) -> None:
    folder = shapes_images.write_folder(tmp_path / "set", 1, 1)
    with pytest.raises(dfb.UserError, match=r"~nobody-of-this-name/x\.jsonl"):
        CALLS[call](folder)
