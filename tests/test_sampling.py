"""Samples and benchmarks in Python: what the commands write, from paths, runs and loaded models alike."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import shapes_images
import tiny_text
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import diffusion_feedback as dfb
from diffusion_feedback.cli.main import main
from diffusion_feedback.evaluation.benchmarks.benchmark import Benchmark

PROMPTS = ["a cat", "a dog on a mat"]
SHORT: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3, "seeds": [0, 7], "batch_size": 3}
FLAGS = ["--num_inference_steps", "2", "--guidance_scale", "3", "--seeds", "0", "7", "--batch_size", "3"]


@dataclass
class Finished:
    """What training returns, as far as it is looked at here."""

    path: Path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def command(tmp_path: Path, tiny_pipelines: dict[str, Path]) -> Path:
    """The folder that the command writes."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    where = ["--prompts", str(tmp_path / "prompts.txt"), "--output_dir", str(tmp_path / "command")]
    assert main(["generate", str(tiny_pipelines["sd"]), *where, *FLAGS]) == 0
    return tmp_path / "command"


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "run", "pipeline"])
def test_images_are_those_of_the_command(
    kind: str, tmp_path: Path, command: Path, tiny_pipelines: dict[str, Path]
) -> None:
    folder = tiny_pipelines["sd"]
    model: Any = {"path": folder, "run": Finished(folder)}.get(kind)
    if kind == "pipeline":
        model = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    images = dfb.generate(model, PROMPTS, output_dir=tmp_path / "python", **SHORT)
    expected = contents(command)
    if kind == "pipeline":  # where a loaded one came from is not known
        path = json.dumps(str(folder.resolve()))
        expected["metadata.jsonl"] = expected["metadata.jsonl"].replace(f'"model_path": {path}, '.encode(), b"")
    assert contents(tmp_path / "python") == expected
    assert images.column_names == ["prompt", "seed", "image"]
    assert list(zip(images["prompt"], images["seed"], strict=True)) == [(p, s) for p in PROMPTS for s in (0, 7)]
    assert images[1]["image"].tobytes() == Image.open(command / "images/00000-s7.png").tobytes()


def test_without_a_folder_nothing_stays_on_the_disk(
    tmp_path: Path, command: Path, tiny_pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    images = dfb.generate(str(tiny_pipelines["sd"]), str(tmp_path / "prompts.txt"), **SHORT)
    assert [path.name for path in (tmp_path / "temporary").iterdir()] == []
    assert images[3]["image"].tobytes() == Image.open(command / "images/00001-s7.png").tobytes()
    (one,) = dfb.generate(tiny_pipelines["sd"], "a cat", **{**SHORT, "seeds": (7,)})
    assert one["image"].size == images[1]["image"].size


def test_what_is_generated_can_be_scored(tmp_path: Path, tiny_pipelines: dict[str, Path]) -> None:
    images = dfb.generate(tiny_pipelines["sd"], ["a small red circle on a blue background"], **SHORT)
    scores = dfb.score(images, scorers=["shapes"], cache_dir=str(tmp_path / "cache"), workers=1)
    assert scores["prompt"] == ["a small red circle on a blue background"] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_inference_step": 2}, "`num_inference_step`: is no setting\n  -> did you mean 'num_inference_steps'"),
        ({"num_samples": 2}, "`num_samples`: means nothing for .*, which makes images"),
        ({"dtype": "float8"}, "`dtype`: got 'float8'"),
        ({"noise": "none"}, "`noise`: got 'none'"),
        ({"seeds": ()}, r"`seeds`: got \[\]"),
    ],
)
def test_settings_that_are_none(settings: dict[str, Any], message: str, tiny_pipelines: dict[str, Path]) -> None:
    with pytest.raises(dfb.UserError, match=message):
        dfb.generate(tiny_pipelines["sd"], PROMPTS, **settings)


def test_a_loaded_pipeline_has_no_files(tiny_pipelines: dict[str, Path]) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipelines["sd"], safety_checker=None)
    with pytest.raises(dfb.UserError, match="`lora`: means nothing for a model that is loaded already"):
        dfb.generate(pipeline, PROMPTS, lora="x")
    with pytest.raises(dfb.UserError, match="item 1"):
        dfb.generate(pipeline, ["a cat", " "])
    with pytest.raises(dfb.UserError, match="`prompts`: none is given"):
        dfb.generate(pipeline, [])


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "model"])
def test_completions_are_those_of_the_command(kind: str, tmp_path: Path) -> None:
    folder = tiny_text.save_tiny_lm(tmp_path / "lm")
    prompts = ["a red circle", "the cat sat", "a red circle"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    where = ["--prompts", str(tmp_path / "prompts.txt"), "--output_dir", str(tmp_path / "command")]
    assert main(["generate", str(folder), *where, "--num_samples", "2", "--max_new_tokens", "5"]) == 0
    settings = {"num_samples": 2, "max_new_tokens": 5, "temperature": 1}
    if kind == "path":
        texts = dfb.generate(folder, prompts, output_dir=tmp_path / "python", **settings)
    else:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        texts = dfb.generate(model, prompts, tokenizer=tokenizer, output_dir=tmp_path / "python", **settings)
    assert contents(tmp_path / "python") == contents(tmp_path / "command")
    rows = [json.loads(line) for line in (tmp_path / "command" / "completions.jsonl").read_text().splitlines()]
    assert texts["completion"] == [row["completion"] for row in rows]
    assert texts["prompt"] == ["a red circle"] * 2 + ["the cat sat"] * 2


def test_conversations_and_plain_prompts(tmp_path: Path) -> None:
    folder = tiny_text.save_tiny_lm(tmp_path / "lm")
    template = tmp_path / "template.jinja"
    template.write_text("{% for turn in messages %}{{ turn['content'] }} {% endfor %}")
    turns = [{"role": "user", "content": "a cat"}]
    settings = {"max_new_tokens": 3, "chat_template": str(template)}
    both = dfb.generate(folder, ["a dog", turns], **settings)
    assert both["prompt"] == [[{"role": "user", "content": text}] for text in ("a dog", "a cat")]
    with pytest.raises(dfb.UserError, match="`height`: means nothing for .*, which writes texts"):
        dfb.generate(folder, "a dog", height=16)
    with pytest.raises(dfb.UserError, match="`prompts`: none is given"):
        dfb.generate(folder, [])


def test_what_is_no_prompt_is_refused_with_its_place(tmp_path: Path, tiny_pipelines: dict[str, Path]) -> None:
    """Columns with nulls are common, and an image of "None" is none."""
    folder = tiny_text.save_tiny_lm(tmp_path / "lm")
    pictures = [Image.new("RGB", (8, 8))] * 2
    for bad, kind in ((None, "None"), (3, "a int")):
        with pytest.raises(dfb.UserError, match=f"`prompts`, item 1: is {kind}"):
            dfb.generate(tiny_pipelines["sd"], ["a cat", bad], **SHORT)
        with pytest.raises(dfb.UserError, match=f"`prompts`, item 1: is {kind}"):
            dfb.generate(folder, ["a cat", bad])
        with pytest.raises(dfb.UserError, match=f"`prompts`, item 1: is {kind}"):
            dfb.score(pictures, ["a small red circle on a blue background", bad], scorers="shapes")
    with pytest.raises(dfb.UserError, match="`prompts`, item 0: is a list"):
        dfb.generate(folder, [["a cat"]])


def test_a_model_by_name_has_its_own_tokenizer(tmp_path: Path, tiny_pipelines: dict[str, Path]) -> None:
    folder = tiny_text.save_tiny_lm(tmp_path / "lm")
    with pytest.raises(dfb.UserError, match="`tokenizer`: comes with a loaded model alone"):
        dfb.generate(folder, PROMPTS, tokenizer=tiny_text.tokenizer())
    with pytest.raises(dfb.UserError, match="`tokenizer`: means nothing for .*, which makes images"):
        dfb.generate(tiny_pipelines["sd"], PROMPTS, tokenizer=tiny_text.tokenizer())


def test_a_model_that_writes_nothing(tmp_path: Path) -> None:
    folder = tiny_text.save_tiny_reward_model(tmp_path / "reward")
    judge = AutoModelForSequenceClassification.from_pretrained(folder)
    with pytest.raises(dfb.UserError, match="reads texts, and writes none"):
        dfb.generate(judge, PROMPTS, tokenizer=tiny_text.tokenizer())


DRAWN = [
    ("lora", "x"), ("family", "sdxl"), ("revision", "main"), ("variant", "fp16"), ("num_inference_steps", 3), ("height", 64),
    ("guidance_scale", 1.0), ("seeds", [0]), ("model_dtype", "float16"), ("generation_batch_size", 2),
]  # fmt: skip


# --- benchmarks ------------------------------------------------------------------------------------------------------


def own_benchmark() -> Benchmark:
    return Benchmark(name="own", title="Own", source="this file", prompts=None, files={}, scorers=("shapes",))


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """Pictures of each of 8 captions, and the file of these captions."""
    folder = shapes_images.write_folder(tmp_path / "set", 8, 1)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    (tmp_path / "captions.txt").write_text("\n".join(dict.fromkeys(row["prompt"] for row in rows)))
    own = {"prompts": str(tmp_path / "captions.txt"), "images": folder}
    return {**own, "cache_dir": str(tmp_path / "cache"), "workers": 1}


def test_a_benchmark_is_that_of_the_command(tmp_path: Path, given: dict[str, Any]) -> None:
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    assert main(["benchmark", "shapes", *flags, "--output_dir", str(tmp_path / "command")]) == 0
    result = dfb.benchmark("shapes", output_dir=tmp_path / "python", **given)
    one, two = contents(tmp_path / "command"), contents(tmp_path / "python")
    assert all(two[name] == one[name] for name in ("benchmark.json", "results.json", "prompts.jsonl", "scores.parquet"))
    assert result.metrics == json.loads(one["results.json"])["scorers"]
    assert result.win_rates == {}
    assert result.report.read_text().startswith("<!doctype html>")
    assert "shapes" in str(result)


def test_a_benchmark_and_a_baseline_of_ones_own(tmp_path: Path, given: dict[str, Any]) -> None:
    """A function as benchmark, another as scorer, an earlier result as baseline; no folder is named."""

    def width(images: list[Image.Image], prompts: list[str]) -> list[float]:
        return [float(len(prompt)) for prompt in prompts]

    base = dfb.benchmark(own_benchmark, scorers=[width, "shapes"], **given)
    again = dfb.benchmark(own_benchmark, scorers=[width, "shapes"], baseline=base, **given)
    assert again.win_rates["width"]["overall"]["win_rate"]["ties"] == 8
    assert again.metrics["width"]["overall"]["mean"] == pytest.approx(
        sum(len(prompt.prompt) for prompt in again.run.prompts) / 8
    )
    assert again.report.is_file()
    assert again.run.settings["benchmark"] == f"{__name__}:own_benchmark"


@pytest.mark.parametrize("setting", ["family", "lora", "revision", "variant"])
def test_a_benchmark_of_a_loaded_model_takes_no_weights_besides(
    setting: str, tmp_path: Path, given: dict[str, Any], tiny_pipelines: dict[str, Path]
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipelines["sd"])
    own = {name: value for name, value in given.items() if name != "images"}
    with pytest.raises(dfb.UserError, match=f"`{setting}`: means nothing for a model that is loaded already"):
        dfb.benchmark("shapes", model=pipeline, output_dir=tmp_path / "x", allow_short=True, **{setting: "x"}, **own)
    assert not (tmp_path / "x").exists()


def test_a_benchmark_of_a_file_is_reported(tmp_path: Path, given: dict[str, Any]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from diffusion_feedback import Benchmark\n"
        "def mine():\n"
        "    return Benchmark(name='mine', title='Mine', source='me', prompts=None, files={}, scorers=('shapes',))\n"
    )
    for name in ("a", "b"):
        dfb.benchmark(f"{file}:mine", output_dir=tmp_path / name, **given)
    page = dfb.report([tmp_path / "a", tmp_path / "b"], tmp_path / "page.html", names=["first", "second"])
    assert page.before_name == "first"
    assert (tmp_path / "page.html").is_file()
    dfb.report(str(tmp_path / "a"), tmp_path / "alone.html")
    assert (tmp_path / "alone.html").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "x"}, "`model` or `images`: both are given"),
        ({"images": None}, "`model` or `images`: neither is given"),
        ({"tie_margin": -1}, "`tie_margin`: got -1"),
        ({"on_bad_image": "skip"}, "`on_bad_image` skip leaves prompts without a score"),
        ({"prompts": None}, "benchmark .*own_benchmark has no prompts of its own\n  -> give `prompts`"),
        ({"scorers": "nobody"}, "nobody"),
        *(
            ({name: value}, f"`{name}`: means nothing for images that are there\n  -> .*`model`")
            for name, value in DRAWN
        ),
    ],
)
def test_benchmarks_that_are_none(changes: dict[str, Any], message: str, given: dict[str, Any]) -> None:
    with pytest.raises(dfb.UserError, match=message):
        dfb.benchmark(own_benchmark, **{**given, **changes})
