"""The package as a library: its public names, and what they do with objects instead of names."""

from __future__ import annotations

import ast
import gc
import inspect
import re
import subprocess
import sys
import weakref
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from diffusers import StableDiffusionPipeline
from PIL import Image
from recipes import MakeRecipe
from safetensors.torch import load_file
from text_recipes import MakeTextRecipe
from transformers import AutoModelForCausalLM, AutoTokenizer

import diffusion_feedback as dfb
from diffusion_feedback.cli.main import main
from diffusion_feedback.data.cache import TensorCache
from diffusion_feedback.objectives.pairwise import hinge
from diffusion_feedback.training.loop import Trainer
from diffusion_feedback.types.training import PairLogps

ROOT = Path(__file__).resolve().parent.parent
BASE: dict[str, Any] = {
    "model": {"pretrained_model_name_or_path": "somewhere"},
    "data": {"train": "pairs.parquet"},
    "output_dir": "runs/x",
}


def test_type_checkers_see_the_public_names() -> None:
    """A stub gives on what it imports ``as`` itself; what it imports twice, or does not, they would not know."""
    stub = ast.parse(Path(dfb.__file__).with_suffix(".pyi").read_text())
    names = [
        (alias.name, alias.asname) for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    assert sorted(names) == [(name, name) for name in dfb.__all__]
    assert Path(dfb.__file__).with_name("py.typed").is_file()


@pytest.mark.parametrize("name", dfb.__all__)
def test_public_names_are_documented(name: str) -> None:
    assert name in dir(dfb)
    assert getattr(dfb, name).__doc__


CALLS = ["audit", "benchmark", "calibrate", "check", "convert", "generate", "judge", "label", "report", "score", "view"]


@pytest.mark.parametrize("name", CALLS)
def test_a_call_shows_the_settings_that_it_takes(name: str) -> None:
    call = getattr(dfb, name)
    shown = inspect.signature(call).parameters
    kinds = sys.modules[call.__module__]._KINDS  # type: ignore[attr-defined]
    assert {field.name for kind in kinds for field in fields(kind)} <= shown.keys()
    assert not [each for each in shown.values() if each.kind is each.VAR_KEYWORD]
    plain = {field.name: field.default for kind in reversed(kinds) for field in fields(kind)}
    other = {key for key in plain if shown[key].default != plain[key]}
    assert other == ({"noise"} if name == "benchmark" else set())


def test_what_a_call_shows_is_all_that_it_takes() -> None:
    with pytest.raises(dfb.UserError, match="`batchsize`: is no setting"):
        dfb.score([], scorers=["shapes"], batchsize=3)


def test_a_name_that_is_none() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        dfb.trian  # noqa: B018


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, diffusion_feedback; print(len(dir(diffusion_feedback)), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split()[1] == "False"


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        (dfb.GenerationSettings, {"seeds": 3}, "`seeds`: got 3\n  -> allowed: a list of numbers, such as [0, 1]"),
        (dfb.GenerationSettings, {"seeds": "12"}, "`seeds`: got '12'"),
        (dfb.GenerationSettings, {"seeds": [0, 0]}, "`seeds`: got [0, 0]\n  -> allowed: distinct numbers, 0 or more"),
        (dfb.GenerationSettings, {"batch_size": "8"}, "`batch_size`: got '8'\n  -> allowed: a whole number"),
        (dfb.GenerationSettings, {"batch_size": True}, "`batch_size`: got True"),
        (dfb.ScoringSettings, {"workers": 0}, "`workers`: got 0\n  -> allowed: 1 or more"),
        (dfb.ImageSampling, {"height": "512"}, "`height`: got '512'\n  -> allowed: a whole number, or None"),
        (dfb.ImageSampling, {"height": 12}, "`height`: got 12\n  -> allowed: multiples of 8"),
        (dfb.ImageSampling, {"guidance_scale": -1}, "1 and less is no guidance"),
        (dfb.LabelingSettings, {"tie_margin": "x"}, "`tie_margin`: got 'x'\n  -> allowed: a number"),
        (dfb.LabelingSettings, {"calibration": 3}, "`calibration`: got 3\n  -> allowed: a text, or a mapping, or None"),
        (dfb.ReportSettings, {"names": "ab"}, "`names`: got 'ab'\n  -> allowed: a list of texts"),
        (dfb.ReportSettings, {"tie_margin": float("nan")}, "`tie_margin`: got nan"),
        (dfb.CompletionSampling, {"top_p": 0}, "`top_p`: got 0.0\n  -> allowed: above 0 to 1"),
        (dfb.DataSource, {"streaming": "no"}, "`streaming`: got 'no'\n  -> allowed: true or false"),
    ],
)
def test_settings_of_another_type_or_out_of_range(kind: Any, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(dfb.UserError) as told:
        kind(**setting)
    assert message in str(told.value)


def test_settings_take_what_means_the_same() -> None:
    """Paths as texts, whole numbers where numbers with a point are recorded, any sequence, numbers of numpy."""
    assert dfb.ScoringSettings(cache_dir=Path("x/y"), device=torch.device("cpu")).cache_dir == "x/y"
    assert repr(dfb.ImageSampling(guidance_scale=3).guidance_scale) == "3.0"
    assert dfb.GenerationSettings(seeds=range(3), batch_size=np.int64(2)).seeds == range(3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**BASE, "objective": {"name": "dpo", "beta": 100}}))
    return path


def test_a_recipe_with_overrides(file: Path) -> None:
    plain = dfb.load_recipe(file)
    assert plain.objective == {"name": "dpo", "beta": 100.0}
    changes = {"training.learning_rate": 3, "objective.beta": 7, "data.validation": None, "output_dir": Path("runs/y")}
    changed = dfb.load_recipe(str(file), changes)
    assert changed.training.learning_rate == 3.0
    assert isinstance(changed.training.learning_rate, float)
    assert changed.objective == {"name": "dpo", "beta": 7.0}
    assert changed.output_dir == "runs/y"
    assert changed.data == plain.data
    assert dfb.load_recipe(file, {"objective": {"name": "sft"}}).objective == {"name": "sft"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.learning_rat", 1.0, "unknown key 'training.learning_rat'.*did you mean 'learning_rate'"),
        ("trainin.learning_rate", 1.0, "unknown key 'trainin.learning_rate'.*did you mean 'training.learning_rate'"),
        ("training.learning_rate", -1.0, r"training.learning_rate: got -1.0.*allowed: 0 "),
        ("training.learning_rate", "fast", r"training.learning_rate: got .?fast.*allowed: a number"),
        ("training", 3, "training: got 3"),
        ("model", {}, "missing: model.pretrained_model_name_or_path.*set it in the recipe"),
        ("objective.bata", 1.0, "objective 'dpo' does not take 'bata'.*did you mean 'beta'"),
        ("data.train", {1, 2}, "data.train"),
    ],
)
def test_an_override_that_cannot_be(key: str, value: object, message: str, file: Path) -> None:
    with pytest.raises(dfb.UserError, match=f"(?s){message}") as error:
        dfb.load_recipe(file, {key: value})
    assert "--" not in str(error.value)


def as_trained(path: Path) -> dict[str, torch.Tensor]:
    """All weights of a finished run, by file and name."""
    files = sorted(file for file in path.glob("*.safetensors"))
    assert files
    return {f"{file.name} {name}": value for file in files for name, value in load_file(file).items()}


def assert_same(first: Path, second: Path) -> None:
    one, other = as_trained(first), as_trained(second)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("form", ["bytes", "images"])
def test_a_loaded_pipeline_and_a_data_set_give_the_weights_of_the_recipe(
    form: str, make_recipe: MakeRecipe, tiny_pipelines: dict[str, Path], pair_files: dict[str, Path]
) -> None:
    file = make_recipe(model={"lora_rank": 2}, validation={"num_prompts": 0})
    assert main(["train", "--config", str(file)]) == 0

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipelines["sd"], dtype=torch.float32)
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    data = Dataset.from_parquet(str(pair_files["train"]))
    if form == "images":
        data = data.cast_column("jpg_0", datasets.Image()).cast_column("jpg_1", datasets.Image())
    recipe = dfb.load_recipe(file, {"output_dir": file.with_name("objects"), "data.train": "nowhere"})
    run = dfb.train(recipe, model=pipeline, train_data=data, validation_data=str(pair_files["validation"]))

    assert_same(file.with_suffix(""), run.path)
    assert [row["loss"] for row in run.metrics] == [
        row["loss"] for row in dfb.Run(recipe, file.with_suffix("")).metrics
    ]
    assert [row["step"] for row in run.evaluations] == [6]
    assert run.evaluations[-1]["accuracy"] > 0
    # The pipeline is as it came, and with the result loaded it makes other images.
    after = pipeline.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert run.load() is pipeline
    assert len(pipeline.unet.state_dict()) > len(before)


def test_what_was_an_object_is_recorded_and_needed_again(
    make_recipe: MakeRecipe, tiny_pipelines: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = make_recipe(model={"lora_rank": 2}, validation={"num_prompts": 0})
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipelines["sd"], dtype=torch.float32)
    run = dfb.train(dfb.load_recipe(file), model=pipeline)
    recipe = yaml.safe_load((run.path / "recipe.yaml").read_text())
    assert re.fullmatch(
        r"<StableDiffusionPipeline, given in Python, [0-9a-f]{16}>", recipe["model"]["pretrained_model_name_or_path"]
    )
    (run.path / "README.md").unlink()
    assert main(["train", "--config", str(run.path / "recipe.yaml"), "--resume"]) == 2
    assert "call train in Python with the same model" in capsys.readouterr().err
    bias = pipeline.vae.decoder.conv_out.bias
    kept = bias.detach().clone()
    with torch.no_grad():
        bias += 1
    with pytest.raises(dfb.UserError, match="another model.pretrained_model_name_or_path"):
        dfb.train(dfb.load_recipe(file), model=pipeline, resume=True)
    with torch.no_grad():
        bias.copy_(kept)
    assert dfb.train(dfb.load_recipe(file), model=pipeline, resume=True).report.exists()


def test_a_loaded_language_model_and_a_data_set_give_the_weights_of_the_recipe(
    make_text_recipe: MakeTextRecipe, tiny_lm: Path
) -> None:
    file = make_text_recipe(validation={"num_prompts": 0})
    assert main(["train", "--config", str(file)]) == 0
    data = {f"{name}_data": Dataset.from_json(str(file.with_name(f"{name}.jsonl"))) for name in ("train", "validation")}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_lm), AutoTokenizer.from_pretrained(tiny_lm)
    recipe = dfb.load_recipe(file, {"output_dir": file.with_name("objects")})
    run = dfb.train(recipe, model=model, tokenizer=tokenizer, **data)
    assert_same(file.with_suffix(""), run.path)
    loaded, trained = run.load().state_dict(), model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in loaded.items())
    kept = run.save(file.with_name("kept"))
    assert_same(run.path, kept)
    assert not (kept / "checkpoints").exists()
    with pytest.raises(dfb.UserError, match="is there already"):
        run.save(kept)


def test_adapters_of_a_loaded_language_model_are_taken_out_again(
    make_text_recipe: MakeTextRecipe, tiny_lm: Path
) -> None:
    file = make_text_recipe(model={"tuning": "lora", "lora_rank": 2}, validation={"num_prompts": 0})
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_lm), AutoTokenizer.from_pretrained(tiny_lm)
    ids = torch.arange(6)[None] + 5
    before = model(ids).logits
    runs = [
        dfb.train(dfb.load_recipe(file, {"output_dir": file.with_name(name)}), model=model, tokenizer=tokenizer)
        for name in ("first", "second")
    ]
    assert torch.equal(model(ids).logits, before)
    assert_same(runs[0].path, runs[1].path)
    tuned = runs[1].load()
    assert not torch.equal(tuned(ids).logits, before)


def test_a_run_over_a_loaded_model_is_sampled_as_the_run_by_its_name(
    make_text_recipe: MakeTextRecipe, tiny_lm: Path
) -> None:
    """The tuned model draws what the folder of the same run by name draws, and again after it was loaded twice."""
    changes = {"learning_rate": 0.05, "max_train_steps": 3}
    file = make_text_recipe(model={"tuning": "lora", "lora_rank": 2}, validation={"num_prompts": 0}, training=changes)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_lm), AutoTokenizer.from_pretrained(tiny_lm)
    by_name = dfb.train(dfb.load_recipe(file))
    recipe = dfb.load_recipe(file, {"output_dir": file.with_name("objects")})
    run = dfb.train(recipe, model=model, tokenizer=tokenizer)
    drawn = dfb.generate(str(by_name.path), ["the "], max_new_tokens=8, temperature=0.0)["completion"]
    base = dfb.generate(str(tiny_lm), ["the "], max_new_tokens=8, temperature=0.0)["completion"]
    assert drawn != base
    for _ in range(2):
        assert dfb.generate(run, ["the "], max_new_tokens=8, temperature=0.0)["completion"] == drawn
        again = dfb.generate(model, ["the "], tokenizer=tokenizer, max_new_tokens=8, temperature=0.0)
        assert again["completion"] == base  # the caller's model is as it came
    with pytest.raises(dfb.UserError, match="a run that has tuned, by adapters, a model that was handed in"):
        dfb.judge(run, (model, tokenizer), ["the "], output_dir=str(file.with_name("judged")))
    run.load()
    assert dfb.generate(run, ["the "], max_new_tokens=8, temperature=0.0)["completion"] == drawn


def steep(logps: PairLogps, *, slope: float) -> torch.Tensor:
    """The shape of DPO's loss, written by a user."""
    assert logps.reference_chosen is not None
    assert logps.reference_rejected is not None
    chosen = logps.policy_chosen - logps.reference_chosen
    rejected = logps.policy_rejected - logps.reference_rejected
    return torch.nn.functional.softplus(-slope * (chosen - rejected))


def test_an_objective_of_ones_own(make_text_recipe: MakeTextRecipe) -> None:
    file = make_text_recipe(validation={"num_prompts": 0})
    recipe = dfb.load_recipe(file)
    run = dfb.train(recipe, objective={"name": steep, "slope": 0.1})
    theirs = dfb.train(
        dfb.load_recipe(file, {"output_dir": file.with_name("dpo")}), objective={"name": "dpo", "beta": 0.1}
    )
    own, other = ([row["loss"] for row in each.metrics] for each in (run, theirs))
    assert own == pytest.approx(other, rel=1e-5)
    written = yaml.safe_load((run.path / "recipe.yaml").read_text())["objective"]
    assert re.fullmatch(r"<.*:steep, given in Python, [0-9a-f]{12}>", written["name"])
    assert written["slope"] == 0.1
    run.report.unlink()
    again = dfb.train(recipe, objective={"name": steep, "slope": 0.1}, resume=True)
    assert [row["loss"] for row in again.metrics] == own
    with pytest.raises(dfb.UserError, match="`resume` with another objective"):
        dfb.train(recipe, objective={"name": hinge, "beta": 0.1}, resume=True)
    with pytest.raises(dfb.UserError, match="needs a value for 'slope'"):
        dfb.train(recipe, objective=steep)
    with pytest.raises(dfb.UserError, match="does not take 'beta'"):
        dfb.train(recipe, objective={"name": steep, "beta": 0.1})


class Steep:
    """The same loss as an object."""

    def __call__(self, logps: PairLogps, *, slope: float) -> torch.Tensor:
        return steep(logps, slope=slope)


@pytest.mark.parametrize("objective", [partial(steep, slope=0.1), {"name": Steep(), "slope": 0.1}])
def test_an_objective_that_is_no_plain_function(objective: Any, make_text_recipe: MakeTextRecipe) -> None:
    file = make_text_recipe(training={"max_train_steps": 2}, validation={"num_prompts": 0})
    run = dfb.train(dfb.load_recipe(file), objective=objective)
    plain = dfb.load_recipe(file, {"output_dir": file.with_name("plain")})
    named = dfb.train(plain, objective={"name": steep, "slope": 0.1})
    of_time = {"time", "seconds"}
    first, second = ([{k: row[k] for k in row.keys() - of_time} for row in each.metrics] for each in (run, named))
    assert first == second


def length(prompts: list[str], completions: list[str]) -> list[float]:
    """Longer is better."""
    return [float(len(completion)) for completion in completions]


def test_a_reward_of_ones_own(make_text_recipe: MakeTextRecipe, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(
        "def length(prompts, completions):\n    return [float(len(each)) for each in completions]\n"
    )
    rollouts = {"num_prompts": 2, "num_generations": 2, "num_ppo_epochs": 1, "max_new_tokens": 3}
    named = {**rollouts, "reward": f"function={tmp_path / 'rewards.py'}:length"}
    own = {
        "objective": {"name": "ppo"},
        "training": {"gradient_accumulation_steps": 1},
        "validation": {"num_prompts": 1},
    }
    files = [make_text_recipe(name, rollouts=reward, **own) for name, reward in (("a", named), ("b", named))]
    first = dfb.train(dfb.load_recipe(files[0]))
    second = dfb.train(dfb.load_recipe(files[1]), reward=length)
    assert_same(first.path, second.path)
    assert "length" in yaml.safe_load((second.path / "recipe.yaml").read_text())["rollouts"]["reward"]


def test_two_runs_of_another_precision_in_one_program(make_text_recipe: MakeTextRecipe) -> None:
    file = make_text_recipe(validation={"num_prompts": 0})
    for name, precision in (("full", "no"), ("half", "bf16"), ("again", "no")):
        own = {"output_dir": file.with_name(name), "training.mixed_precision": precision}
        dfb.train(dfb.load_recipe(file, own))
        # Scoring asks accelerate as well, and must leave the next run its choice.
        dfb.score(
            [Image.new("RGB", (64, 64))],
            ["a small red circle on a blue background"],
            scorers=["shapes"],
            cache_dir=None,
        )
    assert_same(file.with_name("full"), file.with_name("again"))
    assert as_trained(file.with_name("full")).keys() == as_trained(file.with_name("half")).keys()


def test_a_library_call_says_nothing(make_text_recipe: MakeTextRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = dfb.load_recipe(make_text_recipe(validation={"num_prompts": 0}))
    planned = dfb.train(recipe, dry_run=True)
    assert planned.plan[0].startswith("examples ")
    assert not planned.path.exists()
    dfb.train(recipe)
    assert capsys.readouterr() == ("", "")


def test_a_recipe_made_in_python_is_checked(tmp_path: Path) -> None:
    data = dfb.DataConfig(train="pairs.parquet")
    recipe = dfb.Recipe(
        dfb.ModelConfig("somewhere"), data, str(tmp_path), training=dfb.TrainingConfig(learning_rate=-1.0)
    )
    with pytest.raises(dfb.UserError, match=r"training.learning_rate: got -1.0"):
        dfb.train(recipe)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_data": [1, 2]}, "train_data, item 1: got 1.*name a data set"),
        ({"model": object()}, "model: of a object no family is known"),
        ({"tokenizer": object()}, "`tokenizer`: comes with a loaded model alone"),
        ({"reward": 3}, "reward: is a int"),
        ({"resume": True, "overwrite": True}, "`resume` and `overwrite` contradict each other"),
        ({"objective": "dpoo"}, "unknown objective 'dpoo'"),
    ],
)
def test_objects_that_are_none(given: dict[str, Any], message: str, make_text_recipe: MakeTextRecipe) -> None:
    with pytest.raises(dfb.UserError, match=f"(?s){message}"):
        dfb.train(dfb.load_recipe(make_text_recipe()), **given)


def test_a_recipe_of_rounds_is_refused(make_text_recipe: MakeTextRecipe) -> None:
    recipe = dfb.load_recipe(make_text_recipe(), {"rounds.num_rounds": 3})
    with pytest.raises(dfb.UserError, match="rounds: means nothing for one training run"):
        dfb.train(recipe)


def test_an_accelerator_of_another_precision_is_named(make_text_recipe: MakeTextRecipe) -> None:
    """The caller's own, which lives on: its precision cannot be changed."""
    Accelerator(cpu=True, mixed_precision="no")
    try:
        with pytest.raises(dfb.UserError, match=r"training\.mixed_precision: this program holds .* of precision no"):
            dfb.train(dfb.load_recipe(make_text_recipe(), {"training.mixed_precision": "bf16"}))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_a_run_lets_go_of_what_it_no_longer_needs(make_text_recipe: MakeTextRecipe) -> None:
    """Data, and a model that was tuned whole; under adapters the model is what the result is loaded over."""
    path = make_text_recipe(model={"family": "causal_lm", "tuning": "full"})
    recipe = dfb.load_recipe(path)
    model = AutoModelForCausalLM.from_pretrained(recipe.model.pretrained_model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.pretrained_model_name_or_path)
    data = Dataset.from_json(recipe.data.train)
    kept = [weakref.ref(model), weakref.ref(data)]
    run = dfb.train(recipe, model=model, tokenizer=tokenizer, train_data=data)
    del model, tokenizer, data
    gc.collect()
    assert [reference() for reference in kept] == [None, None]
    assert run.load() is not None


@pytest.mark.parametrize("dry_run", [True, False])
def test_caches_are_closed_where_a_run_ends_early(
    make_recipe: MakeRecipe, dry_run: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, close = [], TensorCache.close
    monkeypatch.setattr(TensorCache, "close", lambda cache: (closed.append(cache), close(cache)))
    recipe = dfb.load_recipe(make_recipe(model={"tuning": "lora"}))
    if dry_run:
        dfb.train(recipe, dry_run=True)
    else:
        monkeypatch.setattr(Trainer, "update", lambda trainer, number: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dfb.train(recipe)
    assert len(closed) == 2, "latents and text embeddings"
