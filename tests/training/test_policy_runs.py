"""Whole runs of policy gradients through the command line on tiny real models, and what they refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import killing
import pytest
import text_recipes
import tiny_text
import torch
from accelerate import Accelerator
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from run_results import policy
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from diffusion_feedback.cli.main import main
from diffusion_feedback.config.parsing import load_recipe
from diffusion_feedback.scorers.texts.loading import load_text_scorer
from diffusion_feedback.workflows.training.given import Setup
from diffusion_feedback.workflows.training.policy_gradient import policy_gradient_session
from diffusion_feedback.workflows.training.rollout_evaluation import RolloutEvaluation

LORA = {"tuning": "lora", "lora_rank": 2}
REWARDS = '''
import math

def vowels(prompts, completions):
    """Share of vowels in each completion."""
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in completions]

def broken(prompts, completions):
    return [math.nan for _ in completions]

def of_turns(prompts, completions):
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
    assert all(len(turns) == 1 and turns[0]["role"] == "assistant" for turns in completions)
    return [float(len(turns[0]["content"]) % 5) for turns in completions]
'''
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny language model and a file of reward functions. Read only."""
    folder = tmp_path_factory.mktemp("policy")
    tiny_text.save_tiny_lm(folder / "lm")
    (folder / "rewards.py").write_text(REWARDS)
    return folder


@pytest.fixture
def make(tmp_path: Path, world: Path) -> Make:
    """A recipe of two iterations of four updates, with changes by section."""

    def write(name: str = "run", **changes: Any) -> Path:
        rollouts = {
            "reward": f"function={world / 'rewards.py'}:vowels",
            "max_new_tokens": 5,
            "num_prompts": 4,
            "num_generations": 4,
            "num_ppo_epochs": 2,
            "num_mini_batches": 2,
        }
        standard: dict[str, Any] = {
            "objective": {"name": "ppo"},
            "model": LORA,
            "training": {"max_train_steps": 8, "train_batch_size": 8, "checkpointing_steps": 4},
        }
        sections = {**standard, **changes, "rollouts": {**rollouts, **changes.get("rollouts", {})}}
        sections["training"] = {**standard["training"], **changes.get("training", {})}
        return text_recipes.write_recipe(tmp_path, world / "lm", name, **sections)

    return write


def train(recipe: Path, *flags: str) -> Path:
    assert main(["train", "--config", str(recipe), *flags]) == 0
    return recipe.with_suffix("")


def rows(folder: Path, key: str = "loss") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in row.items() if name not in ("eps", "time", "seconds")}
        for row in found
        if key in row
    ]


def weights(folder: Path) -> dict[str, Tensor]:
    """Policy and value head of the newest checkpoint."""
    return policy(folder)


def refusal(recipe: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["train", "--config", str(recipe)]) == 2
    assert not recipe.with_suffix("").exists()
    return capsys.readouterr().err


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize(("name", "tuning"), [("ppo", "lora"), ("grpo", "full"), ("rloo", "lora")])
def test_a_run_explains_itself(make: Make, world: Path, name: str, tuning: str) -> None:
    recipe = make(objective={"name": name}, model={"tuning": tuning, **(LORA if tuning == "lora" else {})})
    folder = train(recipe)
    updates = rows(folder)
    assert [row["step"] for row in updates] == list(range(1, 9))
    common = {
        "objective/kl", "objective/entropy", "objective/scores", "objective/rlhf_reward", "objective/non_score_reward",
        "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "val/ratio",
        "val/ratio_var", "val/num_eos_tokens", "lr", "episode",
    }  # fmt: skip
    of_values = {"loss/value_avg", "val/clipfrac_avg"}
    for row in updates:
        assert common <= set(row)
        assert of_values <= set(row) if name == "ppo" else not of_values & set(row)
        assert all(math.isfinite(value) for value in row.values())
    assert updates[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert updates[0]["val/ratio"] == pytest.approx(1, abs=1e-4)
    assert [row["episode"] for row in updates] == [16] * 4 + [32] * 4
    looks = rows(folder, "validation/scores")
    assert [row["step"] for row in looks] == [0, 8]
    page = (folder / "samples" / "step-000008.md").read_text()
    assert "## Reward" in page
    assert "| 8 |" in (folder / "README.md").read_text()
    # The result is the policy alone: no head, and plain loading gives what was trained.
    saved = {key for file in folder.glob("*.safetensors") for key in load_file(file)}
    assert saved
    assert not any("value_head" in key for key in saved)
    assert (name == "ppo") == any("value_head" in key for key in weights(folder))
    build = AutoPeftModelForCausalLM if tuning == "lora" else AutoModelForCausalLM
    loaded, base = build.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(world / "lm")
    ids = AutoTokenizer.from_pretrained(folder)("a red circle", return_tensors="pt").input_ids
    with torch.no_grad():
        assert not torch.allclose(loaded(input_ids=ids).logits, base(input_ids=ids).logits, atol=1e-4)


def test_killed_in_the_middle_of_an_iteration(make: Make) -> None:
    """SIGKILL when some updates of an iteration are done: what was drawn is not drawn again, the weights are the same."""
    training = {"max_train_steps": 12, "checkpointing_steps": 3, "checkpoints_total_limit": 9}
    more: dict[str, Any] = {"training": training, "objective": {"name": "ppo", "target_kl": 0.1, "horizon": 100.0}}
    whole = train(make("whole", **more))
    recipe = make("broken", **more)
    folder = recipe.with_suffix("")
    process = forks.start_command(["train", "--config", str(recipe)])
    killing.wait_until((folder / "checkpoints/step-000003").exists, process)
    assert killing.kill(process)
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1].name
    assert newest in (
        "step-000003",
        "step-000006",
        "step-000009",
    )  # all of them within an iteration or at its first update
    train(recipe, "--resume")
    assert rows(folder) == rows(whole)
    for name, value in weights(whole).items():
        assert torch.equal(weights(folder)[name], value), name
    coefficients = {row["objective/kl_coef"] for row in rows(whole)}
    assert len(coefficients) == 3


def test_a_checkpoint_without_its_rollouts_is_refused(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """The updates that are left would be made of other completions than those that were drawn."""
    recipe = make("run", training={"max_train_steps": 2, "checkpointing_steps": 1})
    folder = train(recipe)
    (folder / "README.md").unlink()
    for name in ("resume/source.safetensors", "checksums.json"):
        (folder / "checkpoints/step-000002" / name).unlink()
    with pytest.warns(UserWarning, match=r"holds no checksums.json"):
        assert main(["train", "--config", str(recipe), "--resume"]) == 2
    assert "step-000002/resume/source.safetensors" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_equal_one(make: Make, tmp_path: Path) -> None:
    """Rollouts and passes are shared out; one process has a pretraining text, the other none. Plain gradient descent in
    effect, as elsewhere.
    """
    texts = text_recipes.write_jsonl(tmp_path / "texts.jsonl", [{"text": t} for t in tiny_text.sentences(20)])
    more: dict[str, Any] = {
        "rollouts": {"ptx_data": str(texts), "ptx_coef": 0.5, "ptx_batch_size": 1},
        "training": {"max_train_steps": 6, "learning_rate": 1e-4, "max_grad_norm": 0.0},
        "optimizer": {"name": "adamw", "epsilon": 1.0},
    }
    alone = train(make("alone", **more))
    recipe = make("both", **more)
    forks.run_together(["train", "--config", str(recipe)], recipe.parent)
    both = recipe.with_suffix("")
    for one, other in zip(rows(alone), rows(both), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == pytest.approx(other[name], abs=1e-4, rel=1e-3), name
    for name, value in weights(alone).items():
        torch.testing.assert_close(value, weights(both)[name], atol=1e-6, rtol=1e-5)
    assert all("loss/pretraining_avg" in row for row in rows(alone))


def test_a_conversation_is_judged_as_one(make: Make, world: Path, tmp_path: Path) -> None:
    template = "{# another #}" + tiny_text.CHATML
    (tmp_path / "template.jinja").write_text(template)
    turns = [{"prompt": [{"role": "user", "content": text}]} for text in tiny_text.sentences(8)]
    chats = text_recipes.write_jsonl(tmp_path / "chats.jsonl", turns)
    recipe = make(
        data={"train": str(chats), "validation": None},
        rollouts={"reward": f"function={world / 'rewards.py'}:of_turns"},
        text={"chat_template": str(tmp_path / "template.jinja")},
        training={"max_train_steps": 1},
        validation={"prompts": ["hello there"], "num_prompts": 2},
    )
    folder = train(recipe)
    assert "hello there" in (folder / "samples" / "step-000001.md").read_text()
    assert AutoTokenizer.from_pretrained(folder).chat_template == template


def test_dry_run_plans_iterations(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", str(make()), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "4 prompts x 4 = 16 completions" in said
    assert "2 epochs x 2 parts of 8 completions" in said
    assert "2 iterations, 32 completions" in said


def evaluation_of(recipe: Path) -> RolloutEvaluation:
    evaluation = policy_gradient_session(Setup(load_recipe(recipe), Accelerator(cpu=True))).evaluate
    assert isinstance(evaluation, RolloutEvaluation)
    return evaluation


def test_reward_model_on_the_same_base_shares_its_weights(make: Make, world: Path, tmp_path: Path) -> None:
    """An adapter over the policy's own base: the base is held once, and the scores do not change."""
    torch.manual_seed(0)
    judge = AutoModelForSequenceClassification.from_pretrained(world / "lm", num_labels=1)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS", init_lora_weights=False)
    get_peft_model(judge, config).save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(world / "lm").save_pretrained(tmp_path / "reward")
    spec = f"reward_model={tmp_path / 'reward'}"
    found = evaluation_of(make(rollouts={"reward": spec}))
    trunk = found.sampler.model.library_model.model
    base = sum(p.numel() * p.element_size() for p in trunk.parameters() if not p.requires_grad)
    assert found.judge.shared_bytes == base
    assert 0 < found.judge.num_bytes < base / 10
    prompts, completions = ["a red", "the cat"], [" circle", " sat"]
    expected = load_text_scorer(spec).score(prompts, completions)
    assert found.judge.scorer.score(prompts, completions) == pytest.approx(expected, abs=1e-6)
    assert abs(expected[0] - expected[1]) > 1e-4


# ---------------------------------------------------------------- refusals


def test_a_reward_that_is_no_number_names_prompt_and_completion(
    make: Make, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make(rollouts={"reward": f"function={world / 'rewards.py'}:broken"})
    assert main(["train", "--config", str(recipe)]) == 2
    said = capsys.readouterr().err
    assert "is nan" in said
    assert "of the prompt" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"objective": {"name": "grpo"}, "rollouts": {"num_generations": 1}}, "rollouts.num_generations"),
        ({"rollouts": {"num_mini_batches": 3}}, "rollouts.num_mini_batches"),
        ({"rollouts": {"temperature": 0.0}}, "rollouts.temperature"),
        ({"rollouts": {"reward": ""}}, "rollouts.reward"),
        ({"rollouts": {"reward_clip": -1.0}}, "rollouts.reward_clip"),
        ({"rollouts": {"ptx_coef": 2.0}}, "rollouts.ptx_coef"),
        ({"rollouts": {"max_new_tokens": 128}}, "rollouts.max_new_tokens"),
        ({"rollouts": {"num_prompts": 100}}, "rollouts.num_prompts"),
        ({"training": {"gradient_accumulation_steps": 2}}, "training.gradient_accumulation_steps"),
        ({"objective": {"name": "ppo", "cliprange": -0.2}}, "objective.cliprange"),
        ({"objective": {"name": "ppo", "epsilon": 0.2}}, "epsilon"),
        ({"objective": {"name": "ppo", "target_kl": 6.0, "horizon": 3.0}}, "objective.horizon"),
        ({"objective": {"name": "dpo", "beta": 0.1}}, "rollouts.num_prompts"),
        ({"data": {"soft_labels": True}}, "data.soft_labels"),
    ],
)
def test_settings_that_make_no_sense(
    make: Make, changes: dict[str, Any], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(make(**changes), capsys)
    assert named in said
    assert "Traceback" not in said


def test_too_few_pretraining_texts(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = text_recipes.write_jsonl(tmp_path / "texts.jsonl", [{"text": "a red circle"}])
    assert "rollouts.ptx_batch_size" in refusal(make(rollouts={"ptx_data": str(texts)}), capsys)


def test_heldout_prompts_that_are_trained_on(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make(data={"validation": str(tmp_path / "train.jsonl")})
    assert "training prompts too" in refusal(recipe, capsys)
