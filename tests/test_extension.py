"""From outside the package, from one file each: objective, scorer, reward, rule, benchmark and family, by command and in Python."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from golden.cells import _run
from golden.inputs import write_inputs, write_recipe
from safetensors.torch import load_file

import diffusion_feedback as dfb
from diffusion_feedback.cli.main import main
from diffusion_feedback.config.sources import user_sources
from diffusion_feedback.scorers.loading import parse_spec
from diffusion_feedback.scorers.texts.loading import parse_text_spec

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
OBJECTIVE, REWARD, FAMILY = (EXAMPLES / f"own_{name}.py" for name in ("objective", "reward", "family"))
RULE = """
from diffusion_feedback import Standing

def ends(standing: Standing, *, number: int = 1) -> list[tuple[int, int]]:
    last = len(standing) - 1
    return [(place, last - place) for place in range(number) if place < last - place]
"""
BENCHMARK = """
from pathlib import Path
from diffusion_feedback import Benchmark

def captions():
    here = Path(__file__).with_name("captions.txt")
    return Benchmark(
        name="captions", title="Captions of mine", source="nobody", prompts=str(here), files={"": "captions.txt"},
        scorers=("shapes",),
    )
"""

Section = dict[str, Any]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("world"))
    (folder / "rules.py").write_text(RULE)
    (folder / "benchmarks.py").write_text(BENCHMARK)
    return folder


@pytest.fixture
def recipe(inputs: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe of three steps on the tiny pipeline, with changed sections."""

    def write(**sections: Section) -> Path:
        base: Section = {
            "model": {"pretrained_model_name_or_path": str(inputs / "sd"), "lora_rank": 2},
            "data": {
                "train": str(inputs / "train.parquet"), "cache_dir": str(tmp_path / "cache"), "resolution": 16,
            },
            "training": {"max_train_steps": 2, "train_batch_size": 4, "learning_rate": 1e-3, "checkpointing_steps": 1},
            "validation": {"num_prompts": 0},
            "output_dir": str(tmp_path / "run"),
        }  # fmt: skip
        return write_recipe(tmp_path / "recipe.yaml", base, sections)

    return write


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["step"]]


# --- an objective -------------------------------------------------------------------------------------------------------


def test_an_objective_of_ones_own_is_trained_by(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Without a margin it is dpo, bit for bit; with one its first loss is another."""
    _run("train", "--config", recipe(objective={"name": "dpo", "beta": 100.0}))
    ours = losses(tmp_path / "run")
    own = {"name": f"{OBJECTIVE}:margin_dpo", "beta": 100.0}
    _run("train", "--config", recipe(objective=own, output_dir=str(tmp_path / "own")))
    assert losses(tmp_path / "own") == ours
    _run("train", "--config", recipe(objective={**own, "margin": 1.0}, output_dir=str(tmp_path / "margin")))
    assert losses(tmp_path / "margin")[0] > ours[0] + 0.5


def test_a_row_hands_over_soft_labels(recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    soft = ["--data.soft_labels", "true", "--dry_run"]
    _run("train", "--config", recipe(objective={"name": f"{OBJECTIVE}:focal_dpo", "beta": 100.0}), *soft)
    plain = recipe(objective={"name": f"{OBJECTIVE}:margin_dpo", "beta": 100.0})
    assert main(["train", "--config", str(plain), *soft]) == 2
    assert "takes hard labels only" in capsys.readouterr().err


def test_an_objective_handed_in_is_the_one_of_its_file(recipe: Callable[..., Path], tmp_path: Path) -> None:
    name = f"{OBJECTIVE}:margin_dpo"
    _run("train", "--config", recipe(objective={"name": name, "beta": 100.0, "margin": 1.0}))
    own: dict[str, Any] = {"__name__": "own_objective"}
    exec(compile(OBJECTIVE.read_text(), str(OBJECTIVE), "exec"), own)
    objective = {"name": own["margin_dpo"], "beta": 100.0, "margin": 1.0}
    loaded = dfb.load_recipe(tmp_path / "recipe.yaml", {"output_dir": str(tmp_path / "python")})
    run = dfb.train(loaded, objective=objective)
    assert [row["loss"] for row in run.metrics if row["step"]] == losses(tmp_path / "run")


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"name": "{file}:margin_dpo"}, "needs a value for 'beta'"),
        ({"name": "{file}:margin_dpo", "beta": 1.0, "margn": 0.5}, "does not take 'margn'\n  -> did you mean 'margin'"),
        ({"name": "{file}:nothing", "beta": 1.0}, "'nothing' is not there"),
        ({"name": "{file}.missing.py:f", "beta": 1.0}, "no such file"),
        ({"name": "{mine}:mean", "beta": 1.0}, "returned Tensor of shape () for 2 examples"),
        ({"name": "{mine}:fails", "beta": 1.0}, "mine.py, line 5: no luck"),
        ({"name": "{mine}:positional", "beta": 1.0}, "is called with (logps)"),
        ({"name": "{mine}:NUMBER", "beta": 1.0}, "'NUMBER' is a int"),
        ({"name": "{broken}:f", "beta": 1.0}, "broken.py fails: ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_it_is_one_message(
    own: Section, words: str, recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "def mean(logps, *, beta):\n    return logps.policy_chosen.mean()\n"
        "def fails(logps, *, beta):\n"
        "    if beta:\n        raise RuntimeError('no luck')\n"
        "def positional(logps, beta):\n    return logps.policy_chosen\nNUMBER = 3\n"
    )
    (tmp_path / "broken.py").write_text("1 / 0\n")
    places = {"file": OBJECTIVE, "mine": tmp_path / "mine.py", "broken": tmp_path / "broken.py"}
    path = recipe(objective={**own, "name": own["name"].format(**places)})
    assert main(["train", "--config", str(path)]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_changed_source_is_not_resumed(
    recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    shutil.copy(OBJECTIVE, file)
    path = recipe(objective={"name": f"{file}:margin_dpo", "beta": 100.0})
    _run("train", "--config", path)
    (tmp_path / "run" / "README.md").unlink()  # as if it had been stopped
    _run("train", "--config", path, "--resume")
    (tmp_path / "run" / "README.md").unlink()
    file.write_text(file.read_text().replace("- margin)", "- 2 * margin)"))
    assert main(["train", "--config", str(path), "--resume"]) == 2
    assert "its file has changed since the run began" in capsys.readouterr().err
    _run("train", "--config", path, "--overwrite")


# --- a family -----------------------------------------------------------------------------------------------------------


def test_a_family_of_ones_own_is_trained_and_drawn_from(
    recipe: Callable[..., Path], inputs: Path, tmp_path: Path
) -> None:
    """The tiny text encoder has two layers: without one of them embeddings, losses and images are others."""
    file = tmp_path / "family.py"
    shutil.copy(FAMILY, file)
    objective = {"name": "dpo", "beta": 100.0}
    _run("train", "--config", recipe(objective=objective))
    own = {"family": f"{file}:clip_skip"}
    _run("train", "--config", recipe(objective=objective, model=own, output_dir=str(tmp_path / "own")))
    weights = load_file(tmp_path / "own" / "pytorch_lora_weights.safetensors")
    assert any(value.abs().max() > 0 for value in weights.values())
    assert losses(tmp_path / "own")[1:] != losses(tmp_path / "run")[1:]
    caches = set((tmp_path / "cache" / "text").iterdir())
    file.write_text(
        file.read_text().replace('{"encoder_hidden_states": hidden}', '{"encoder_hidden_states": hidden * 2}')
    )
    _run("train", "--config", recipe(objective=objective, model=own, output_dir=str(tmp_path / "changed")))
    assert set((tmp_path / "cache" / "text").iterdir()) > caches  # what the old code encoded is not taken for the new
    drawn = ["--num_inference_steps", "2", "--height", "16", "--width", "16", "--seeds", "0"]
    argv = ["generate", inputs / "sd", "--prompts", inputs / "prompts.txt", *drawn]
    _run(*argv, "--family", f"{file}:clip_skip", "--output_dir", tmp_path / "skipped")
    _run(*argv, "--output_dir", tmp_path / "whole")
    images = [next((tmp_path / name).rglob("*.png")).read_bytes() for name in ("skipped", "whole")]
    assert images[0] != images[1]


def test_a_family_of_ones_own_in_python(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """The same weights as by the command; the result is drawn from by the family that its recipe names."""
    own: Section = {"model": {"family": f"{FAMILY}:clip_skip"}, "objective": {"name": "dpo", "beta": 100.0}}
    _run("train", "--config", recipe(**own))
    run = dfb.train(dfb.load_recipe(recipe(**own, output_dir=str(tmp_path / "python"))))
    weights = [load_file(folder / "pytorch_lora_weights.safetensors") for folder in (tmp_path / "run", run.path)]
    assert weights[0].keys() == weights[1].keys()
    assert all(bool((weights[0][key] == weights[1][key]).all()) for key in weights[0])
    assert len(dfb.generate(run, ["a red circle"], num_inference_steps=2, height=16, width=16)) == 1


def test_what_is_no_family_is_refused(recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(objective={"name": "dpo", "beta": 100.0}, model={"family": f"{FAMILY}:load"})
    assert main(["train", "--config", str(path)]) == 2
    assert "give a row: Family(load)" in capsys.readouterr().err


# --- scorers, rewards, rules, benchmarks --------------------------------------------------------------------------------


def test_an_image_scorer_and_a_rule_of_ones_own(inputs: Path, tmp_path: Path) -> None:
    scorer = ["--scorer", f"function={REWARD}:brightness"]
    _run("score", inputs / "images", *scorer, "--output", tmp_path / "scores.parquet", "--cache_dir", tmp_path)
    scores = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert len(scores) == 16
    assert {row["scorer"] for row in scores} == {"brightness"}
    assert all(0 < row["score"] < 1 for row in scores)
    labelled = [
        "label",
        inputs / "images",
        "--scores",
        tmp_path / "scores.parquet",
        "--output",
        tmp_path / "pairs.parquet",
    ]
    _run(*labelled, "--rule", f"{inputs / 'rules.py'}:ends,number=1")
    pairs = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert len(pairs) == len({pair["caption"] for pair in pairs})
    assert len(pairs) == 4


def test_scores_and_labels_in_python(inputs: Path, tmp_path: Path) -> None:
    rows = dfb.score(str(inputs / "images"), scorers=f"function={REWARD}:brightness", cache_dir=str(tmp_path))
    own: dict[str, Any] = {}
    exec(REWARD.read_text(), own)
    again = dfb.score(str(inputs / "images"), scorers=[own["brightness"]], cache_dir=str(tmp_path))
    assert rows["score"] == again["score"]
    exec(RULE, own)
    pairs = dfb.label(str(inputs / "images"), scorers=[own["brightness"]], rule=own["ends"], cache_dir=str(tmp_path))
    assert len(pairs) == len(set(pairs["caption"]))


def test_a_changed_scorer_hits_no_stale_cache(inputs: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def one(images, prompts):\n    return [1.0] * len(images)\n")
    argv = ["score", inputs / "images", "--scorer", f"function={file}:one", "--cache_dir", tmp_path / "cache"]
    for value in (1.0, 2.0):
        _run(*argv, "--output", tmp_path / f"{value}.parquet")
        assert set(pq.read_table(tmp_path / f"{value}.parquet")["score"].to_pylist()) == {value}
        file.write_text(file.read_text().replace("1.0", "2.0"))


def completions_of(folder: Path, name: str, text: str) -> Path:
    """A file of completions, ``text`` for each of three prompts."""
    common = {"completion": text, "seed": 0, "sample": 0, "is_finished": True, "token_ids": [1], "settings": {}}
    rows = [
        {"prompt_index": place, "prompt": prompt, "model_hash": name, **common} for place, prompt in enumerate("abc")
    ]
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_text_reward_of_ones_own(inputs: Path, tmp_path: Path) -> None:
    files = [completions_of(tmp_path, name, text) for name, text in (("short", "short"), ("long", "a long answer"))]
    judge = ["--judge", f"function={REWARD}:brevity", "--output_dir", tmp_path / "judged"]
    _run("judge", *files, *judge)
    assert '"win_rate": 1.0' in (tmp_path / "judged" / "results.json").read_text()


@pytest.mark.parametrize("form", ["file", "alias", "package", "module"])
def test_a_scorer_is_named_as_all_else_is(
    form: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without "function=": a file or a module, a colon and the function, on the command line and in Python."""
    (tmp_path / "mine").mkdir()
    shutil.copy(REWARD, tmp_path / "mine" / "rewards.py")
    monkeypatch.syspath_prepend(tmp_path if form == "package" else tmp_path / "mine")
    places = {"file": REWARD, "alias": f"bright:{REWARD}", "package": "mine.rewards", "module": "rewards"}
    spec = f"{places[form]}:brightness"
    expected = dfb.score(str(inputs / "images"), scorers=f"function={REWARD}:brightness", cache_dir=None)
    rows = dfb.score(str(inputs / "images"), scorers=spec, cache_dir=None)
    assert rows["score"] == expected["score"]
    assert set(rows["scorer"]) == {"bright" if form == "alias" else "brightness"}
    _run("score", inputs / "images", "--scorer", spec, "--output", tmp_path / "s.parquet", "--cache_dir", tmp_path)
    assert pq.read_table(tmp_path / "s.parquet")["score"].to_pylist() == expected["score"]


def test_a_judge_is_named_as_all_else_is(inputs: Path, tmp_path: Path) -> None:
    files = [completions_of(tmp_path, name, text) for name, text in (("short", "short"), ("long", "a long answer"))]
    _run("judge", *files, "--judge", f"{REWARD}:brevity", "--output_dir", tmp_path / "judged")
    assert '"win_rate": 1.0' in (tmp_path / "judged" / "results.json").read_text()
    assert dfb.judge(*files, judges=f"{REWARD}:brevity").win_rates[f"{REWARD}:brevity"].win_rate == 1.0
    assert parse_text_spec("diffusion_feedback.shapes.captions:reward").name == "function"
    with pytest.raises(dfb.UserError, match="unknown kind of judge 'nobody:here'"):
        parse_text_spec("nobody:here")


@pytest.mark.parametrize("key", ["rollouts.reward", "rounds.scorer", "rounds.labels_from"])
def test_the_code_of_a_recipe_s_judge_is_known_however_it_is_named(key: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def own(prompts, completions):\n    return [1.0] * len(prompts)\n")
    section, _, name = key.partition(".")
    plain, named = ({section: {name: f"{form}{tmp_path / 'own.py'}:own,power=2"}} for form in ("", "function="))
    assert user_sources(plain) == user_sources(named) != {}
    assert user_sources({section: {name: "v2.1:pickscore"}}) == {}


@pytest.mark.parametrize("spec", ["v2.1:pickscore", "mine:hpsv2=a.pt", "os:pickscore", "hpsv2=a:b.py,version=v2.1"])
def test_an_alias_is_no_module(spec: str) -> None:
    assert parse_spec(spec).name in ("pickscore", "hpsv2")


def test_a_benchmark_of_ones_own(inputs: Path, tmp_path: Path) -> None:
    argv = ["benchmark", f"{inputs / 'benchmarks.py'}:captions", "--model", inputs / "sd", "--num_inference_steps", "2"]
    argv += ["--height", "32", "--width", "32", "--scorer", f"function={REWARD}:brightness", "--cache_dir", tmp_path]
    _run(*argv, "--output_dir", tmp_path / "first")
    _run(*argv, "--output_dir", tmp_path / "second", "--baseline", tmp_path / "first")
    results = json.loads((tmp_path / "second" / "results.json").read_text())
    assert results["benchmark"] == f"{inputs / 'benchmarks.py'}:captions"
    assert "brightness" in results["scorers"]
    _run("report", tmp_path / "first", tmp_path / "second", "--output", tmp_path / "report.html")


def test_a_benchmark_of_ones_own_in_python(inputs: Path, tmp_path: Path) -> None:
    """A function of the user's gives the means of the command, to the last digit."""
    file = inputs / "benchmarks.py"
    argv = ["benchmark", f"{file}:captions", "--model", inputs / "sd", "--num_inference_steps", "2", "--height", "32"]
    argv += ["--width", "32", "--scorer", f"function={REWARD}:brightness", "--cache_dir", tmp_path]
    _run(*argv, "--output_dir", tmp_path / "command")
    own: dict[str, Any] = {"__file__": str(file)}
    exec(BENCHMARK, own)
    exec(REWARD.read_text(), own)
    settings: Section = {"num_inference_steps": 2, "height": 32, "width": 32, "cache_dir": str(tmp_path)}
    result = dfb.benchmark(own["captions"], model=str(inputs / "sd"), scorers=[own["brightness"]], **settings)
    command = json.loads((tmp_path / "command" / "results.json").read_text())["scorers"]["brightness"]
    assert result.metrics["brightness"]["overall"] == command["overall"]
    assert result.report.is_file()
