"""``dfb rounds`` on tiny models: what each round trains on, what it is compared with, and kills at every stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import forks
import killing
import pytest
import tiny_text
import torch
import yaml
from accelerate import PartialState
from transformers import AutoModelForCausalLM

from diffusion_feedback.cli.main import main
from diffusion_feedback.config.recipe import Recipe
from diffusion_feedback.data.scores import read_scores
from diffusion_feedback.data.token_index import TokenIndex
from diffusion_feedback.generation.completions import load_completions
from diffusion_feedback.workflows.rounds import schedule as schedules
from diffusion_feedback.workflows.rounds.schedule import PromptSchedule, Stage, derived_seed
from diffusion_feedback.workflows.training import text_examples
from diffusion_feedback.workflows.training.run import run_training

REWARDS = """
def letters(prompts, completions):
    return [len(set(c)) - 0.1 * len(c) for c in completions]
def length(prompts, completions):
    return [float(len(c)) for c in completions]
"""
WORDS = ["a red circle", "the cat sat", "hello there", "good better", "Question:", "a mat and", "worse", "on a blue"]
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.save_tiny_lm(tmp_path_factory.mktemp("lm"))


@pytest.fixture
def write(tmp_path: Path, model: Path) -> Write:
    """Write a recipe of two short rounds, with changes such as ``rounds={"rule": "adjacent"}``."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "train.txt").write_text("\n".join(WORDS[:5]))
    (tmp_path / "heldout.txt").write_text("\n".join(WORDS[5:]))

    def make(name: str = "run", **changes: dict[str, Any]) -> Path:
        recipe: dict[str, Any] = {
            "model": {"pretrained_model_name_or_path": str(model), "family": "causal_lm", "lora_rank": 2},
            "data": {"train": str(tmp_path / "train.txt")},
            "output_dir": str(tmp_path / name),
            "objective": {"name": "dpo", "beta": 0.1},
            "training": {"max_train_steps": 3, "train_batch_size": 2, "learning_rate": 1e-2, "checkpointing_steps": 2},
            "validation": {"num_prompts": 0},
            "rollouts": {
                "reward": f"function={tmp_path / 'rewards.py'}:letters", "max_new_tokens": 4, "batch_size": 8,
            },
            "rounds": {
                "num_rounds": 2,
                "num_prompts": 4,
                "num_samples": 3,
                "heldout_prompts": str(tmp_path / "heldout.txt"),
                "num_heldout_samples": 2,
            },
        }  # fmt: skip
        for section, values in changes.items():
            recipe[section] = values if section == "objective" else {**recipe[section], **values}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return make


def start(path: Path, *more: str) -> int:
    return main(["rounds", "--config", str(path), *more])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def contents(folder: Path) -> dict[str, bytes]:
    """All that rounds give out, but for what tells of the process and its time alone; peft writes its sets in any order."""
    skipped = ("checkpoints", "environment.json", "README.md")
    files = [path for path in folder.rglob("*") if path.is_file() and not set(path.parts) & set(skipped)]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    for name in found:
        if name.endswith("adapter_config.json"):
            told = json.loads(found[name])
            found[name] = json.dumps({**told, "target_modules": sorted(told["target_modules"])}).encode()
        if name.endswith("run/metrics.jsonl"):
            rows = [{k: v for k, v in row.items() if k not in ("time", "seconds")} for row in lines(folder / name)]
            found[name] = json.dumps(rows).encode()
    return {
        name: value for name, value in found.items() if not name.endswith("run/report.html")
    }  # it says how long it took


def recipes_of(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes of all training runs to come."""
    seen: list[Recipe] = []

    def keep(recipe: Recipe, **how: Any) -> Any:
        seen.append(recipe)
        return run_training(recipe, **how)

    monkeypatch.setattr(schedules, "run_training", keep)
    return seen


def test_a_round_learns_from_its_own_samples(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    seen, out = recipes_of(monkeypatch), tmp_path / "run"
    assert start(write()) == 0
    for number in (1, 2):
        place = out / f"round-{number}"
        drawn = {(r.prompt, r.completion): r for r in load_completions(place / "samples")}
        scores = {(r.prompt, r.sample): r.score for r in read_scores(place / "scores.parquet")}
        assert len({prompt for prompt, _ in drawn}) == 4
        pairs = lines(place / "pairs.jsonl")
        assert pairs
        for pair in pairs:
            best, worst = (drawn[pair["prompt"], pair[side]] for side in ("chosen", "rejected"))
            told = [
                scores[r.prompt, f"prompt {r.prompt_index}, sample {r.sample}"]
                for r in drawn.values()
                if r.prompt == pair["prompt"] and r.completion.strip()
            ]
            for record, wanted in ((best, max(told)), (worst, min(told))):
                text = record.completion
                assert wanted == pytest.approx(len(set(text)) - 0.1 * len(text))
            assert (pair["score_chosen"], pair["score_rejected"]) == (max(told), min(told))
    # The second round starts from the first one's model, and its reference is where everything began.
    first, second = seen
    assert first.model.pretrained_model_name_or_path == second.model.reference_model_name_or_path
    assert first.model.reference_model_name_or_path is None
    assert second.model.pretrained_model_name_or_path == str(out / "round-1/model")
    assert first.data.train == str(out / "round-1/pairs.jsonl")
    hashes = {
        record.model_hash for n in (0, 1, 2) for record in load_completions(out / f"round-{n}/evaluation/samples")
    }
    assert len(hashes) == 3
    assert load_completions(out / "round-2/samples")[0].model_hash in hashes
    assert "round 2: reward" in capsys.readouterr().out


def test_a_round_trains_on_the_tokens_that_were_drawn(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexes: list[TokenIndex] = []

    def keep(*args: Any, **how: Any) -> TokenIndex:
        indexes.append(TokenIndex(*args, **how))
        return indexes[-1]

    monkeypatch.setattr(text_examples, "TokenIndex", keep)
    assert start(write(rounds={"rule": "all_pairs"})) == 0
    tokenizer, num_retokenised, ends = tiny_text.tokenizer(), 0, set()
    stops = tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"])  # of the saved generation_config.json
    for number, index in enumerate(indexes, start=1):
        place = tmp_path / f"run/round-{number}"
        drawn = {(*tokenizer(r.prompt).input_ids, *r.token_ids): r for r in load_completions(place / "samples")}
        for example in index.examples:
            for side in (example.chosen, example.rejected):
                assert side is not None
                record = drawn[tuple(side.ids.tolist())]
                assert side.ids[side.scored].tolist() == list(record.token_ids)
                assert (record.token_ids[-1] in stops) == record.is_finished
                ends.add(record.is_finished)
                again = tokenizer(record.prompt + record.completion).input_ids
                num_retokenised += again[: len(side.ids)] != side.ids.tolist()[: len(again)]
        rows = {(row["prompt"], row["chosen"]): row["chosen_token_ids"] for row in lines(place / "pairs.jsonl")}
        assert all(tokenizer.decode(ids, skip_special_tokens=True) == text for (_, text), ids in rows.items())
    assert len(indexes) == 2
    assert num_retokenised > 10, "where texts read back as the same tokens, this shows nothing"
    assert False in ends


def test_what_a_round_measures(write: Write, tmp_path: Path, model: Path) -> None:
    out = tmp_path / "run"
    assert start(write()) == 0
    figures = json.loads((out / "rounds.json").read_text())
    assert [figure["round"] for figure in figures] == [0, 1, 2]
    assert figures[0]["kl"]["value"] == figures[0]["kl_log_ratio"]["value"] == 0.0
    assert figures[0]["against_initial"] is None
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    for number in (1, 2):
        records = load_completions(out / f"round-{number}/evaluation/samples")
        scores = [len(set(r.completion)) - 0.1 * len(r.completion) for r in records]
        old = [
            len(set(r.completion)) - 0.1 * len(r.completion)
            for r in load_completions(out / "round-0/evaluation/samples")
        ]
        assert figures[number]["reward"]["value"] == pytest.approx(sum(scores) / len(scores))
        wins = sum(0.5 if abs(a - b) < 1e-12 else float(a > b) for a, b in zip(scores, old, strict=True))
        assert figures[number]["against_initial"]["win_rate"] == pytest.approx(wins / len(scores))
        tuned = AutoModelForCausalLM.from_pretrained(out / f"round-{number}/model", dtype=torch.float64)
        ratios = []
        for record in records:
            prompt = tiny_text.tokenizer()(record.prompt).input_ids
            ids = torch.tensor([[*prompt, *record.token_ids]])
            with torch.no_grad():
                p, q = (torch.log_softmax(m(ids).logits[0, len(prompt) - 1 : -1], -1) for m in (tuned, base))
            index = torch.tensor(record.token_ids)[:, None]
            ratios.append(float((p.gather(1, index) - q.gather(1, index)).sum()))
        assert figures[number]["kl_log_ratio"]["value"] == pytest.approx(sum(ratios) / len(ratios), abs=1e-4)
        assert figures[number]["kl"]["value"] > 0
    page = (out / "report.html").read_text("utf-8")
    assert "Reward against divergence" in page
    assert "<svg" in page


def test_references_of_a_round(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = recipes_of(monkeypatch)
    assert start(write("previous", rounds={"reference": "previous"})) == 0
    assert [recipe.model.reference_model_name_or_path for recipe in seen] == [None, None]
    seen.clear()
    changes = {"reference": "ema", "reference_decay": 0.75, "start_from": "initial"}
    assert start(write("ema", rounds=changes)) == 0
    average = tmp_path / "ema/round-2/reference"
    assert seen[1].model.reference_model_name_or_path == str(average)
    assert seen[0].model.pretrained_model_name_or_path == seen[1].model.pretrained_model_name_or_path
    paths = (seen[0].model.pretrained_model_name_or_path, str(tmp_path / "ema/round-1/model"), str(average))
    old, new, found = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in paths)
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    assert changed
    for name in old:
        assert torch.allclose(found[name], 0.75 * old[name] + 0.25 * new[name], atol=1e-6)


def test_every_prompt_has_its_turn() -> None:
    schedule = PromptSchedule(WORDS[:5], 2, derived_seed(0, "prompts"))
    taken = [prompt for number in range(1, 6) for prompt in schedule.of_round(number)]
    assert sorted(taken[:5]) == sorted(WORDS[:5])
    assert sorted(taken[5:]) == sorted(WORDS[:5])
    assert taken[:5] != taken[5:]


def test_a_reward_model_that_is_trained_anew(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = recipes_of(monkeypatch)
    reward = tiny_text.save_tiny_reward_model(tmp_path / "reward")
    own = {
        "model": {"pretrained_model_name_or_path": str(reward), "family": "reward_model", "tuning": "full"},
        "data": {"train": "unused"},
        "output_dir": "unused",
        "objective": {"name": "bradley_terry"},
        "training": {"max_train_steps": 2, "train_batch_size": 2, "learning_rate": 1e-3},
    }
    (tmp_path / "reward.yaml").write_text(yaml.safe_dump(own))
    labels = f"function={tmp_path / 'rewards.py'}:length"
    rounds = {"reward_recipe": str(tmp_path / "reward.yaml"), "labels_from": labels, "rule": "all_pairs"}
    assert start(write(rounds=rounds, rollouts={"reward": ""})) == 0
    out = tmp_path / "run"
    assert [recipe.model.family for recipe in seen] == ["reward_model", "causal_lm"] * 2
    for number in (1, 2):
        labelled = lines(out / f"round-{number}/labelled-pairs.jsonl")
        assert all(len(pair["chosen"]) > len(pair["rejected"]) for pair in labelled)
        judged = read_scores(out / f"round-{number}/scores.parquet")
        assert judged[0].recipe_id.startswith("reward_model.1/")
    joined = lines(out / "round-2/reward-pairs.jsonl")
    assert joined == [pair for n in (1, 2) for pair in lines(out / f"round-{n}/labelled-pairs.jsonl")]
    assert seen[2].data.train == str(out / "round-2/reward-pairs.jsonl")
    # Held-out samples are judged by who labels: a model that fools its own judge is found out.
    assert read_scores(out / "round-2/evaluation/scores.parquet")[0].recipe_id.startswith("function.1/")


def test_killed_at_every_stage_it_ends_in_the_same_bytes(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(write("run")) == 0
    whole = contents(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "kept")
    run, killed = Stage.run, 0
    for stage in range(100):
        done = 0

        def dies(self: Stage, state: PartialState, stage: int = stage) -> Path:
            nonlocal done
            if not self.output.exists():
                done += 1
                # Every run gets one stage further, and dies in the middle of what it does before that.
                if done > 2 or (done == 2 and stage % 2):
                    raise KeyboardInterrupt
            return run(self, state)

        monkeypatch.setattr(Stage, "run", dies)
        code = start(write("run"))
        if code == 0:
            break
        assert code == 130
        killed += 1
        (tmp_path / "run/round-1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run/round-1/.scores.parquet.123.tmp").write_bytes(b"left behind by a killed writer")
    assert killed > 5
    assert contents(tmp_path / "run") == whole


@pytest.mark.slow
def test_killed_for_good_it_ends_in_the_same_bytes(write: Write, tmp_path: Path) -> None:
    assert start(write("run")) == 0
    whole = contents(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "kept")
    recipe, first = write("run"), tmp_path / "run/round-0/evaluation"
    begun = first.exists
    assert killing.kill_often(["rounds", "--config", str(recipe)], kills=3, begun=begun, span=0.15, seed="rounds") >= 1
    assert start(recipe) == 0
    assert contents(tmp_path / "run") == whole


@pytest.mark.slow
def test_two_processes_equal_one(write: Write, tmp_path: Path) -> None:
    assert start(write("one", training={"max_train_steps": 3, "train_batch_size": 4, "learning_rate": 1e-2})) == 0
    forks.run_together(["rounds", "--config", str(write("two"))], tmp_path)
    one, two = (json.loads((tmp_path / name / "rounds.json").read_text()) for name in ("one", "two"))
    assert [f["reward"] for f in two] == [f["reward"] for f in one]
    for first, second in zip(one, two, strict=True):
        assert second["kl"]["value"] == pytest.approx(first["kl"]["value"], abs=1e-4)


def test_more_rounds_go_on_where_the_others_ended(write: Write, tmp_path: Path, capsys: Any) -> None:
    assert start(write(rounds={"num_rounds": 1})) == 0
    before = contents(tmp_path / "run")
    assert start(write()) == 0
    after = contents(tmp_path / "run")
    changing = {"recipe.yaml", "rounds.json", "report.html", "README.md"}
    assert {name: after[name] for name in before if name not in changing} == {
        name: value for name, value in before.items() if name not in changing
    }
    assert (tmp_path / "run/round-2/summary.json").exists()
    capsys.readouterr()
    assert start(write(rounds={"num_rounds": 1})) == 2
    assert "rounds.num_rounds: got 1, and " in capsys.readouterr().err
    assert start(write(objective={"name": "dpo", "beta": 0.2})) == 2
    assert "holds rounds with objective.beta = 0.1, the recipe has 0.2" in capsys.readouterr().err
    (tmp_path / "train.txt").write_text("other\nprompts\n")
    assert main(["rounds", "--config", str(tmp_path / "run.yaml"), "--objective.beta", "0.1"]) == 2
    assert "holds rounds of another content of the prompts" in capsys.readouterr().err


Change = Mapping[str, dict[str, Any]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": {"num_rounds": 0}}, "rounds.num_rounds: got 0"),
        ({"rounds": {"num_samples": 1}}, "rounds.num_samples: got 1"),
        ({"rounds": {"rule": "best"}}, "unknown rule 'best'"),
        ({"rounds": {"rule": "random,margin"}}, "'margin' is no setting"),
        ({"rounds": {"rule": "random,margin=["}}, "rounds.rule random,margin=[: '[' is no value"),
        ({"rounds": {"heldout_prompts": ""}}, "rounds.heldout_prompts: is not given"),
        ({"rounds": {"heldout_prompts": "{train}"}}, "5 of its 5 prompts are trained on"),
        ({"rounds": {"scorer": "shapes"}}, "texts are judged by rollouts.reward"),
        ({"rounds": {"labels_from": "function=a:b"}}, "none is trained"),
        ({"rounds": {"reward_recipe": "none.yaml"}}, "the rounds train the judge that they use"),
        ({"rounds": {"reference_decay": 0.3}}, "means nothing with reference 'initial'"),
        ({"rollouts": {"reward": ""}}, "rollouts.reward: nobody judges"),
        ({"rollouts": {"reward": "function=nowhere:f"}}, "no module 'nowhere'"),
        ({"rollouts": {"temperature": 0.0}}, "rollouts.temperature: got 0.0"),
        ({"rounds": {"heldout_judge": "nobody"}}, "unknown kind of judge 'nobody'"),
        ({"objective": {"name": "sft"}}, "'sft' does not learn from the pairs"),
        ({"model": {"reference_model_name_or_path": "x"}}, "every round has its own"),
        (
            {"objective": {"name": "simpo", "beta": 2.0, "gamma": 1.0}, "rounds": {"reference": "previous"}},
            "has no reference",
        ),
    ],
)
def test_bad_recipes_are_refused(write: Write, tmp_path: Path, changes: Change, message: str, capsys: Any) -> None:
    told = json.loads(json.dumps(changes).replace("{train}", str(tmp_path / "train.txt")))
    assert start(write(**told)) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_of_rounds_is_not_one_of_training(write: Write, capsys: Any) -> None:
    assert main(["train", "--config", str(write())]) == 2
    assert "rounds: means nothing for one training run" in capsys.readouterr().err


# --- images ----------------------------------------------------------------------------------------------------------


def test_rounds_of_images(tmp_path: Path, tiny_pipelines: dict[str, Path], capsys: Any) -> None:
    import tiny_clip

    scorer = tiny_clip.save_clip(tmp_path / "clip")
    (tmp_path / "train.txt").write_text("a cat\na dog\na tree\n")
    (tmp_path / "heldout.txt").write_text(f"a bird\na house\na boat{' and a boat' * 40}\n")
    recipe: dict[str, Any] = {
        "model": {"pretrained_model_name_or_path": str(tiny_pipelines["sd"]), "family": "sd", "lora_rank": 2},
        "data": {"train": str(tmp_path / "train.txt"), "cache_dir": str(tmp_path / "cache")},
        "output_dir": str(tmp_path / "run"),
        "objective": {"name": "dpo", "beta": 500.0},
        "training": {"max_train_steps": 3, "train_batch_size": 2, "learning_rate": 1e-2, "checkpointing_steps": 3},
        "validation": {"num_inference_steps": 2, "num_prompts": 0},
        "rounds": {
            "num_rounds": 2, "num_samples": 2, "scorer": f"pickscore={scorer}", "reference": "previous",
            "heldout_prompts": str(tmp_path / "heldout.txt"),
        },
    }  # fmt: skip
    path = tmp_path / "images.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert start(path) == 0
    assert "1 of 3 prompts are longer than the text encoder reads" in capsys.readouterr().out
    figures = json.loads((tmp_path / "run/rounds.json").read_text())
    assert [figure["kl"] for figure in figures] == [None] * 3
    from diffusers import StableDiffusionPipeline

    base, tuned = (
        StableDiffusionPipeline.from_pretrained(place).unet.state_dict()
        for place in (tiny_pipelines["sd"], tmp_path / "run/round-1/model")
    )
    assert base.keys() == tuned.keys()
    assert any(not torch.equal(base[name], tuned[name]) for name in base)
    assert "Images before and after" in (tmp_path / "run/report.html").read_text("utf-8")
    recipe["rounds"]["reference"] = "initial"
    path.write_text(yaml.safe_dump({**recipe, "output_dir": str(tmp_path / "other")}))
    capsys.readouterr()
    assert start(path) == 2
    assert "compares with the model that it starts from" in capsys.readouterr().err
