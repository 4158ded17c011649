"""Runs on texts through the command line, on tiny real language models: geometry, resuming, references, results."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import forks
import killing
import pytest
import text_recipes
import tiny_text
import torch
from peft import AutoPeftModelForCausalLM
from run_results import SGD, assert_close, policy, rows, train
from safetensors.torch import load_file
from text_recipes import MakeTextRecipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from diffusion_feedback.catalog import objective_row, objectives_for


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def nll_by_transformers(model: Any, tokenizer: Any, examples: Sequence[dict[str, Any]], side: str = "chosen") -> float:
    """Cross entropy per token of completions and their end tokens, as transformers computes it, in one padded batch."""
    texts = [[*tokenizer(row["prompt"] + row[side]).input_ids, tokenizer.eos_token_id] for row in examples]
    prompts = [len(tokenizer(row["prompt"]).input_ids) for row in examples]
    longest = max(map(len, texts))
    ids = torch.tensor([text + [tokenizer.pad_token_id] * (longest - len(text)) for text in texts])
    labels = ids.clone()
    for row, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        labels[row, :prompt] = -100
        labels[row, len(text) :] = -100
    with torch.no_grad():
        return float(model(input_ids=ids, attention_mask=(torch.arange(longest) < torch.tensor(
            [[len(text)] for text in texts])).long(), labels=labels).loss)  # fmt: skip


def test_a_run_explains_itself(make_text_recipe: MakeTextRecipe, tmp_path: Path, tiny_lm: Path) -> None:
    folder = train(make_text_recipe(validation={"steps": 2, "num_prompts": 2}))
    for name in ("recipe.yaml", "environment.json", "README.md", "config.json", "model.safetensors", "tokenizer.json"):
        assert (folder / name).is_file(), name
    steps = rows(folder)
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows(folder, "gate/loss")[0]["gate/loss"] == pytest.approx(math.log(2), abs=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sizes = [len(tokenizer(row["prompt"] + row[side]).input_ids) + 1
             for row in read(tmp_path / "train.jsonl") for side in ("chosen", "rejected")]  # fmt: skip
    assert steps[-1]["num_tokens"] < sum(sizes), "16 of 24 pairs were seen"
    looks = rows(folder, "validation/loss")
    assert [row["step"] for row in looks] == [0, 2, 4]
    heldout = read(tmp_path / "validation.jsonl")
    before = nll_by_transformers(AutoModelForCausalLM.from_pretrained(tiny_lm), tokenizer, heldout)
    after = nll_by_transformers(AutoModelForCausalLM.from_pretrained(folder), tokenizer, heldout)
    assert looks[0]["validation/nll"] == pytest.approx(before, rel=1e-5)
    assert looks[-1]["validation/nll"] == pytest.approx(after, rel=1e-5)
    assert looks[-1]["validation/perplexity"] == pytest.approx(math.exp(after), rel=1e-4)
    assert looks[-1]["validation/log_ratio"] == pytest.approx(before - after, abs=1e-5)
    assert looks[0]["validation/accuracy"] == 0.5
    card = (folder / "README.md").read_text()
    assert f"{looks[-1]['validation/logps/chosen_change']:+.3f}" in card
    page = (folder / "samples" / "step-000004.md").read_text()
    assert page.count("Before:") == page.count("After 4 steps:") == 2


def test_all_tokens_of_an_epoch_are_counted(make_text_recipe: MakeTextRecipe, tmp_path: Path, tiny_lm: Path) -> None:
    folder = train(make_text_recipe(training={"max_train_steps": 6}, data={"validation": None}))
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    examples = read(tmp_path / "train.jsonl")
    texts = [row["prompt"] + row[side] for row in examples for side in ("chosen", "rejected")]
    assert rows(folder)[-1]["num_tokens"] == sum(len(tokenizer(text).input_ids) + 1 for text in texts)


def test_sft_is_the_mean_over_the_tokens_of_the_step(
    make_text_recipe: MakeTextRecipe, tmp_path: Path, tiny_lm: Path
) -> None:
    """Transformers' own cross entropy on the same 24 completions, though they are seen in passes of 3."""
    training = {"train_batch_size": 3, "gradient_accumulation_steps": 8, "max_train_steps": 1}
    folder = train(make_text_recipe(objective={"name": "sft"}, training=training))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_lm), AutoTokenizer.from_pretrained(tiny_lm)
    expected = nll_by_transformers(model, tokenizer, read(tmp_path / "train.jsonl"))
    assert rows(folder)[0]["loss"] == pytest.approx(expected, rel=1e-5)
    look = rows(folder, "validation/nll")[-1]
    tuned = AutoModelForCausalLM.from_pretrained(folder)
    expected = nll_by_transformers(tuned, tokenizer, read(tmp_path / "validation.jsonl"))
    assert look["validation/nll"] == pytest.approx(expected, rel=1e-5)
    assert look["validation/loss"] == pytest.approx(expected, rel=1e-5)


GEOMETRIES: dict[str, dict[str, Any]] = {
    "long": {"training": {"train_batch_size": 1, "gradient_accumulation_steps": 8}},
    "budget": {"training": {"train_batch_size": 8}, "text": {"max_tokens_per_pass": 130}},
}
OBJECTIVES: dict[str, dict[str, Any]] = {"dpo": {"name": "dpo", "beta": 0.1}, "sft": {"name": "sft"}}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_batch_geometry_does_not_matter(make_text_recipe: MakeTextRecipe, objective: str) -> None:
    """1 x 8, 8 x 1 and passes of a token budget are one and the same step."""
    common = {"max_train_steps": 2, "learning_rate": 1e-2}
    changes = {"objective": OBJECTIVES[objective], "optimizer": SGD, "data": {"validation": None}}
    wide = train(make_text_recipe("wide", training={**common, "train_batch_size": 8}, **changes))
    for name, geometry in GEOMETRIES.items():
        settings = {**geometry, "training": {**common, **geometry["training"]}}
        other = train(make_text_recipe(name, **settings, **changes))
        assert_close(policy(wide), policy(other), 1e-6)
        for one, two in zip(rows(wide), rows(other), strict=True):
            assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
            assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)


SPREAD: dict[str, dict[str, Any]] = {
    "sft": {"objective": {"name": "sft"}},
    "dpo": {"objective": {"name": "dpo", "beta": 0.1}, "text": {"cache_reference": True}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPREAD)
def test_two_processes_equal_one(make_text_recipe: MakeTextRecipe, tmp_path: Path, name: str) -> None:
    """sft's mean is over the tokens of both; of dpo each process asks the reference for its share."""
    common = {"max_train_steps": 2, "learning_rate": 1e-2}
    changes: dict[str, Any] = {**SPREAD[name], "optimizer": SGD, "data": {"max_validation_pairs": 2}}
    own = {**changes, "data": {**changes["data"], "cache_dir": str(tmp_path / "own")}}
    alone = train(make_text_recipe("alone", training={**common, "train_batch_size": 8}, **own))
    recipe = make_text_recipe("both", training={**common, "train_batch_size": 4}, **changes)
    forks.run_together(["train", "--config", str(recipe)], recipe.parent)
    both = recipe.with_suffix("")
    assert_close(policy(alone), policy(both), 1e-6)
    for one, other in zip(rows(alone), rows(both), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["num_tokens"] == other["num_tokens"]


RESUMED: dict[str, dict[str, Any]] = {
    "dpo": {
        "objective": OBJECTIVES["dpo"],
        "model": {"tuning": "lora", "lora_rank": 2},
        "text": {"cache_reference": True},
    },
    "sft": {"objective": OBJECTIVES["sft"], "training": {"ema_decay": 0.9, "lr_scheduler": "cosine"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_killed_and_resumed_equals_uninterrupted(make_text_recipe: MakeTextRecipe, tmp_path: Path, name: str) -> None:
    """SIGKILL at random moments, wherever the run is; then weights and figures are the same to the last bit."""
    changes = {**RESUMED[name], "training": {**RESUMED[name].get("training", {}), "max_train_steps": 12}}
    whole = train(make_text_recipe("whole", **changes, data={"cache_dir": str(tmp_path / "own")}))
    recipe = make_text_recipe("broken", **changes)
    folder = recipe.with_suffix("")
    metrics = folder / "metrics.jsonl"
    hits = killing.kill_often(
        ["train", "--config", str(recipe), "--resume"], kills=1, begun=metrics.exists, span=0.1, seed=name
    )
    assert hits == 1
    train(recipe, "--resume")
    for key, value in policy(whole).items():
        assert torch.equal(policy(folder)[key], value), key
    assert rows(folder) == rows(whole)
    assert rows(folder, "validation/nll") == rows(whole, "validation/nll")
    assert (folder / "samples/step-000012.md").read_text() == (whole / "samples/step-000012.md").read_text()


def test_adapters_load_with_plain_peft(make_text_recipe: MakeTextRecipe, tmp_path: Path) -> None:
    """As plain peft loads the folder, the adapted model says of held-out texts what the run said."""
    folder = train(
        make_text_recipe(model={"tuning": "lora", "lora_rank": 2, "lora_targets": ["attention", "feed_forward"]})
    )
    look = rows(folder, "validation/nll")
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder)
    tokenizer, heldout = AutoTokenizer.from_pretrained(folder), read(tmp_path / "validation.jsonl")
    assert look[-1]["validation/nll"] == pytest.approx(nll_by_transformers(loaded, tokenizer, heldout), rel=1e-5)
    with loaded.disable_adapter():
        assert look[0]["validation/nll"] == pytest.approx(nll_by_transformers(loaded, tokenizer, heldout), rel=1e-5)
    assert abs(look[-1]["validation/nll"] - look[0]["validation/nll"]) > 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_over_adapters_are_given_out_merged(
    make_text_recipe: MakeTextRecipe, tmp_path: Path, family: tiny_text.Family
) -> None:
    """Fine-tuning and then preferences, both with LoRA: the second adapter's base is no folder, so the result is whole."""
    base = tiny_text.save_tiny_lm(tmp_path / "base", family=family, tied=True)
    lora = {"tuning": "lora", "lora_rank": 2}
    start = {"pretrained_model_name_or_path": str(base), **lora}
    first = train(make_text_recipe("first", model=start, objective={"name": "sft"}, training={"learning_rate": 1e-2}))
    second = train(make_text_recipe("second", model={"pretrained_model_name_or_path": str(first), **lora}))
    looks = [rows(folder, "validation/nll") for folder in (first, second)]
    assert looks[1][0]["validation/nll"] == pytest.approx(looks[0][-1]["validation/nll"], rel=1e-5)
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(second), AutoTokenizer.from_pretrained(second)
    told = nll_by_transformers(loaded, tokenizer, read(tmp_path / "validation.jsonl"))
    assert looks[1][-1]["validation/nll"] == pytest.approx(told, rel=1e-5)
    assert "AutoModelForCausalLM" in (second / "README.md").read_text()


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_cached_reference_changes_nothing(make_text_recipe: MakeTextRecipe, tmp_path: Path, tuning: str) -> None:
    common = {"model": {"tuning": tuning}, "optimizer": SGD, "training": {"learning_rate": 1e-2}}
    direct = train(make_text_recipe("direct", **common))
    cached = train(make_text_recipe("cached", **common, text={"cache_reference": True}))
    assert_close(policy(direct), policy(cached), 1e-6)
    for one, other in zip(rows(direct), rows(cached), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
    for one, other in zip(rows(direct, "validation/loss"), rows(cached, "validation/loss"), strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-4)
    # More data: what is there is not computed again, and the folder is that of the same reference.
    shards = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")}
    text_recipes.write_jsonl(tmp_path / "more.jsonl", [*text_recipes.pairs(24), *text_recipes.pairs(6, seed=2)])
    data = {"train": str(tmp_path / "more.jsonl")}
    train(make_text_recipe("more", **common, text={"cache_reference": True}, data=data))
    found = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")}
    assert shards.items() < found.items()
    assert len({file.parent for file in found}) == 1
    added = [load_file(file) for file in found.keys() - shards.keys()]
    assert sum(map(len, added)) == 6


def test_another_model_as_the_reference(make_text_recipe: MakeTextRecipe, tmp_path: Path, tiny_lm: Path) -> None:
    """dpo's first loss by transformers' own log-probabilities of both models."""
    other = tiny_text.save_tiny_lm(tmp_path / "other", seed=5)
    training = {"train_batch_size": 24, "max_train_steps": 1}
    models = {"reference_model_name_or_path": str(other)}
    folder = train(make_text_recipe(model=models, training=training))
    tokenizer, examples = AutoTokenizer.from_pretrained(tiny_lm), read(tmp_path / "train.jsonl")
    policy_model, reference = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny_lm, other))

    def logp(model: Any, row: dict[str, Any], side: str) -> float:
        count = len(tokenizer(row["prompt"] + row[side]).input_ids) + 1 - len(tokenizer(row["prompt"]).input_ids)
        return -nll_by_transformers(model, tokenizer, [row], side) * count

    losses = []
    for row in examples:
        d = [logp(policy_model, row, side) - logp(reference, row, side) for side in ("chosen", "rejected")]
        losses.append(math.log1p(math.exp(-0.1 * (d[0] - d[1]))))
    assert rows(folder)[0]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    same = train(make_text_recipe("same", model={"reference_model_name_or_path": str(tiny_lm)}, training=training))
    assert rows(same)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_training_prefers_what_is_chosen(make_text_recipe: MakeTextRecipe) -> None:
    """A cat is chosen everywhere, in the training pairs and in the held-out ones."""
    training = {"max_train_steps": 30, "checkpointing_steps": 30, "train_batch_size": 8, "learning_rate": 3e-3}
    look = rows(train(make_text_recipe(training=training)), "validation/accuracy")[-1]
    assert look["validation/accuracy_low"] > 0.5
    assert look["validation/logps/chosen_change"] > look["validation/logps/rejected_change"]


TEXT_OBJECTIVES = [
    name for name in objectives_for("causal_lm") if objective_row(name).learns_from not in ("rollouts", "trajectories")
]
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {},
    "weighted_sum": {"terms": [{"name": "dpo", "weight": 0.8, "beta": 0.1}, {"name": "sft", "weight": 1.0}]},
    "simpo": {"beta": 2.0, "gamma": 1.0},
    "slic": {"delta": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("name", TEXT_OBJECTIVES)
def test_every_objective_trains(make_text_recipe: MakeTextRecipe, name: str) -> None:
    import inspect

    from diffusion_feedback.catalog import resolve
    from diffusion_feedback.catalog.rows import settings_of

    needed = {key for key, p in settings_of(resolve("objective", name)).items() if p.default is inspect.Parameter.empty}
    usual = {"beta": 0.1, "label_smoothing": 0.1, "alpha": 0.1, "gamma": 0.5, "delta": 1.0, "lam": 1.0}
    settings = SETTINGS.get(name, {key: usual.get(key, 0.5) for key in needed})
    training = {"max_train_steps": 1, "train_batch_size": 8}
    recipe = make_text_recipe(
        name, objective={"name": name, **settings}, training=training, validation={"num_prompts": 0}
    )
    folder = train(recipe)
    assert math.isfinite(rows(folder)[0]["loss"])
    assert math.isfinite(rows(folder, "validation/loss")[-1]["validation/loss"])
    assert rows(folder)[0]["grad_norm"] > 0
