"""Runs that train a reward model, through the command line on tiny real models: scores, geometry, learning, results."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import text_recipes
import tiny_text
import torch
from peft import AutoPeftModelForSequenceClassification
from run_results import policy
from text_recipes import MakeTextRecipe
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from diffusion_feedback.catalog import objective_row
from diffusion_feedback.cli.main import main
from diffusion_feedback.data.token_index import TokenIndex
from diffusion_feedback.likelihoods.rewards import SequenceRewards
from diffusion_feedback.likelihoods.tokenization import Tokenization
from diffusion_feedback.models import reward_model
from diffusion_feedback.records import TextRecord
from diffusion_feedback.training.judging import JudgingStep
from diffusion_feedback.training.steps import StepParts

REWARD: dict[str, Any] = {
    "model": {"family": "reward_model"},
    "objective": {"name": "bradley_terry"},
    "validation": None,
    "rollouts": None,
}


def train(recipe: Path, *flags: str) -> Path:
    assert main(["train", "--config", str(recipe), *flags]) == 0
    return recipe.with_suffix("")


def rows(folder: Path, key: str = "loss") -> list[dict[str, Any]]:
    return [row for line in (folder / "metrics.jsonl").read_text().splitlines() if key in (row := json.loads(line))]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def score_alone(model: Any, tokenizer: Any, text: str) -> float:
    """Transformers' own score of one text without padding."""
    ids = torch.tensor([[*tokenizer(text).input_ids, tokenizer.eos_token_id]])
    with torch.no_grad():
        return float(model(input_ids=ids).logits[0, 0])


def figures(model: Any, tokenizer: Any, pairs: list[dict[str, Any]]) -> dict[str, float]:
    margins = [
        score_alone(model, tokenizer, row["prompt"] + row["chosen"])
        - score_alone(model, tokenizer, row["prompt"] + row["rejected"])
        for row in pairs
    ]
    return {
        "accuracy": sum(margin > 0 for margin in margins) / len(margins),
        "loss": sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins),
        "margin": sum(margins) / len(margins),
    }


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_score_depends_on_its_own_text_alone(tmp_path: Path, family: tiny_text.Family) -> None:
    """In a batch of unlike lengths as alone by transformers, though padding and end token are one."""
    spelling = tiny_text.tokenizer(pad=False)
    folder = tiny_text.save_tiny_reward_model(tmp_path / "model", family=family, spelling=spelling)
    model = reward_model.load(str(folder))
    records = [TextRecord(**row) for row in text_recipes.pairs(6)]
    index = TokenIndex(Tokenization(model.tokenizer, model.window).encode(records))
    step = JudgingStep(StepParts(SequenceRewards("cpu"), None, objective_row("bradley_terry"), {}))
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    together = step.pairs(step.scores(model.network, index.batch(range(6), 0)))
    for number in range(6):
        alone = step.pairs(step.scores(model.network, index.batch([number], 0)))
        batch = index.batch([number], 0)
        for sequence, one, other in (
            (batch.chosen[0], alone.policy_chosen, together.policy_chosen),
            (batch.rejected[0], alone.policy_rejected, together.policy_rejected),
        ):
            with torch.no_grad():
                expected = plain(input_ids=torch.tensor([sequence.ids.tolist()])).logits[0, 0]
            torch.testing.assert_close(one[0], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(other[number], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_run_and_its_result(make_text_recipe: MakeTextRecipe, tmp_path: Path, tuning: str) -> None:
    """The figures of the last evaluation are those of the folder as plain transformers or peft loads it."""
    folder = train(make_text_recipe(**{**REWARD, "model": {"family": "reward_model", "tuning": tuning}}))
    if tuning == "full":
        loaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    else:
        loaded = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = figures(loaded, tokenizer, read(tmp_path / "validation.jsonl"))
    looks = rows(folder, "validation/accuracy")
    assert [row["step"] for row in looks] == [0, 4]
    assert looks[-1]["validation/accuracy"] == expected["accuracy"]
    assert looks[-1]["validation/loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert looks[-1]["validation/margin"] == pytest.approx(expected["margin"], rel=1e-4)
    assert looks[0]["validation/loss"] != looks[-1]["validation/loss"]
    card = (folder / "README.md").read_text()
    assert "`bradley_terry`" in card
    assert f"{looks[-1]['validation/accuracy']:.3f}" in card


def test_it_judges_as_it_was_trained(make_text_recipe: MakeTextRecipe, tmp_path: Path) -> None:
    """The scorer on the run's folder gives the margins of the last look: it reads the same tokens."""
    from diffusion_feedback.scorers.texts.loading import load_text_scorer

    folder = train(make_text_recipe(**REWARD))
    scorer = load_text_scorer(f"reward_model={folder}")
    pairs = read(tmp_path / "validation.jsonl")
    prompts = [row["prompt"] for row in pairs]
    chosen, rejected = (scorer.score(prompts, [row[side] for row in pairs]) for side in ("chosen", "rejected"))
    margin = sum(w - r for w, r in zip(chosen, rejected, strict=True)) / len(pairs)
    assert margin == pytest.approx(rows(folder, "validation/margin")[-1]["validation/margin"], rel=1e-4)


def test_it_learns_the_preference(make_text_recipe: MakeTextRecipe, tmp_path: Path) -> None:
    """A cat is chosen everywhere; with enough pairs to tell it from all else."""
    text_recipes.write_jsonl(tmp_path / "many.jsonl", text_recipes.pairs(300, seed=4))
    changes = {
        **REWARD,
        "objective": {"name": "bradley_terry", "center_rewards_coefficient": 0.01},
        "data": {"train": str(tmp_path / "many.jsonl")},
        "training": {"max_train_steps": 60, "checkpointing_steps": 60, "train_batch_size": 16, "learning_rate": 3e-3},
    }
    looks = rows(train(make_text_recipe(**changes)), "validation/accuracy")
    assert looks[-1]["validation/accuracy"] > 0.8
    assert looks[-1]["validation/loss"] < 0.2 < looks[0]["validation/loss"]
    assert abs(looks[-1]["validation/mean_reward"]) < 2


def test_batch_geometry_does_not_matter(make_text_recipe: MakeTextRecipe) -> None:
    common = {"max_train_steps": 2, "learning_rate": 1e-2}
    changes = {**REWARD, "optimizer": {"name": "adamw", "epsilon": 1.0}, "data": {"validation": None}}
    wide = train(make_text_recipe("wide", **changes, training={**common, "train_batch_size": 8}))
    narrow = {**common, "train_batch_size": 1, "gradient_accumulation_steps": 8}
    long = train(make_text_recipe("long", **changes, training=narrow))
    for name, value in policy(wide).items():
        torch.testing.assert_close(value, policy(long)[name], atol=1e-6, rtol=1e-6)


def test_margins_weights_and_soft_labels_count(make_text_recipe: MakeTextRecipe, tmp_path: Path) -> None:
    """The first loss from transformers' scores, with all three in one formula."""
    pairs = text_recipes.pairs(4)
    extra = [(0.5, 1.0, 2.0), (1.0, 0.75, 1.0), (0.0, 0.9, 0.5), (2.0, 0.6, 1.0)]
    told = [
        {**pair, "margin": margin, "chosen_probability": p, "weight": weight}
        for pair, (margin, p, weight) in zip(pairs, extra, strict=True)
    ]
    text_recipes.write_jsonl(tmp_path / "told.jsonl", told)
    folder = tiny_text.save_tiny_reward_model(tmp_path / "judge")
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    losses = []
    for pair, (margin, p, _) in zip(pairs, extra, strict=True):
        d = sum(
            sign * score_alone(model, tokenizer, pair["prompt"] + pair[side])
            for side, sign in (("chosen", 1), ("rejected", -1))
        ) - margin  # fmt: skip
        entropy = -sum(q * math.log(q) for q in (p, 1 - p) if q)
        losses.append(p * math.log1p(math.exp(-d)) + (1 - p) * math.log1p(math.exp(d)) - entropy)
    changes = {
        **REWARD,
        "model": {"family": "reward_model", "pretrained_model_name_or_path": str(folder)},
        "objective": {"name": "bradley_terry", "use_margin": True},
        "data": {"train": str(tmp_path / "told.jsonl"), "validation": None, "soft_labels": True, "ties": "soft"},
        "training": {"max_train_steps": 1, "train_batch_size": 4},
    }
    first = rows(train(make_text_recipe(**changes)))[0]
    assert first["loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)
    changes["data"]["prompt_weights"] = False
    unweighted = rows(train(make_text_recipe("unweighted", **changes)))[0]
    assert unweighted["loss"] == pytest.approx(first["loss"], rel=1e-6), "the loss shown is not weighted"
    assert unweighted["grad_norm"] != pytest.approx(first["grad_norm"], rel=1e-3), "the gradient is"


def test_it_starts_from_adapters(make_text_recipe: MakeTextRecipe, tmp_path: Path, tiny_lm: Path) -> None:
    """From a language model's adapter under a new head, and from a reward model's adapter as it is; both come out whole."""
    lora = {"tuning": "lora", "lora_rank": 2}
    language = {"family": "causal_lm", **lora}
    tuned = train(
        make_text_recipe("tuned", model=language, objective={"name": "sft"}, training={"learning_rate": 1e-2})
    )

    def judge(name: str, start: Path) -> list[dict[str, Any]]:
        model = {"family": "reward_model", "pretrained_model_name_or_path": str(start), **lora}
        return rows(train(make_text_recipe(name, **{**REWARD, "model": model})), "validation/loss")

    first, second = judge("first", tiny_lm), judge("second", tmp_path / "first")
    assert second[0]["validation/loss"] == pytest.approx(first[-1]["validation/loss"], rel=1e-5)
    other = judge("other", tuned)
    assert other[0]["validation/loss"] != pytest.approx(first[0]["validation/loss"], rel=1e-3), "another trunk"
    pairs = read(tmp_path / "validation.jsonl")
    for name, looks in (("second", second), ("other", other)):
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / name).eval()
        told = figures(loaded, AutoTokenizer.from_pretrained(tmp_path / name), pairs)
        assert looks[-1]["validation/loss"] == pytest.approx(told["loss"], rel=1e-4)
