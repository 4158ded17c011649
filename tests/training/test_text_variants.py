"""Variants of runs on texts: precisions, templates, kinds of rows, and what is drawn on the way."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import text_recipes
import tiny_text
import torch
from run_results import SGD, assert_close, policy, policy_at, rows, train
from text_recipes import MakeTextRecipe
from transformers import AutoTokenizer

from diffusion_feedback.cli.main import main

CHAT = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }
    for row in text_recipes.pairs(24)
]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bf16", {"training": {"mixed_precision": "bf16"}}),
        ("checkpointing", {"model": {"gradient_checkpointing": True}}),
        ("checkpointed_lora", {"model": {"gradient_checkpointing": True, "tuning": "lora"}}),
        ("half_lora", {"model": {"tuning": "lora", "dtype": "bfloat16"}, "training": {"mixed_precision": "bf16"}}),
        ("rmsprop", {"optimizer": {"name": "rmsprop"}}),
        ("tails", {"text": {"tail_weight": 0.3}}),
        ("cut", {"text": {"max_length": 12, "max_completion_length": 5}}),
    ],
)
def test_variants_train(make_text_recipe: MakeTextRecipe, name: str, changes: dict[str, Any]) -> None:
    training = {"max_train_steps": 2, "checkpointing_steps": 1, **changes.get("training", {})}
    folder = train(make_text_recipe(name, **{**changes, "training": training}))
    assert all(math.isfinite(row["loss"]) for row in rows(folder))
    first, second = (policy_at(folder, step) for step in (1, 2))
    assert any(not torch.equal(value, second[key]) for key, value in first.items()), "the weights move"


@pytest.mark.parametrize("change", [{"model": {"gradient_checkpointing": True}}, {"text": {"share_prompt": True}}])
def test_how_it_is_computed_changes_nothing(make_text_recipe: MakeTextRecipe, change: dict[str, Any]) -> None:
    common = {"optimizer": SGD, "training": {"learning_rate": 1e-2}, "data": {"validation": None}}
    plain, other = train(make_text_recipe("plain", **common)), train(make_text_recipe("other", **common, **change))
    assert_close(policy(plain), policy(other), 1e-5)


def test_perplexity_counts_every_token_whatever_the_loss_counts(make_text_recipe: MakeTextRecipe) -> None:
    """With tails that count for nothing in the loss, the model before training has the perplexity that it has."""
    whole = train(make_text_recipe("whole", training={"max_train_steps": 1}))
    tails = train(make_text_recipe("tails", training={"max_train_steps": 1}, text={"tail_weight": 0.0}))
    first, other = (rows(folder, "validation/nll")[0] for folder in (whole, tails))
    assert other["validation/nll"] == pytest.approx(first["validation/nll"], rel=1e-5)
    assert other["validation/logps/rejected"] > first["validation/logps/rejected"]
    assert "nll_loss" in rows(whole)[0]
    assert "nll_loss" not in rows(tails)[0]
    # The model moves, and by how much is told of all tokens.
    start, end = rows(tails, "validation/nll")
    assert end["validation/log_ratio"] == pytest.approx(start["validation/nll"] - end["validation/nll"], rel=1e-3)


def test_conversations_train_and_keep_their_template(make_text_recipe: MakeTextRecipe, tmp_path: Path) -> None:
    """A template of the recipe is saved with the tokenizer; the recipe's own prompts become the user's turn."""
    text_recipes.write_jsonl(tmp_path / "chat.jsonl", CHAT)
    plain = tiny_text.save_tiny_lm(tmp_path / "lm", spelling=tiny_text.tokenizer())
    (tmp_path / "template.jinja").write_text(tiny_text.CHATML)
    folder = train(
        make_text_recipe(
            model={"pretrained_model_name_or_path": str(plain)},
            data={"train": str(tmp_path / "chat.jsonl"), "validation": None},
            text={"chat_template": str(tmp_path / "template.jinja")},
            validation={"prompts": ["hello there"]},
        )
    )
    assert AutoTokenizer.from_pretrained(folder).chat_template == tiny_text.CHATML
    page = (folder / "samples" / "step-000004.md").read_text()
    assert "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n" in page


def test_sft_imitates_what_is_called_good(make_text_recipe: MakeTextRecipe, tmp_path: Path) -> None:
    pairs = text_recipes.pairs(8)
    labelled = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in pairs for side in ("chosen", "rejected")
    ]  # fmt: skip
    text_recipes.write_jsonl(tmp_path / "labelled.jsonl", labelled)
    text_recipes.write_jsonl(tmp_path / "pairs.jsonl", pairs)
    common = {"objective": {"name": "sft"}, "optimizer": SGD}
    results = [
        train(make_text_recipe(name, **common, data={"train": str(tmp_path / f"{name}.jsonl"), "validation": None}))
        for name in ("labelled", "pairs")
    ]
    assert rows(results[0]) == rows(results[1])


def test_sft_sees_a_completion_as_often_as_it_is_there(make_text_recipe: MakeTextRecipe, tmp_path: Path) -> None:
    pairs = text_recipes.pairs(3)
    text_recipes.write_jsonl(tmp_path / "often.jsonl", [*pairs, {**pairs[0], "rejected": " another"}])
    data = {"train": str(tmp_path / "often.jsonl"), "validation": None}
    training = {"train_batch_size": 4, "max_train_steps": 1}
    folder = train(make_text_recipe(objective={"name": "sft"}, data=data, training=training))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [row["prompt"] + row["chosen"] for row in [*pairs, pairs[0]]]
    assert rows(folder)[0]["num_tokens"] == sum(len(tokenizer(text).input_ids) + 1 for text in texts)


def test_pairs_are_two_examples_of_kto(make_text_recipe: MakeTextRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_text_recipe(objective={"name": "kto", "beta": 0.1})
    assert main(["train", "--config", str(recipe), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "48 for training, 20 held out" in printed
    assert "a copy of its own" in printed
    assert "(measured)" in printed
    assert not recipe.with_suffix("").exists()


def test_ties_are_dropped_or_kept(
    make_text_recipe: MakeTextRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tied = [{**row, "chosen_probability": 0.5} for row in text_recipes.pairs(4, seed=3)]
    text_recipes.write_jsonl(tmp_path / "tied.jsonl", [*text_recipes.pairs(8), *tied])
    data = {"train": str(tmp_path / "tied.jsonl"), "validation": None}
    assert main(["train", "--config", str(make_text_recipe(data=data)), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "8 for training" in printed
    assert "4 ties" in printed
    soft = make_text_recipe("soft", data={**data, "ties": "soft", "soft_labels": True})
    assert main(["train", "--config", str(soft), "--dry_run"]) == 0
    assert "12 for training" in capsys.readouterr().out


def test_a_sample_of_the_data_does_not_depend_on_its_order(make_text_recipe: MakeTextRecipe, tmp_path: Path) -> None:
    pairs = text_recipes.pairs(24)
    for name, rows_ in (("forth", pairs), ("back", pairs[::-1])):
        text_recipes.write_jsonl(tmp_path / f"{name}.jsonl", rows_)
    folders = [
        train(make_text_recipe(name, data={"train": str(tmp_path / f"{name}.jsonl"), "max_train_pairs": 8}))
        for name in ("forth", "back")
    ]
    assert rows(folders[0]) == rows(folders[1])


@pytest.mark.parametrize("text", ["plain", "~~~ a fence\n~~~~~", "", "```\ncode\n```"])
def test_samples_are_fenced(text: str) -> None:
    from diffusion_feedback.workflows.training.sample_completions import fenced

    lines = fenced(text).splitlines()
    assert lines[0] == lines[-1]
    assert "\n".join(lines[1:-1]) == text
    assert lines[0] not in lines[1:-1]
