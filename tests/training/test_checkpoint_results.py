"""Checkpoints are results: every kind of run x RUN, RUN@STEP, RUN@best; by our commands, and by plain libraries."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import card_snippets
import pytest
import text_recipes
import tiny_ranker
import torch
import yaml
from diffusers import DiffusionPipeline, UNet2DConditionModel
from peft import AutoPeftModelForCausalLM
from PIL import Image
from run_results import policy, rows, train
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, CLIPModel

import diffusion_feedback as dfb
from diffusion_feedback.cli.main import main
from diffusion_feedback.runs import best_step, checkpoint_steps, weights_of
from diffusion_feedback.scorers.loading import load_scorer
from diffusion_feedback.scorers.texts.loading import load_text_scorer
from diffusion_feedback.training.checkpoints import load_checkpoint
from diffusion_feedback.training.loop import Trainer

MakeRecipe = Callable[..., Path]
TRAINING = {"max_train_steps": 3, "checkpointing_steps": 1, "checkpoints_total_limit": 1, "learning_rate": 1e-2}
LORA = {"tuning": "lora", "lora_rank": 2}
FULL = {"tuning": "full"}
PROMPTS = ["the cat", "the dog"]
BY_LOSS = {"steps": 1, "keep_best": "loss"}
BY_NAME = ("@best", "@last", "")


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second step is the best of every run: the metric that is watched, of which less is better, is 0 there."""
    evaluate = Trainer._evaluate_alone

    def stage(self: Trainer, done: int) -> dict[str, float]:
        real, metric = self.evaluate, str(self.selection.keep_best)
        self.evaluate = lambda step, network: {
            **(seen := real(step, network)),
            metric: 0 * seen[metric] + abs(step - 2.0),
        }
        try:
            return dict(evaluate(self, done))
        finally:
            self.evaluate = real

    monkeypatch.setattr(Trainer, "_evaluate_alone", stage)


@pytest.fixture
def make(tmp_path: Path, make_recipe: MakeRecipe, tiny_lm: Path, staged: None) -> Callable[[str], Path]:
    """A finished run of three steps of each kind, of which the second is the best, and kept with the newest."""

    def run(kind: str) -> Path:
        if kind.startswith("image"):
            model = {**LORA, "lora_alpha": 6} if "lora" in kind else FULL
            training = {**TRAINING, "ema_decay": 0.9 * ("ema" in kind)}
            validation = {**BY_LOSS, "keep_best": "error/chosen", "num_prompts": 0, "num_inference_steps": 1}
            return train(make_recipe(model=model, training=training, validation=validation))
        if kind == "scorer":
            clip = {"pretrained_model_name_or_path": str(tiny_ranker.save_clip(tmp_path / "clip")), "family": "clip"}
            file = make_recipe(model={**clip, **FULL}, training=TRAINING, objective={"name": "pickscore"})
        else:
            is_judge = kind == "reward model"
            model = {**(LORA if "lora" in kind else FULL), "family": "reward_model" if is_judge else "causal_lm"}
            objective = {"name": "bradley_terry"} if is_judge else {"name": "dpo", "beta": 0.1}
            changes = {"model": model, "objective": objective, "training": TRAINING, "rollouts": None}
            file = text_recipes.write_recipe(tmp_path, tiny_lm, **changes)
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "validation": BY_LOSS}))
        return train(file)

    return run


def plain(kind: str, folder: Path, base: Path) -> dict[str, Tensor]:
    """The weights of ``folder`` as the library of its own loads them."""
    if kind.startswith("image"):
        pipeline = DiffusionPipeline.from_pretrained(base if "lora" in kind else folder, dtype=torch.float32)
        if "lora" in kind:
            pipeline.load_lora_weights(folder)
        return pipeline.unet.state_dict()
    if kind == "text lora":
        return AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().state_dict()
    loader = {"scorer": CLIPModel, "reward model": AutoModelForSequenceClassification}.get(kind, AutoModelForCausalLM)
    return loader.from_pretrained(folder).state_dict()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


KINDS = ["image lora", "image full", "image full ema", "text lora", "text full", "reward model", "scorer"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_checkpoint_is_a_result(
    kind: str,
    make: Callable[[str], Path],
    tiny_pipelines: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make(kind)
    best, steps = best_step(run), checkpoint_steps(run)
    assert best == 2
    assert list(steps) == [2, 3], "the newest and the best are kept"
    loaded = {
        which: plain(kind, Path(weights_of(f"{run}{which}")), tiny_pipelines["sd"]) for which in ("", "@best", "@3")
    }
    assert same(loaded[""], loaded["@3"])
    assert not same(loaded["@best"], loaded["@3"])
    result = dfb.Run(dfb.load_recipe(run / "recipe.yaml"), run)
    assert result.best == best
    for which, step in {"": None, "@best": "best", "@3": 3}.items():
        model = result.load(step)
        assert same((model.unet if kind.startswith("image") else model).state_dict(), loaded[which]), which
    check_files(kind, steps[best])
    check_judges(kind, run)
    # The card's own lines, on the folder of a checkpoint.
    card = tmp_path / "card.md"
    card.write_text((run / "README.md").read_text().replace(repr(str(run)), repr(str(steps[best]))))
    image = Image.new("RGB", (16, 16))
    names = {"prompt": "a red square", "image_0": image, "image_1": image}
    card_snippets.run_snippet(card, tmp_path, monkeypatch, **names)


def check_files(kind: str, checkpoint: Path) -> None:
    """Readable by whom the mask says, nothing is written twice, and the raw weights stand beside an average."""
    mask = os.umask(0)
    os.umask(mask)
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}
    states = load_checkpoint(checkpoint)[1]
    places = json.loads((checkpoint / "resume" / "weights.json").read_text())
    # A strength of its own is folded into both factors: the factors as they are trained stand apart then.
    shared = set() if "image lora" in kind else set(states["policy"])
    assert set(places["policy"]) == shared
    assert ("average" in states) == ("ema" in kind)
    if kind == "image full ema":
        raw = UNet2DConditionModel.from_pretrained(checkpoint / "raw" / "unet").state_dict()
        assert same(raw, states["policy"])
        assert [path.name for path in (checkpoint / "raw").iterdir()] == ["unet"]
        averaged = UNet2DConditionModel.from_pretrained(checkpoint / "unet").state_dict()
        assert all(torch.equal(value, states["average"][name]) for name, value in averaged.items())
        assert not same(raw, averaged)


def check_judges(kind: str, run: Path) -> None:
    """What reads and writes texts, and what judges images, takes a step of a run by its name too."""
    if kind == "text full":
        drawn = [dfb.generate(f"{run}@{which}", PROMPTS, max_new_tokens=3)["completion"] for which in ("last", 3)]
        assert drawn[0] == drawn[1]
        judged = dfb.judge(f"{run}@best", f"{run}@last", PROMPTS, judges=longer, max_new_tokens=3)
        assert 0 <= judged.win_rates["longer"].win_rate <= 1
    elif kind == "reward model":
        texts = PROMPTS, [" sat on the mat", " ran"]
        best, last, result = (load_text_scorer(f"reward_model={run}{which}").score(*texts) for which in BY_NAME)
        assert best != last == result
    elif kind == "scorer":
        images, prompts = [Image.new("RGB", (16, 16), "red")], ["a red square"]
        best, last, result = (float(load_scorer(f"pickscore={run}{which}").score(images, prompts)) for which in BY_NAME)
        assert best != last == result


def longer(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(completion)) for completion in completions]


def test_commands_and_calls_take_steps_of_runs(
    make: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make("image lora")
    prompts, sampling = tmp_path / "prompts.txt", ["--num_inference_steps", "1", "--height", "16", "--width", "16"]
    prompts.write_text("a cat\n")
    drawn = {}
    for which in ("", "@3", "@last", "@best", "@2"):
        out = tmp_path / f"out{which}"
        assert main(["generate", f"{run}{which}", "--prompts", str(prompts), "--output_dir", str(out), *sampling]) == 0
        drawn[which] = next(out.rglob("*.png")).read_bytes()
    assert drawn[""] == drawn["@3"] == drawn["@last"]
    assert drawn["@best"] == drawn["@2"] != drawn["@3"]
    (tmp_path / "own.py").write_text(
        "def width(images, prompts):\n    return [float(image.width) for image in images]\n"
    )
    scorers, settings = f"{tmp_path / 'own.py'}:width", {"num_inference_steps": 1, "height": 16, "width": 16}
    own = {"prompts": str(prompts), "scorers": scorers, "allow_short": True}
    measured = dfb.benchmark("pickapic", model=f"{run}@best", **own, **settings)
    assert measured.run.settings["lora"] == str(checkpoint_steps(run)[2])
    capsys.readouterr()
    assert main(["generate", f"{run}@7", "--prompts", str(prompts), "--output_dir", str(tmp_path / "no")]) == 2
    assert f"give one of: {run} itself, its result, {run}@2 (best), {run}@3" in capsys.readouterr().err


def test_a_run_ends_early_alike_after_a_signal_and_goes_on_where_that_is_requested(
    make_recipe: MakeRecipe, staged: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {**TRAINING, "max_train_steps": 5, "checkpointing_steps": 100}
    watched = {"steps": 1, "num_prompts": 0, "keep_best": "error/chosen", "early_stopping": "error/chosen"}
    validation = {**watched, "num_inference_steps": 1, "early_stopping_patience": 1}
    whole, broken = (make_recipe(name, model=LORA, training=training, validation=validation) for name in ("a", "b"))
    run = train(whole)
    said = (
        "stopped early after step 3 of 5: held-out error on chosen images has not fallen in 1 evaluations since step 2"
    )
    assert said in capsys.readouterr().out
    assert said in (run / "README.md").read_text()
    assert (best_step(run), list(checkpoint_steps(run))) == (2, [2, 3])
    update = Trainer.update

    def signalled(self: Trainer, number: int) -> dict[str, float]:
        if number == 2:
            signal.raise_signal(signal.SIGTERM)
        return update(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", signalled)
        assert main(["train", "--config", str(broken)]) == 143
    again = train(broken, "--resume")
    assert (best_step(again), list(checkpoint_steps(again))) == (2, [2, 3])
    assert same(policy(again), policy(run))
    capsys.readouterr()
    train(whole, "--resume")
    assert "already complete" in capsys.readouterr().out
    train(whole, "--resume", "--validation.early_stopping", "null")
    assert (best_step(run), list(checkpoint_steps(run))) == (2, [2, 5])


def test_scorers_of_samples_choose_the_step(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """The mean score, and how often a sample beats the one of before; the metric that is kept by is one of theirs."""
    code = "def level(images, prompts):\n    return [sum(image.convert('L').tobytes()) / 1e3 for image in images]\n"
    (tmp_path / "own.py").write_text(code)
    validation = {"steps": 1, "num_inference_steps": 1, "scorers": [f"{tmp_path / 'own.py'}:level"]}
    changes = {"model": LORA, "training": {**TRAINING, "learning_rate": 0.1}, "data": {"validation": None}}
    run = train(make_recipe(**changes, validation={**validation, "keep_best": "scores/level"}))
    found = rows(run, "validation/scores/level")
    best = max(found, key=lambda row: (row["validation/scores/level"], -row["step"]))
    assert (len(found), best_step(run)) == (3, best["step"])

    def levels(name: str) -> list[float]:
        pictures = (Image.open(run / "samples" / name / f"{number:03d}.png") for number in range(2))
        return [sum(picture.convert("L").tobytes()) / 1e3 for picture in pictures]

    for row in found:
        old, new = levels("before"), levels(f"step-{row['step']:06d}")
        assert row["validation/scores/level"] == pytest.approx(sum(new) / 2)
        wins = [0.5 if one == other else float(one > other) for one, other in zip(new, old, strict=True)]
        assert row["validation/wins/level"] == pytest.approx(sum(wins) / 2)


@pytest.mark.parametrize(
    ("validation", "said"),
    [
        ({"keep_best": "accuracy", "steps": 0}, "validation.keep_best: validation.steps is 0"),
        ({"keep_best": "nll"}, "validation.keep_best: got 'nll'\n  -> allowed: accuracy, error/chosen"),
        ({"early_stopping": "scores/x"}, "validation.early_stopping: got 'scores/x'"),
        ({"keep_best": "wins/x", "scorers": ["shapes"]}, "the scorers are shapes\n  -> use wins/shapes, or add it to"),
        ({"keep_best": "accuracy"}, "validation.keep_best: held-out accuracy needs held-out examples"),
        ({"scorers": ["shapes"], "num_prompts": 0}, "validation.scorers: no samples are drawn"),
    ],
)
def test_what_cannot_be_watched_is_refused_before_the_first_step(
    validation: dict[str, Any], said: str, make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(model=LORA, data={"validation": None}, validation={"steps": 1, **validation})
    assert main(["train", "--config", str(recipe)]) == 2
    assert said in capsys.readouterr().err
    assert not (recipe.with_suffix("") / "metrics.jsonl").exists()
