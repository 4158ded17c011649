"""``dfb.judge`` and ``dfb.rounds`` in Python: models, judges and prompts as objects give what names give."""

from __future__ import annotations

import dataclasses
import gc
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_text
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import diffusion_feedback as dfb
from diffusion_feedback.workflows import judging

PROMPTS = ["a red circle", "the cat sat", "hello there"]
SHORT = {"max_new_tokens": 4, "num_samples": 2}


def by_length(prompts: list[Any], completions: list[Any]) -> list[float]:
    """Longer is better."""
    return [float(len(completion)) for completion in completions]


class FirstIsBetter:
    """A judge of pairs that prefers whatever is shown first."""

    recipe_id = "first.1"

    def judge(self, prompts: Any, firsts: Any, seconds: Any) -> list[float]:
        return [0.9] * len(prompts)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [tiny_text.save_tiny_lm(folder / name, seed=seed) for seed, name in enumerate("ab")]


def test_objects_are_judged_as_names_are(models: list[Path], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    (tmp_path / "rewards.py").write_text(
        "def by_length(prompts, completions):\n    return [float(len(c)) for c in completions]\n"
    )
    a, b = models
    spec = f"function={tmp_path / 'rewards.py'}:by_length"
    where = {"output_dir": tmp_path / "out", "device": torch.device("cpu")}
    named = dfb.judge(a, str(b), tmp_path / "prompts.txt", judges=spec, **where, **SHORT)
    loaded = AutoModelForCausalLM.from_pretrained(a), AutoTokenizer.from_pretrained(a)
    given = dfb.judge(
        loaded, SimpleNamespace(path=b), PROMPTS, judges=[by_length, FirstIsBetter()], names=("a", "b"), **SHORT
    )
    assert named.win_rates[spec] == given.win_rates["by_length"]
    assert named.scores[spec] == given.scores["by_length"]
    assert named.judged.completions[0][0].token_ids == given.judged.completions[0][0].token_ids
    said = [[len(record.completion) for record in side] for side in given.judged.completions]
    wins = [0.5 if x == y else float(x > y) for x, y in zip(*said, strict=True)]
    assert given.win_rates["by_length"].win_rate == pytest.approx(sum(wins) / len(wins))
    # One that contradicts itself when the order is turned round has no say.
    assert (given.win_rates["FirstIsBetter"].win_rate, given.win_rates["FirstIsBetter"].ties) == (0.5, len(wins))
    assert "FirstIsBetter" not in given.scores
    assert named.report == tmp_path / "out" / "report.html"
    folder = given.folder
    assert given.report.is_file()
    assert "a against b by by_length: win rate" in str(given)
    assert capsys.readouterr().out == ""
    del given
    gc.collect()
    assert not folder.exists(), "a folder that nobody named goes with its result"


def test_what_is_measured_of_each_model(models: list[Path], tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "completion": " on a mat"} for prompt in PROMPTS]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = dfb.judge(*models, PROMPTS, texts=tmp_path / "texts.jsonl", reference=models[1], **SHORT)
    assert result.win_rates == {}
    assert result.perplexities["a"].tokens == result.perplexities["b"].tokens > 0
    assert result.divergences["b"].log_ratio == 0.0 < result.divergences["a"].kl.value


def test_a_judge_is_loaded_once(models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []

    def load(source: str, *where: Any) -> Any:
        loads.append(source)
        return SimpleNamespace(recipe_id="one.1", score=lambda *texts: [1.0] * len(texts[1]))

    monkeypatch.setattr("diffusion_feedback.scorers.texts.reward_model.load", load)
    result = dfb.judge(*models, PROMPTS, judges="reward_model=somewhere", **SHORT)
    assert (loads, result.win_rates["reward_model=somewhere"].win_rate) == (["somewhere"], 0.5)


def test_judges_make_room_for_what_is_measured_of_the_models(
    models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loaded:
        recipe_id = "one.1"

        def score(self, *texts: Any) -> list[float]:
            return [1.0] * len(texts[1])

    def load(*where: Any) -> Loaded:
        judge = Loaded()
        loaded.append(weakref.ref(judge))
        return judge

    def measure(*given: Any) -> Any:
        gc.collect()
        alive.append(loaded[0]() is not None)
        return {}, []

    loaded: list[Any] = []
    alive: list[bool] = []
    monkeypatch.setattr("diffusion_feedback.scorers.texts.reward_model.load", load)
    monkeypatch.setattr(judging, "measure_fluency", measure)
    dfb.judge(*models, PROMPTS, judges="reward_model=somewhere", **SHORT)
    assert alive == [False]


def test_a_call_that_fails_leaves_no_folder(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for a in ("~nobody-of-this-name/model", models[0] / "absent"):
        with pytest.raises(dfb.UserError):
            dfb.judge(a, models[1], PROMPTS, judges=by_length, **SHORT)
    with pytest.raises(dfb.UserError):
        dfb.benchmark("shapes", images=tmp_path / "absent")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "nothing to measure"),
        ({"judges": by_length, "seed": -1}, "`seed`: got -1"),
        ({"judges": by_length, "tie_margin": -1}, "`tie_margin`: got -1"),
        ({"judges": by_length, "dtype": "int8"}, "`dtype`: got 'int8'"),
        ({"judges": by_length, "temprature": 1}, "`temprature`: is no setting.*did you mean"),
        ({"judges": [by_length, by_length]}, "the judge 'by_length' is given twice"),
        ({"judges": by_length, "prompts": None}, "`prompts`: is not given"),
        ({"judges": by_length, "names": ["x"]}, r"`names`: got \['x'\]"),
        ({"judges": by_length, "names": "ab"}, "`names`: got 'ab'"),
        ({"judges": by_length, "a": ("model alone",)}, "a tuple, which is no path"),
        ({"judges": "nobody=x"}, "unknown kind of judge 'nobody'"),
        ({"reference": "b", "top_k": 3}, "`reference`: no divergence"),
        ({"judges": by_length, "a": object()}, "comes without its tokenizer"),
    ],
)
def test_mistakes_are_told_by_parameters(changes: dict[str, Any], message: str, models: list[Path]) -> None:
    call = {"a": models[0], "b": models[1], "prompts": PROMPTS, "max_new_tokens": 2, **changes}
    with pytest.raises(dfb.UserError, match=f"(?s){message}") as error:
        dfb.judge(**call)
    assert "--" not in str(error.value)


@pytest.mark.parametrize(
    "given", [{"temperature": 0.5}, {"num_samples": 2}, {"seed": 1}, {"prompts": PROMPTS}, {"as_turns": True}]
)
def test_completions_that_are_there_are_not_drawn(given: dict[str, Any], models: list[Path], tmp_path: Path) -> None:
    """What says how to draw means something while one of the two is a model, and nothing for two files."""
    files = [tmp_path / name for name in "ab"]
    for model, folder in zip(models, files, strict=True):
        dfb.generate(model, PROMPTS[:1], output_dir=folder, max_new_tokens=2)
    named = next(iter(given))
    with pytest.raises(dfb.UserError, match=f"`{named}`: means nothing for completions that are there"):
        dfb.judge(*files, judges=by_length, **given)
    result = dfb.judge(*files, judges=by_length, batch_size=3)
    assert result.win_rates["by_length"].num == 1
    dfb.judge(models[0], files[1], PROMPTS[:1], judges=by_length, max_new_tokens=2, seed=0)


def _not_at_once(read_bytes: Any) -> Any:
    """A model is larger than memory may be: its files are hashed part by part."""

    def read(path: Path) -> bytes:
        assert path.suffix != ".safetensors", f"{path} is read whole"
        return read_bytes(path)

    return read


def test_rounds_are_a_function(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "rewards.py").write_text(
        "def letters(prompts, completions):\n    return [len(set(c)) for c in completions]\n"
    )
    (tmp_path / "train.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    (tmp_path / "heldout.txt").write_text("good better\non a blue\n")
    (tmp_path / "recipe.yaml").write_text(
        "model: {family: causal_lm, lora_rank: 2}\nobjective: {name: dpo, beta: 0.1}\n"
    )
    recipe = dfb.load_recipe(
        tmp_path / "recipe.yaml",
        {
            "model.pretrained_model_name_or_path": str(models[0]),
            "data.train": str(tmp_path / "train.txt"),
            "output_dir": str(tmp_path / "run"),
            "training.max_train_steps": 1,
            "training.train_batch_size": 1,
            "validation.num_prompts": 0,
            "rollouts.reward": f"function={tmp_path / 'rewards.py'}:letters",
            "rollouts.max_new_tokens": 4,
            "rounds.num_rounds": 1,
            "rounds.num_samples": 3,
            "rounds.heldout_prompts": str(tmp_path / "heldout.txt"),
        },
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = dataclasses.replace(recipe, output_dir="~/run")  # as one that is made in Python may have it
    with pytest.raises(dfb.UserError, match="rounds.num_samples: got 1"):
        dfb.rounds(dataclasses.replace(recipe, rounds=dataclasses.replace(recipe.rounds, num_samples=1)))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", _not_at_once(Path.read_bytes))
        result = dfb.rounds(recipe)
    assert result.folder == tmp_path / "run"
    assert [each.to_json() for each in result.metrics] == json.loads((tmp_path / "run/rounds.json").read_text())
    assert result.models == [str(models[0]), str(tmp_path / "run/round-1/model")]
    AutoModelForCausalLM.from_pretrained(result.models[-1])
    assert result.report.is_file()
    assert capsys.readouterr().out == ""
