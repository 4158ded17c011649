"""What cards of texts show runs as it stands; a reward model gives every reader the score it was trained to; chats end."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import card_snippets
import pytest
import text_recipes
import tiny_text
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from diffusion_feedback.cli.main import main
from diffusion_feedback.models import causal_lm
from diffusion_feedback.models.end_tokens import adds_end, closing_token_id, padding_token
from diffusion_feedback.scorers.texts.loading import load_text_scorer

LORA = {"tuning": "lora", "lora_rank": 2}
FULL = {"tuning": "full"}
SHORT = {"max_train_steps": 2, "train_batch_size": 4, "checkpointing_steps": 2, "learning_rate": 1e-2}


def train(recipe: Path) -> Path:
    assert main(["train", "--config", str(recipe)]) == 0
    return recipe.with_suffix("")


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], str]:
    """The names that the card's lines leave behind where they are run from any folder, and what they print."""
    printed, elsewhere = io.StringIO(), folder.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    with monkeypatch.context() as inside, contextlib.redirect_stdout(printed):
        names = card_snippets.run_snippet(folder / "README.md", elsewhere, inside)
    return names, printed.getvalue()


def chats(folder: Path) -> None:
    """The pairs of ``text_recipes``, said in turns."""
    for name, seed, count in (("train", 0, 12), ("validation", 1, 6)):
        rows = [
            {
                "prompt": [{"role": "user", "content": pair["prompt"]}],
                **{side: [{"role": "assistant", "content": pair[side].strip()}] for side in ("chosen", "rejected")},
            }
            for pair in text_recipes.pairs(count, seed=seed)
        ]
        text_recipes.write_jsonl(folder / f"{name}.jsonl", rows)


def byte_level(special: list[str], *, begins: bool = False, **named: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE, as of GPT-2, Llama 3 and Qwen."""
    spelling = Tokenizer(models.BPE())
    spelling.pre_tokenizer, spelling.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    spelling.train_from_iterator(tiny_text.CORPUS, trainer)
    if begins:
        spelling.post_processor = TemplateProcessing(single=f"{special[0]} $A", special_tokens=[(special[0], 0)])
    return PreTrainedTokenizerFast(tokenizer_object=spelling, **named)


def unigram() -> PreTrainedTokenizerFast:
    """As rinna's: unknown, padding and end tokens, and the end token comes behind every text by itself."""
    spelling = Tokenizer(models.Unigram())
    spelling.pre_tokenizer, spelling.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", "[PAD]"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    spelling.train_from_iterator(tiny_text.CORPUS, trainer)
    spelling.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=spelling, unk_token="<unk>", eos_token="</s>", bos_token="<s>")


END = "<|endoftext|>"
TOKENIZERS: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], str]] = {
    "gpt2": (lambda: byte_level([END], bos_token=END, eos_token=END, unk_token=END), "ÿ"),
    "llama3": (
        lambda: byte_level(
            ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|eot_id|>"],
            begins=True,
            bos_token="<|begin_of_text|>",
            eos_token="<|end_of_text|>",
        ),
        "<|reserved_special_token_0|>",
    ),
    "rinna": (unigram, "[PAD]"),
    "qwen": (
        lambda: byte_level([END, "<|im_start|>", "<|im_end|>"], eos_token=END, pad_token=END),
        "<|im_start|>",
    ),
}


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_reward_model_is_read_alike_by_everybody(
    kind: str, tuning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spelling = TOKENIZERS[kind][0]()
    family: Any = "gpt2" if kind == "gpt2" else "llama"
    ends = {"eos_token_id": spelling.eos_token_id, "pad_token_id": spelling.eos_token_id}  # as many bases have it
    base = tiny_text.save_tiny_lm(tmp_path / "base", family=family, spelling=spelling, **ends)
    changes = {"family": "reward_model", **(LORA if tuning == "lora" else FULL)}
    recipe = text_recipes.write_recipe(
        tmp_path,
        base,
        model=changes,
        objective={"name": "bradley_terry"},
        validation=None,
        rollouts=None,
        training=SHORT,
    )
    folder = train(recipe)
    names, _ = run_card(folder, monkeypatch)
    model, tokenizer = names["model"], names["tokenizer"]
    texts = ["a red circle", "a small green square on a white background", "the cat", "hello there, how are you"]
    end = "" if adds_end(tokenizer) else tokenizer.eos_token
    with torch.no_grad():
        alone = [float(model(**tokenizer(text + end, return_tensors="pt")).logits[0, 0]) for text in texts]
        batch = tokenizer([text + end for text in texts], padding=True, padding_side="right", return_tensors="pt")
        padded = model(**batch).logits[:, 0].tolist()
    ours = load_text_scorer(f"reward_model={folder}").score([""] * len(texts), texts)
    assert max(ours) - min(ours) > 1e-3
    assert alone == pytest.approx(ours, abs=1e-5)
    assert padded == pytest.approx(ours, abs=1e-5)
    shown = load_text_scorer(f"reward_model={folder}").score(
        ["your prompt and "] * 2, ["a completion", "another, longer completion"]
    )
    assert names["scores"].tolist() == pytest.approx(shown, abs=1e-5)
    if tuning == "full":
        plain = AutoModelForSequenceClassification.from_pretrained(folder)
        assert plain.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize(("kind", "expected"), [(kind, token) for kind, (_, token) in TOKENIZERS.items()])
def test_padding_ends_no_text(kind: str, expected: str) -> None:
    tokenizer = TOKENIZERS[kind][0]()
    if kind == "rinna":
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert padding_token(tokenizer, len(tokenizer)) == expected
    # What the model has no row for cannot be padding, nor what a template closes with.
    assert padding_token(tokenizer, 0) is None
    chat = tiny_text.tokenizer(pad=False, chat_template=tiny_text.CHATML)
    assert padding_token(chat, len(chat)) not in (tiny_text.EOS, tiny_text.END_OF_TURN, tiny_text.BOS, None)


def test_a_reward_model_of_conversations_shows_its_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_text.save_tiny_lm(tmp_path / "base")
    chats(tmp_path)
    recipe = text_recipes.write_recipe(
        tmp_path,
        base,
        model={"family": "reward_model", **FULL},
        objective={"name": "bradley_terry"},
        validation=None,
        rollouts=None,
        training=SHORT,
    )
    folder = train(recipe)
    names, _ = run_card(folder, monkeypatch)
    prompt = [{"role": "user", "content": "your prompt"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("a completion", "another, longer completion")]
    ours = load_text_scorer(f"reward_model={folder}").score([prompt] * 2, answers)
    assert names["scores"].tolist() == pytest.approx(ours, abs=1e-5)


@pytest.mark.parametrize(
    ("objective", "tuning", "chat"),
    [
        ({"name": "sft"}, FULL, False),
        ({"name": "sft"}, LORA, True),
        ({"name": "sft"}, {**LORA, "dtype": "bfloat16"}, False),
        ({"name": "dpo", "beta": 0.1}, FULL, True),
        ({"name": "dpo", "beta": 0.1}, LORA, False),
    ],
    ids=["sft_full", "sft_lora_chat", "sft_lora_bf16", "dpo_full_chat", "dpo_lora"],
)
def test_the_card_of_a_language_model_runs(
    objective: dict[str, Any],
    tuning: dict[str, Any],
    chat: bool,
    tmp_path: Path,
    tiny_lm: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if chat:
        chats(tmp_path)
    precision = {"mixed_precision": "bf16"} if "dtype" in tuning else {}
    recipe = text_recipes.write_recipe(
        tmp_path, tiny_lm, model=tuning, objective=objective, training={**SHORT, **precision}
    )
    folder = train(recipe)
    names, printed = run_card(folder, monkeypatch)
    tokenizer = names["tokenizer"]
    start = "<|im_start|>user\nyour prompt<|im_end|>\n<|im_start|>assistant\n" if chat else "<s>your prompt"
    assert printed.startswith(start)
    closing = tokenizer.convert_tokens_to_ids(tiny_text.END_OF_TURN)
    new = names["output"][0, names["inputs"]["input_ids"].shape[1] :].tolist()
    assert not {tokenizer.eos_token_id, closing} & set(new[:-1])  # either ends it


@pytest.mark.parametrize("tuning", [FULL, LORA], ids=["full", "lora"])
def test_the_card_of_ppo_runs(
    tuning: dict[str, Any], tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rewards.py").write_text(
        "def length(prompts, completions):\n    return [len(c) for c in completions]\n"
    )
    rollouts = {"reward": f"function={tmp_path / 'rewards.py'}:length", "max_new_tokens": 5, "num_prompts": 4}
    recipe = text_recipes.write_recipe(
        tmp_path,
        tiny_lm,
        model=tuning,
        objective={"name": "ppo"},
        rollouts={**rollouts, "num_generations": 2, "num_ppo_epochs": 1, "num_mini_batches": 1},
        training=SHORT,
    )
    _, printed = run_card(train(recipe), monkeypatch)
    assert printed.startswith("<s>your prompt")


@pytest.mark.parametrize(("tuning", "chat"), [(FULL, False), (LORA, True)], ids=["full_plain", "lora_chat"])
def test_the_card_of_value_learning_runs(
    tuning: dict[str, Any], chat: bool, tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {
            "messages": [{"role": "user", "content": f"go {n}"}, {"role": "assistant", "content": "a cat"}],
            "reward": n % 2,
        }
        if chat
        else {"prompt": f"go {n}:", "completion": " a cat", "reward": n % 2}
        for n in range(8)
    ]
    text_recipes.write_jsonl(tmp_path / "train.jsonl", rows)
    recipe = text_recipes.write_recipe(
        tmp_path,
        tiny_lm,
        model=tuning,
        data={"validation": None},
        objective={"name": "ilql"},
        validation=None,
        rollouts=None,
        training=SHORT,
    )
    names, printed = run_card(train(recipe), monkeypatch)
    assert len(names["completions"]) == 1
    assert printed.startswith("[")


def test_a_chat_that_was_learnt_ends_with_every_reader(tmp_path: Path) -> None:
    """The template closes a turn with a token that the base's settings do not name as an end."""
    base = tiny_text.save_tiny_lm(tmp_path / "base", initializer_range=0.1)
    questions = {"2+2?": "four", "sky?": "the blue sky", "cat?": "a cat ran"}
    rows = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]}
        for ask, say in questions.items()
    ]
    text_recipes.write_jsonl(tmp_path / "train.jsonl", rows)
    steps = {"max_train_steps": 60, "train_batch_size": 3, "checkpointing_steps": 60, "learning_rate": 1e-2}
    recipe = text_recipes.write_recipe(
        tmp_path,
        base,
        data={"validation": None},
        objective={"name": "sft"},
        training=steps,
        validation={"num_prompts": 0},
    )
    folder = train(recipe)
    ours = causal_lm.load(str(folder))
    closing = closing_token_id(ours.tokenizer)
    assert closing == ours.tokenizer.convert_tokens_to_ids(tiny_text.END_OF_TURN)
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert plain.generation_config.eos_token_id == list(ours.end_token_ids) == [tokenizer.eos_token_id, closing]
    for ask, say in questions.items():
        turns = [{"role": "user", "content": ask}]
        inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        wanted = [*tokenizer(say, add_special_tokens=False).input_ids, closing]
        prompt = inputs["input_ids"][0].tolist()
        assert ours.sample(ours.network, [prompt], [0], max_new_tokens=30, temperature=0) == [wanted]
        with torch.no_grad():
            output = plain.generate(**inputs, max_new_tokens=30, do_sample=False)
        assert output[0, len(prompt) :].tolist() == wanted


def test_adapters_name_their_base_in_full_and_over_adapters_they_are_whole_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part of a path, read from elsewhere, could be the name of a stranger's model on the hub."""
    base = tiny_text.save_tiny_lm(tmp_path / "models" / "base")
    monkeypatch.chdir(tmp_path)
    first = train(
        text_recipes.write_recipe(
            tmp_path, Path("models/base"), "first", model=LORA, objective={"name": "sft"}, training=SHORT
        )
    )
    config = json.loads((first / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    monkeypatch.chdir(elsewhere)
    assert causal_lm.load(str(first)).is_merged
    config["base_model_name_or_path"] = "../models/base"  # as seen from the adapter's folder
    (first / "adapter_config.json").write_text(json.dumps(config))
    assert causal_lm.load(str(first)).is_merged
    capsys.readouterr()
    second = train(
        text_recipes.write_recipe(tmp_path, first, "second", model=LORA, objective={"name": "sft"}, training=SHORT)
    )
    assert (
        "over another adapter, which is merged: the result is a whole model, 0 MiB in float32"
        in capsys.readouterr().out
    )
    assert (second / "model.safetensors").is_file()
    assert not (second / "adapter_config.json").exists()
    assert run_card(second, monkeypatch)[1].startswith("<s>your prompt")
