"""What users hold in a session: frames, columns, results of earlier calls, in the place of lists, files and paths."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageStat
from support.tiny_text import language_model, tokenizer

import diffusion_feedback as dfb


def brightness(images: list[Image.Image], prompts: list[str]) -> list[float]:
    return [ImageStat.Stat(image.convert("L")).mean[0] / 255 for image in images]


def redness(images: list[Image.Image], prompts: list[str]) -> list[float]:
    return [-ImageStat.Stat(image.convert("RGB")).mean[0] / 255 for image in images]


IMAGES = [Image.new("RGB", (8 + number, 8), (40 * number, 0, 0)) for number in range(6)]
PROMPTS = ["a cat", "a cat", "a cat", "a dog", "a dog", "a dog"]


@pytest.fixture
def pairs() -> datasets.Dataset:
    return dfb.label(IMAGES, PROMPTS, scorers=[brightness])


def test_labels_are_checked_and_converted_without_a_file(pairs: datasets.Dataset, tmp_path: Path) -> None:
    checked = dfb.check(pairs)
    assert checked.is_ready
    assert "2 pairs of 4 images over 2 prompts" in str(checked)
    assert dfb.convert(pairs, tmp_path / "pairs.parquet").num == 2
    assert dfb.check(str(tmp_path / "pairs.parquet")).is_ready
    texts = datasets.Dataset.from_dict({"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]})
    assert "2 pairs, plain texts over 2 prompts" in str(dfb.check(texts))
    assert dfb.convert(texts.select([1]), tmp_path / "texts.jsonl").num == 1


@pytest.mark.parametrize("column", [pd.Series(PROMPTS), tuple(PROMPTS), iter(PROMPTS)])
def test_prompts_in_a_column(column: Any) -> None:
    assert dfb.score(pd.Series(IMAGES), column, scorers=[brightness])["prompt"][:] == PROMPTS


def test_labels_by_the_scores_that_a_filter_has_left() -> None:
    scores = dfb.score(IMAGES, PROMPTS, scorers=[brightness, redness])
    left = scores.filter(lambda row: row["scorer"] == "redness")
    assert dfb.label(IMAGES, PROMPTS, scores=left)["scorers"][:] == [["redness"], ["redness"]]


def test_a_calibration_is_handed_on(pairs: datasets.Dataset, tmp_path: Path) -> None:
    trust = dfb.calibrate(pairs, scorers=[brightness], output_dir=tmp_path)
    labels = dfb.label(IMAGES, PROMPTS, scorers=[brightness], calibration=trust)
    assert labels["probability_0"][0] is not None
    by_file = dfb.label(IMAGES, PROMPTS, scorers=[brightness], calibration=tmp_path / "calibration.json")
    assert labels.to_list() == by_file.to_list()
    assert "array(" not in repr(trust)


FRAME = pd.DataFrame({"caption": ["a cat"]})


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: dfb.check(FRAME), "the data: is a DataFrame"),  # type: ignore[arg-type]
        (lambda: dfb.convert([1], "pairs.parquet"), "the data: is a list"),  # type: ignore[arg-type]
        (lambda: dfb.calibrate(FRAME, scorers=[brightness]), "the data: is a DataFrame"),  # type: ignore[arg-type]
        (lambda: dfb.label(IMAGES, PROMPTS, scores=FRAME), "`scores`: is a DataFrame"),  # type: ignore[arg-type]
        (lambda: dfb.score(IMAGES, 3, scorers=[brightness]), "`prompts`: got a int"),  # type: ignore[arg-type]
        (lambda: dfb.report([3], "page.html"), "3: is a int"),  # type: ignore[list-item]
        (lambda: dfb.train("recipe.yaml"), "`recipe`: got 'recipe.yaml'"),  # type: ignore[arg-type]
        (lambda: dfb.rounds({"model": {}}), "`recipe`: got {'model': {}}"),  # type: ignore[arg-type]
        (lambda: dfb.generate(language_model(), ["a"], tokenizer="tokens"), "`tokenizer`: got a str"),  # type: ignore[arg-type]
    ],
)
def test_objects_of_another_kind(call: Any, problem: str) -> None:
    with pytest.raises(dfb.UserError) as caught:
        call()
    assert caught.value.problem == problem
    assert caught.value.remedy


def test_a_value_of_many_lines_is_cut() -> None:
    with pytest.raises(dfb.UserError) as caught:
        dfb.LabelingSettings(min_probability=list(range(1000)))  # type: ignore[arg-type]
    assert len(caught.value.problem) < 100


def test_a_loaded_pipeline_is_sampled_without_a_word(
    tiny_pipelines: dict[str, Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipelines["sd"])
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    dfb.generate(pipeline, ["a cat"], num_inference_steps=1)
    assert not caplog.records


def test_results_are_shown_as_tables_and_put_on_one_page(tmp_path: Path) -> None:
    caption = "a small red circle on a blue background"
    (tmp_path / "prompts.txt").write_text(f"{caption}\n")
    results = []
    for name, image in {"before": IMAGES[1], "after": IMAGES[2]}.items():
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "0.png")
        (tmp_path / name / "0.txt").write_text(caption)
        given: dict[str, Any] = {"prompts": tmp_path / "prompts.txt", "scorers": [brightness]}
        results.append(dfb.benchmark("shapes", images=tmp_path / name, output_dir=tmp_path / f"{name}-run", **given))
    assert repr(results[0]) == str(results[0])
    page = dfb.report(results, tmp_path / "page.html")
    assert (page.before_name, page.after_name) == ("before-run", "after-run")


def test_a_judgement_is_shown_as_its_summary() -> None:
    models = [(language_model(seed=seed), tokenizer()) for seed in (0, 1)]
    judges = [lambda prompts, completions: [1.0 for _ in completions]]
    judged = dfb.judge(*models, ["say"], judges=judges, names=["a", "b"], max_new_tokens=2)
    assert repr(judged) == str(judged)
    assert "0 won, 1 tie, 0 lost" in repr(judged)
