"""Leakage: prompts that were trained on and judges that made the labels, of images and of texts, said wherever they are measured."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pairs_data
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_text
import yaml
from run_results import train
from text_recipes import pairs, write_jsonl, write_recipe

from diffusion_feedback.cli.main import main
from diffusion_feedback.evaluation.benchmarks.run import BenchmarkRun
from diffusion_feedback.evaluation.leakage import Leakage, TrainedOn, find_leakage, prompt_key
from diffusion_feedback.folders import ROUNDS
from diffusion_feedback.records import PromptRecord
from diffusion_feedback.workflows.leakage import leakage_of, leakage_of_run, trained_on

JUDGE = "pickscore.1/crop-224/fp32/0123456789ab"
BRIGHT = """
import numpy as np
def brightness(images, prompts):
    return [float(np.asarray(image).mean()) for image in images]
def length(prompts, completions):
    return [float(len(completion)) for completion in completions]
"""


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["A  red\ncircle.", "a red circle", " a RED circle!", "\uff41 red circle"])
def test_prompts_are_known_however_they_are_written(other: str) -> None:
    assert prompt_key(other) == prompt_key("a red circle")
    assert prompt_key([{"role": "user", "content": other}]) == prompt_key("a red circle")
    assert prompt_key(f"{other} and more") != prompt_key("a red circle")


def test_the_record_of_a_run_is_small_and_comes_back() -> None:
    prompts = [f"prompt {number}" for number in range(1000)]
    trained = TrainedOn.of([*prompts, *prompts, ""], {"pickscore": JUDGE})
    content = json.loads(json.dumps(trained.to_json()))
    assert TrainedOn.of_json(content) == trained
    assert len(content["prompts"]) == 8000
    with pytest.raises(ValueError, match="prompts"):
        TrainedOn.of_json({**content, "num_prompts": 999})


@pytest.mark.parametrize(
    ("name", "recipe", "leaks"),
    [
        ("pickscore", JUDGE, True),
        ("pickscore", JUDGE.replace("fp32", "fp16"), True),  # another precision is no other judge
        ("pickscore", JUDGE.replace("0123456789ab", "fedcba987654"), False),  # other weights are
        ("mine", JUDGE, True),  # nor is another name
        ("hpsv2", "hpsv2.1/letterbox-224/fp32/00", False),
    ],
)
def test_a_judge_is_known_by_its_weights(name: str, recipe: str, leaks: bool) -> None:
    found = find_leakage(TrainedOn.of(["a"], {"pickscore": JUDGE}), ["b"], {name: recipe})
    assert found == Leakage((), (name,) if leaks else ())


# --- the matrix, over folders of runs ----------------------------------------------------------------------------------


def run_folder(folder: Path, family: str, train: str = "gone.parquet", **more: Any) -> Path:
    """A run as training leaves it: recipe, and where ``more`` names them what it was trained on."""
    folder.mkdir(parents=True)
    recipe = {
        "model": {"pretrained_model_name_or_path": more.pop("base", "owner/base"), "family": family},
        "data": {"train": train, "split": "train", "revision": None},
        "rollouts": {"reward": ""},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "README.md").touch()
    trained = {"trained_on": TrainedOn.of(more["prompts"], more["judges"]).to_json()} if more else {}
    (folder / "environment.json").write_text(json.dumps({"python": "3", **trained}))
    return folder


@pytest.mark.parametrize("family", ["sd", "causal_lm"])
@pytest.mark.parametrize(
    ("prompts", "judges", "expected"),
    [
        (["B."], {}, Leakage((1,), ())),
        (["x"], {"judge": ""}, Leakage((), ("judge",))),
        (["a", "b"], {"judge": ""}, Leakage((0, 1), ("judge",))),
        (["x"], {"other": ""}, Leakage((), ())),
        (None, None, Leakage()),
    ],
    ids=["prompts", "judge", "both", "none", "unknown"],
)
def test_matrix(tmp_path: Path, family: str, prompts: Any, judges: Any, expected: Leakage) -> None:
    more = {} if prompts is None else {"prompts": prompts, "judges": judges}
    run = run_folder(tmp_path / "run", family, **more)
    assert leakage_of([str(run)], ["a", "b"], {"judge": "", "third": ""}) == expected
    # A base of nobody's, and a checkpoint of the run, say the same.
    (run / "checkpoints" / "step-000010").mkdir(parents=True)
    assert leakage_of(["owner/base", f"{run}@10"], ["a", "b"], {"judge": ""}) == expected
    assert leakage_of(["owner/base"], ["a", "b"], {"judge": ""}) == Leakage()


def test_what_a_run_started_from_counts_and_its_reference_does_not(tmp_path: Path) -> None:
    base = run_folder(tmp_path / "sft", "sd", prompts=["a"], judges={})
    run = run_folder(tmp_path / "dpo", "sd", prompts=["b"], judges={"judge": ""}, base=str(base))
    assert leakage_of([str(run)], ["a", "b", "c"], {"judge": ""}) == Leakage((0, 1), ("judge",))
    assert leakage_of([str(base)], ["a", "b", "c"], {"judge": ""}) == Leakage((0,), ())
    recipe = yaml.safe_load((base / "recipe.yaml").read_text())
    recipe["model"]["reference_model_name_or_path"] = str(run)
    (base / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert leakage_of([str(base)], ["a", "b", "c"], {}) == Leakage((0,), ())


def test_rounds_count_up_to_the_round_and_their_judge_too(tmp_path: Path) -> None:
    rounds = tmp_path / "rounds"
    for number in (1, 2):
        base = "owner/base" if number == 1 else str(rounds / "round-1" / "model")
        run_folder(rounds / f"round-{number}" / "run", "causal_lm", prompts=[f"p{number}"], judges={}, base=base)
        (rounds / f"round-{number}" / "model").mkdir()
    (rounds / ROUNDS).write_text("{}")
    own = {"rounds": {"scorer": ""}, "rollouts": {"reward": "function=mine.py:length"}}
    (rounds / "recipe.yaml").write_text(yaml.safe_dump(own))
    judges = {"function=mine.py:length": "", "other": ""}
    prompts = ["p1", "p2"]
    for number, places in ((1, (0,)), (2, (0, 1))):
        found = leakage_of([str(rounds / f"round-{number}" / "model")], prompts, judges)
        assert found == Leakage(places, ("function=mine.py:length",))


def test_given_images_are_of_the_models_that_their_manifest_names(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", "sd", prompts=["a"], judges={"judge": ""})
    other = run_folder(tmp_path / "other", "sd", prompts=["b"], judges={})
    (tmp_path / "images").mkdir()

    def leaked(*rows: dict[str, Any], images: tuple[str, ...] = ("0.png", "1.png")) -> Leakage:
        manifest = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "images" / "metadata.jsonl").write_text(manifest)
        prompts, scorer = [PromptRecord("a", {}), PromptRecord("b", {})], SimpleNamespace(scorer="judge", recipe_id="")
        settings = {"images": str(tmp_path / "images")}
        measured: Any = (None, settings, prompts, [[name] for name in images], tmp_path / "images", [scorer], [])
        return leakage_of_run(BenchmarkRun("images", tmp_path, *measured))

    drawn = [
        {"file_name": f"{place}.png", "prompt": prompt, "seed": 0, "settings": {}, "model_hash": "0"}
        for place, prompt in enumerate("ab")
    ]
    by_run = {"model_path": "owner/base", "lora_path": str(run)}
    assert leaked(*({**row, **by_run} for row in drawn)) == Leakage((0,), ("judge",))
    assert leaked({**drawn[0], **by_run}, {**drawn[1], "model_path": str(other)}) == Leakage((0, 1), ("judge",))
    # Images of the manifest that are not measured count for nothing.
    assert leaked({**drawn[0], **by_run}, {**drawn[1], "model_path": str(other)}, images=("1.png",)) == Leakage(
        (1,), ()
    )
    # An older manifest, one of somebody else, and an empty one say nothing.
    assert leaked(*drawn) == leaked({"file_name": "0.png"}) == leaked() == Leakage()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"trained_on": 3}', '{"trained_on": {"prompts": "!", "num_prompts": 1}}']
)
def test_a_damaged_record_is_unknown_and_no_error(tmp_path: Path, content: str) -> None:
    run = run_folder(tmp_path / "run", "sd")
    (run / "environment.json").write_text(content)
    assert trained_on(str(run)) is None


# --- end to end ------------------------------------------------------------------------------------------------------


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(BRIGHT)
    return path


def test_images(
    tmp_path: Path, make_recipe: Callable[..., Path], rewards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run on pairs that its own judge has labelled, benchmarked on some of its prompts: said on page, console, results."""
    table = pq.read_table(pairs_data.write_pairs(tmp_path / "plain.parquet"))
    scorer = f"{rewards}:brightness"
    labelled = table.append_column("scorers", pa.array([["brightness"]] * len(table)))
    pq.write_table(labelled, tmp_path / "labelled.parquet")
    run = train(make_recipe(data={"train": str(tmp_path / "labelled.parquet")}, training={"max_train_steps": 2}))
    trained = trained_on(str(run))
    assert trained is not None
    captions = table.column("caption").to_pylist()
    assert trained == TrainedOn.of(captions, {"brightness": ""})
    # An older run says nothing of it; its data do, as long as they are there.
    path = run / "environment.json"
    recorded = json.loads(path.read_text())
    old = {key: value for key, value in recorded.items() if key != "trained_on"}
    path.write_text(json.dumps(old))
    assert trained_on(str(run)) == trained
    (tmp_path / "labelled.parquet").rename(tmp_path / "moved.parquet")
    assert trained_on(str(run)) is None
    path.write_text(json.dumps(recorded))

    (tmp_path / "prompts.txt").write_text(f"{captions[0].upper()}\nsomething that nobody drew\n")
    flags = ["--prompts", str(tmp_path / "prompts.txt"), "--scorer", scorer, "--num_inference_steps", "1"]
    command = ["benchmark", "prompts", "--model", str(run), *flags, "--cache_dir", str(tmp_path / "scores")]
    capsys.readouterr()
    assert main([*command, "--output_dir", str(tmp_path / "bench")]) == 0
    out = capsys.readouterr().out
    assert "was trained on these prompts\n  1 of 2 prompts stands in the data" in out
    assert "ALARM: brightness made the labels" in out
    results = json.loads((tmp_path / "bench" / "results.json").read_text())["leakage"]
    assert (results["num_prompts_trained_on"], results["judges_that_labelled"]) == (1, ["brightness"])
    assert results["prompts_trained_on"] == [captions[0].upper()]
    page = (tmp_path / "bench" / "report.html").read_text()
    assert page.count('class="notice alarm"') == 2
    assert re.search(r"<h1>Prompts of prompts.txt: \w+ \+ run</h1>", page)
    assert "made the labels that" in page
    # A report over the finished folder says it too, whatever has become of the model.
    shutil.rmtree(run)
    assert main(["report", str(tmp_path / "bench"), "--output", str(tmp_path / "report.html")]) == 0
    assert "ALARM: brightness made the labels" in capsys.readouterr().out


def test_texts(tmp_path: Path, rewards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_text.save_tiny_lm(tmp_path / "lm", seed=0)
    rows = pairs(12)
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "validation.jsonl", pairs(4, seed=1))
    run = train(write_recipe(tmp_path, tmp_path / "lm", training={"max_train_steps": 2}))
    trained = trained_on(str(run))
    assert trained is not None
    assert trained == TrainedOn.of([row["prompt"] for row in rows], {})
    prompts = [rows[0]["prompt"], "nobody has read this"]
    random.Random(0).shuffle(prompts)
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    spec = f"function={rewards}:length"
    flags = ["--prompts", str(tmp_path / "prompts.txt"), "--judge", spec, "--max_new_tokens", "3"]
    capsys.readouterr()
    assert main(["judge", str(run), str(tmp_path / "lm"), *flags, "--output_dir", str(tmp_path / "out")]) == 0
    assert "ALARM: run was trained on these prompts\n  1 of 2 prompts stands in" in capsys.readouterr().out
    leakage = json.loads((tmp_path / "out" / "results.json").read_text())["leakage"]
    assert (leakage["run"]["num_prompts_trained_on"], leakage["run"]["judges_that_labelled"]) == (1, [])
    assert (leakage["lm"]["num_prompts_trained_on"], leakage["lm"]["judges_that_labelled"]) == (None, None)
    assert 'class="notice alarm"' in (tmp_path / "out" / "report.html").read_text()
