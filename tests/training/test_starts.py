"""Runs that start with the weights of another run, or at a LoRA: from where, compared with what, and what is refused."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers.utils import convert_state_dict_to_kohya
from run_results import policy, policy_at, rows, train
from safetensors.torch import load_file, save_file
from torch import Tensor

import diffusion_feedback as dfb
from diffusion_feedback.cli.main import main
from diffusion_feedback.training.checkpoints import load_checkpoint

Make = Callable[..., Path]
LORA = {"tuning": "lora", "lora_rank": 2, "lora_alpha": 8.0}
QUIET = {"num_prompts": 0}
STILL = {"max_train_steps": 1, "learning_rate": 0.0}  # an update that changes nothing: the result is the start


def source(make: Make, tuning: dict[str, Any], **changes: Any) -> Path:
    training = {"max_train_steps": 4, "learning_rate": 1e-2}
    return train(make("source", model=tuning, training=training, validation=QUIET, **changes))


@pytest.mark.parametrize("modality", ["images", "texts"])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_run_starts_with_the_weights_of_another(
    modality: str, tuning: str, make_recipe: Make, make_text_recipe: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """At its newest step, or one that is named; full tuning takes them as the reference too, adapters the bare base."""
    make, model = (
        make_recipe if modality == "images" else make_text_recipe,
        LORA if tuning == "lora" else {"tuning": "full"},
    )
    run = source(make, model)
    for reference, step in ((str(run), 4), (f"{run}@2", 2)):
        capsys.readouterr()
        new = train(make(f"new{step}", model={**model, "init_from": reference}, training=STILL, validation=QUIET))
        out = capsys.readouterr().out
        assert [row["step"] for row in rows(new)] == [1]
        assert yaml.safe_load((new / "recipe.yaml").read_text())["model"]["init_from"].endswith(f"step-{step:06d}")
        start = policy_at(run, step)
        assert policy(new).keys() == start.keys()
        for name, value in policy(new).items():
            assert torch.equal(value, start[name]), name
        (gate,) = rows(new, "gate/loss")
        assert gate["gate/expected_loss"] == pytest.approx(math.log(2), abs=1e-6)
        if tuning == "full":
            assert "they are the reference too" in out
            assert gate["gate/loss"] == pytest.approx(math.log(2), abs=1e-6)
        else:
            assert "without adapters, so the first loss is not that of equal models" in out
            assert gate["gate/max_logit_gap"] > 1e-2
            assert gate["gate/max_reference_gap"] == 0


def test_the_average_is_what_a_run_gives(make_text_recipe: Make) -> None:
    training = {"max_train_steps": 4, "learning_rate": 1e-2, "ema_decay": 0.5}
    run = train(make_text_recipe("source", training=training, validation=QUIET))
    recipe = dfb.load_recipe(make_text_recipe("new", training=STILL, validation=QUIET))
    new = dfb.train(recipe, init_from=dfb.Run(recipe, run))
    average = load_checkpoint(run / "checkpoints" / "step-000004")[1]["average"]
    for name, value in policy(new.path).items():
        assert torch.equal(value, average[name]), name


REFUSED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"lora_rank": 4, "lora_targets": ["convolutions"]}, ("model.lora_rank: 2 there, 4 here", "['convolutions'] here")),
    (
        {"lora_alpha": 2.0},
        ("model.lora_alpha: 8.0 there, 2.0 here", "model.init_lora takes adapters of another strength"),
    ),
    ({"tuning": "full", "lora_alpha": None}, ("model.tuning: 'lora' there, 'full' here",)),
    ({"init_from": "RUN@3"}, ("no checkpoint of step 3", "@2", "@4")),
    ({"init_from": "RUN@best"}, ("no best checkpoint",)),
    ({"init_from": "BASE"}, ("is no run, and no checkpoint of one",)),
    ({"init_lora": "RUN"}, ("a run has one start",)),
]


def test_starts_that_are_refused(
    make_recipe: Make, tiny_pipelines: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = source(make_recipe, LORA)
    for changes, said in REFUSED:
        model = {**LORA, "init_from": str(run), **changes}
        for name in ("init_from", "init_lora"):
            place = str(model.get(name, "")).replace("RUN", str(run)).replace("BASE", str(tiny_pipelines["sd"]))
            model |= {name: place} if place else {}
        recipe = make_recipe("new", model=model, training=STILL, validation=QUIET)
        capsys.readouterr()
        assert main(["train", "--config", str(recipe)]) == 2, changes
        error = capsys.readouterr().err
        assert all(each in error for each in said), error
        assert not recipe.with_suffix("").exists()


def change_of_layers(weights: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """What the adapters in ``weights``, as training keeps them, add to each layer."""
    downs = {name: value for name, value in weights.items() if ".lora_A." in name}
    return {
        name.split(".lora_A")[0]: scale * weights[name.replace("lora_A", "lora_B")].flatten(1) @ value.flatten(1)
        for name, value in downs.items()
    }


def as_kohya(run: Path, folder: Path) -> Path:
    tensors = load_file(run / "pytorch_lora_weights.safetensors")
    save_file(convert_state_dict_to_kohya(tensors), folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


def test_adapters_start_at_a_lora_of_images(
    make_recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run, of a step of it, of kohya's form; under another alpha the layers compute what they did all the same."""
    run = source(make_recipe, LORA)
    # alpha 8 over rank 2 counts four times, alpha 2 once.
    for number, (place, step) in enumerate(((run, 4), (f"{run}@2", 2), (as_kohya(run, tmp_path), 4))):
        model = {**LORA, "lora_alpha": 2.0, "init_lora": str(place)}
        new = train(make_recipe(f"new{number}", model=model, training=STILL, validation=QUIET))
        old, now = change_of_layers(policy_at(run, step), 4.0), change_of_layers(policy(new), 1.0)
        assert old.keys() == now.keys()
        for name, value in now.items():
            torch.testing.assert_close(value, old[name], rtol=1e-4, atol=1e-7)
        assert rows(new, "gate/loss")[0]["gate/max_logit_gap"] > 1e-2
    capsys.readouterr()
    wrong = {**LORA, "init_lora": str(run), "lora_rank": 4}
    assert main(["train", "--config", str(make_recipe("wrong", model=wrong, validation=QUIET))]) == 2
    error = capsys.readouterr().err
    assert "it has rank 2 on " in error
    assert "here it is 4" in error
    assert "model.lora_rank: 2" in error
    fewer = {**LORA, "init_lora": str(run), "lora_targets": ["convolutions"]}
    assert main(["train", "--config", str(make_recipe("wrong", model=fewer, validation=QUIET))]) == 2
    assert "layers are not adapted here (down_blocks" in capsys.readouterr().err
    more = {**LORA, "init_lora": str(run), "lora_targets": ["attention", "convolutions"]}
    train(make_recipe("more", model=more, training=STILL, validation=QUIET))
    assert "layers start as adapters that change nothing" in capsys.readouterr().out


def test_adapters_start_at_a_lora_of_texts(make_text_recipe: Make, tmp_path: Path) -> None:
    """peft's folder of a run; and a run that goes on keeps its start."""
    run = source(make_text_recipe, LORA)
    new = make_text_recipe(
        "new", model={**LORA, "lora_alpha": 2.0, "init_lora": str(run)}, training=STILL, validation=QUIET
    )
    folder = train(new)
    old, now = change_of_layers(policy_at(run, 4), 4.0), change_of_layers(policy(folder), 1.0)
    assert old.keys() == now.keys()
    for name, value in now.items():
        torch.testing.assert_close(value, old[name], rtol=1e-4, atol=1e-7)
    shutil.copytree(run, tmp_path / "copy")
    train(new, "--resume", "--training.max_train_steps", "2")
    assert [row["step"] for row in rows(folder)] == [1, 2]


def test_a_run_goes_on_without_what_it_started_at(
    make_text_recipe: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It keeps the step that RUN@last meant when it began; adapters need it no more, full tuning says that it is gone."""
    run = source(make_text_recipe, LORA)
    start = {"init_from": f"{run}@last"}
    recipe = make_text_recipe("new", model={**LORA, **start}, training=STILL, validation=QUIET)
    folder = train(recipe)
    train(make_text_recipe("source", model=LORA, training={"max_train_steps": 5}, validation=QUIET), "--overwrite")
    train(recipe, "--resume", "--training.max_train_steps", "2")
    shutil.rmtree(run)
    train(recipe, "--resume", "--training.max_train_steps", "3")
    assert [row["step"] for row in rows(folder)] == [1, 2, 3]
    capsys.readouterr()
    flags = ["--output_dir", str(tmp_path / "another"), "--model.init_from", str(run / "checkpoints" / "step-000004")]
    assert main(["train", "--config", str(recipe), *flags]) == 2
    assert "is no run" in capsys.readouterr().err


def test_adapters_of_another_base_are_refused(
    make_text_recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = source(make_text_recipe, LORA)
    base = tmp_path / "changed"
    shutil.copytree(yaml.safe_load((run / "recipe.yaml").read_text())["model"]["pretrained_model_name_or_path"], base)
    weights = load_file(base / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, base / "model.safetensors", {"format": "pt"})
    model = {**LORA, "init_from": str(run), "pretrained_model_name_or_path": str(base)}
    recipe = make_text_recipe("new", model=model, training=STILL, validation=QUIET)
    capsys.readouterr()
    assert main(["train", "--config", str(recipe)]) == 2
    assert "were trained over another base than the one here" in capsys.readouterr().err
