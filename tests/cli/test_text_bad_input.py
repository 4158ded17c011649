"""Bad input to ``dfb train`` on texts: a clear error that names what is wrong, exit code 2, and nothing half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import text_recipes
import tiny_text
from text_recipes import MakeTextRecipe

from diffusion_feedback.cli.main import main

Rows = list[dict[str, Any]]
GOOD = text_recipes.pairs(8)


def with_row(**changes: Any) -> Rows:
    """Eight good pairs, the third with changes; a column that is None is left out."""
    row = {name: value for name, value in {**GOOD[2], **changes}.items() if value is not None}
    return [*GOOD[:2], row, *GOOD[3:]]


def refused(recipe: Path, capsys: pytest.CaptureFixture[str], named: list[str], *flags: str) -> str:
    """Check that the run is refused with all of ``named`` in the message, and that nothing was written."""
    assert main(["train", "--config", str(recipe), *flags]) == 2
    message = capsys.readouterr().err
    for word in named:
        assert word in message
    assert "->" in message, "the message says what to do"
    assert not recipe.with_suffix("").exists()
    return message


TURNS = [{"role": "user", "content": "hello"}]
ANSWERS = ([{"role": "assistant", "content": "good"}], [{"role": "assistant", "content": "bad"}])
CHAT = [
    {"prompt": [{"role": "user", "content": f"hello {i}"}], "chosen": ANSWERS[0], "rejected": ANSWERS[1]}
    for i in range(8)
]
BAD_ROWS: dict[str, tuple[Rows, list[str]]] = {
    "empty completion": (with_row(chosen=""), ["line 3", "chosen", "empty"]),
    "identical sides": (with_row(rejected=GOOD[2]["chosen"]), ["line 3", "same"]),
    "a number": (with_row(rejected=7), ["line 3", "rejected"]),
    "a list of numbers": (with_row(chosen=[1, 2]), ["line 3", "chosen"]),
    "null": ([*with_row(prompt=None), {"prompt": None, "chosen": "a", "rejected": "b"}], ["line", "prompt"]),
    "a turn without a role": (with_row(chosen=[{"content": "yes"}]), ["line 3", "chosen"]),
    "prompts alone": ([{"prompt": row["prompt"]} for row in GOOD], ["bad.jsonl", "prompts alone"]),
    "unknown columns": ([{"headline": "a", "body": "b"}], ["bad.jsonl", "headline"]),
    "no rejected": ([{"prompt": "a", "completion": f"b{i}"} for i in range(8)], ["line 1", "rejected", "sft"]),
    "labels where pairs are needed": (
        [{"prompt": "a", "completion": f"b{i}", "label": bool(i % 2)} for i in range(8)],
        ["line 1", "label", "kto"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows(
    case: str, make_text_recipe: MakeTextRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, named = BAD_ROWS[case]
    text_recipes.write_jsonl(tmp_path / "bad.jsonl", rows)
    recipe = make_text_recipe(data={"train": str(tmp_path / "bad.jsonl"), "validation": None})
    refused(recipe, capsys, ["bad.jsonl", *named])


def test_bad_rows_are_skipped_counted_and_listed(
    make_text_recipe: MakeTextRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that the reader finds, and those that only show as tokens."""
    rows = [*with_row(chosen=""), {**GOOD[0], "chosen": "same", "rejected": "same"}, {**GOOD[1], "rejected": 7}]
    text_recipes.write_jsonl(tmp_path / "bad.jsonl", rows)
    data = {"train": str(tmp_path / "bad.jsonl"), "validation": None, "on_bad_row": "skip"}
    assert main(["train", "--config", str(make_text_recipe(data=data, training={"max_train_steps": 1}))]) == 0
    printed = capsys.readouterr().out
    assert "3 bad rows skipped" in printed
    for line in ("line 3", "line 9", "line 10"):
        assert line in printed


@pytest.mark.parametrize(
    ("spelling", "rows", "text", "named"),
    [
        ({"eos": False}, GOOD, {}, ["line 1", "end token"]),
        ({}, CHAT, {}, ["line 1", "chat template"]),
        ({"chat_template": tiny_text.DROPS_ASSISTANT}, CHAT, {}, ["line 1", "template"]),
        ({"chat_template": tiny_text.COUNTS_TURNS}, CHAT, {}, ["line 1", "template"]),
        ({"chat_template": "{% for m in messages %}{{ m.none.such }}{% endfor %}"}, CHAT, {}, ["line 1", "template"]),
        ({}, GOOD, {"max_length": 500}, ["text.max_length", "500", "128 tokens"]),
        ({}, GOOD, {"chat_template": "none.jinja"}, ["none.jinja"]),
    ],
)
def test_tokenizers_that_lack_something(
    make_text_recipe: MakeTextRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    spelling: dict[str, Any], rows: Rows, text: dict[str, Any], named: list[str],
) -> None:  # fmt: skip
    model = tiny_text.save_tiny_lm(tmp_path / "lm", spelling=tiny_text.tokenizer(**spelling))
    text_recipes.write_jsonl(tmp_path / "rows.jsonl", rows)
    data = {"train": str(tmp_path / "rows.jsonl"), "validation": None}
    recipe = make_text_recipe(model={"pretrained_model_name_or_path": str(model)}, data=data, text=text)
    refused(recipe, capsys, named)


@pytest.mark.parametrize("spelling", [{"pad": False}, {"pad": False, "bos": False}, {"pad_is_eos": True}])
def test_no_padding_token_is_needed(make_text_recipe: MakeTextRecipe, tmp_path: Path, spelling: dict[str, Any]) -> None:
    model = tiny_text.save_tiny_lm(tmp_path / "lm", spelling=tiny_text.tokenizer(**spelling))
    path = {"pretrained_model_name_or_path": str(model)}
    assert main(["train", "--config", str(make_text_recipe(model=path, training={"max_train_steps": 1}))]) == 0


def test_prompts_longer_than_the_window_are_cut_and_told(
    make_text_recipe: MakeTextRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = with_row(prompt="the cat sat on the mat " * 60)
    text_recipes.write_jsonl(tmp_path / "long.jsonl", rows)
    data = {"train": str(tmp_path / "long.jsonl"), "validation": None}
    assert main(["train", "--config", str(make_text_recipe(data=data, training={"max_train_steps": 1}))]) == 0
    printed = capsys.readouterr().out
    assert "1 prompt was cut" in printed
    assert "128 in the longest example" in printed


SETTINGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "image keys": ({"data": {"resolution": 64}}, ["data.resolution", "means nothing for a model of texts"]),
    "flips": ({"data": {"random_flip": True}}, ["data.random_flip", "means nothing"]),
    "crops": ({"data": {"random_crop": True}}, ["data.random_crop", "means nothing"]),
    "cache": ({"data": {"cache": False}}, ["data.cache", "means nothing"]),
    "streaming": ({"data": {"streaming": True}}, ["data.streaming", "means nothing"]),
    "timesteps": ({"training": {"timestep_range": [0.0, 0.5]}}, ["training.timestep_range"]),
    "guidance": ({"validation": {"guidance_scale": 2.0}}, ["validation.guidance_scale", "means nothing"]),
    "image objective": ({"objective": {"name": "pickscore"}}, ["'pickscore' cannot tune", "'causal_lm'", "dpo"]),
    "reward objective": ({"objective": {"name": "bradley_terry"}}, ["'bradley_terry' cannot tune"]),
    "the default of images": ({"objective": None}, ["beta 5000", "{name: dpo, beta: 0.1}"]),
    "soft labels": ({"data": {"soft_labels": True}, "objective": {"name": "ipo", "beta": 0.1}}, ["soft_labels"]),
    "soft ties": ({"data": {"ties": "soft"}}, ["data.ties", "soft_labels: true"]),
    "sides": ({"text": {"share_prompt": True}, "objective": {"name": "sft"}}, ["text.share_prompt", "'sft'"]),
    "tails": ({"text": {"tail_weight": 0.5}, "objective": {"name": "kto", "beta": 0.1}}, ["text.tail_weight", "'kto'"]),
    "a tail too heavy": ({"text": {"tail_weight": 1.5}}, ["text.tail_weight", "1.5", "0 to 1"]),
    "no length": ({"text": {"max_length": 1}}, ["text.max_length", "2 or more"]),
    "no budget": ({"text": {"max_tokens_per_pass": 0}}, ["text.max_tokens_per_pass", "1 or more"]),
    "no reference to cache": (
        {"text": {"cache_reference": True}, "objective": {"name": "sft"}}, ["text.cache_reference", "no reference"]
    ),
    "a reference for nothing": (
        {"model": {"reference_model_name_or_path": "x"}, "objective": {"name": "sft"}},
        ["model.reference_model_name_or_path", "no reference"],
    ),
    "kto's mismatched completions": (
        {"text": {"cache_reference": True}, "objective": {"name": "kto", "beta": 0.1}}, ["text.cache_reference", "'kto'"]
    ),
    "beta": ({"objective": {"name": "dpo", "beta": -1}}, ["objective.beta", "-1"]),
    "adapters of nothing": (
        {"model": {"tuning": "lora", "lora_targets": ["to_q"]}}, ["model.lora_targets", "to_q", "attention"]
    ),
    "a judge of nothing": ({"rollouts": {"reward": "function=a:b"}}, ["rollouts.reward", "means nothing", "'dpo'"]),
    "no layers": ({"model": {"tuning": "lora", "lora_targets": []}}, ["model.lora_targets", "one name"]),
    "adapters without effect": ({"model": {"tuning": "lora", "lora_alpha": 0}}, ["model.lora_alpha", "above 0"]),
    "a seed too large": ({"training": {"seed": 2**64}}, ["training.seed", "2^63"]),
    "a batch too large": ({"training": {"train_batch_size": 25}}, ["25", "24"]),
    "no such data": ({"data": {"train": "none.jsonl"}}, ["none.jsonl", "no such file"]),
    "no such model": ({"model": {"pretrained_model_name_or_path": "./none"}}, ["./none", "no such folder"]),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_bad_settings(case: str, make_text_recipe: MakeTextRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    changes, named = SETTINGS[case]
    refused(make_text_recipe(**changes), capsys, named)


REWARD = {
    "model": {"family": "reward_model"},
    "objective": {"name": "bradley_terry"},
    "validation": None,
    "rollouts": None,
}
REWARD_SETTINGS: dict[str, tuple[list[str], list[str]]] = {
    "dpo": (["--objective", '{"name": "dpo", "beta": 0.1}'], ["'dpo' cannot tune", "'reward_model'", "bradley_terry"]),
    "samples": (["--validation.prompts", "[hello]"], ["validation.prompts", "a reward model"]),
    "rollouts": (["--rollouts.max_new_tokens", "5"], ["rollouts.max_new_tokens", "a reward model"]),
    "sides": (["--text.share_prompt", "true"], ["text.share_prompt"]),
    "reference": (["--text.cache_reference", "true"], ["text.cache_reference", "no reference"]),
    "centring": (["--objective.center_rewards_coefficient", "-1"], ["center_rewards_coefficient", "0 or more"]),
    "misspelt": (["--objective.centre_rewards_coefficient", "1"], ["did you mean 'center_rewards_coefficient'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REWARD_SETTINGS)
def test_bad_settings_of_reward_models(
    case: str, make_text_recipe: MakeTextRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, named = REWARD_SETTINGS[case]
    refused(make_text_recipe(**REWARD), capsys, named, *flags)


def test_heldout_examples_must_be_others(
    make_text_recipe: MakeTextRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_text_recipe(data={"validation": str(tmp_path / "train.jsonl")})
    refused(recipe, capsys, ["24 of its 24 examples are training examples too"])


def test_a_reference_of_another_vocabulary(
    make_text_recipe: MakeTextRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_text.save_tiny_lm(tmp_path / "other", spelling=tiny_text.tokenizer(vocab_size=300))
    refused(make_text_recipe(model={"reference_model_name_or_path": str(other)}), capsys, [str(other), "vocabulary"])


def test_each_family_wants_its_own_folder(
    make_text_recipe: MakeTextRecipe, tiny_pipelines: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = make_text_recipe(model={"pretrained_model_name_or_path": str(tiny_pipelines["sd"])})
    refused(wrong, capsys, ["is a diffusers pipeline"])


def test_image_recipes_take_no_text_settings(make_recipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    refused(
        make_recipe(), capsys, ["text.max_length", "means nothing for a model of images"], "--text.max_length", "64"
    )


def test_resuming_with_other_texts_is_refused(
    make_text_recipe: MakeTextRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_text_recipe(training={"max_train_steps": 2})
    assert main(["train", "--config", str(recipe)]) == 0
    (recipe.with_suffix("") / "README.md").unlink()
    text_recipes.write_jsonl(tmp_path / "train.jsonl", text_recipes.pairs(24, seed=7))
    assert main(["train", "--config", str(recipe), "--resume"]) == 2
    assert "--resume with another examples" in capsys.readouterr().err
