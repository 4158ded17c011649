"""``dfb generate`` on tiny language models: what is written, that it is what the model draws, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_text
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from diffusion_feedback.cli.main import main

SHORT = ["--max_new_tokens", "5"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.save_tiny_lm(tmp_path_factory.mktemp("lm"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"prompt": "a red circle", "chosen": "x", "rejected": "y"},
        {"prompt": "the cat sat on the mat and the dog", "chosen": "x", "rejected": "y"},
        {"prompt": "a red circle", "chosen": "x", "rejected": "z"},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "completions.jsonl").read_text("utf-8").split("\n")[:-1]]


def test_completions_of_each_prompt(tmp_path: Path, model: Path, prompts: Path, capsys: Any) -> None:
    command = ["generate", str(model), "--prompts", str(prompts), "--num_samples", "3", *SHORT, "--output_dir"]
    assert main([*command, str(tmp_path / "a"), "--batch_size", "1"]) == 0
    assert "6 completions of 2 prompts" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "b"), "--batch_size", "4"]) == 0
    first, second = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    assert [(row["prompt_index"], row["sample"]) for row in first] == [(p, n) for p in range(2) for n in range(3)]
    assert [row["token_ids"] for row in first] == [row["token_ids"] for row in second]
    assert len({tuple(row["token_ids"]) for row in first}) > 3
    spelling = AutoTokenizer.from_pretrained(model)
    for row in first:
        assert row["completion"] == spelling.decode(row["token_ids"], skip_special_tokens=True)
        assert row["is_finished"] == (spelling.eos_token_id in row["token_ids"])
        assert row["settings"] == {
            "max_new_tokens": 5, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "dtype": "float32",
        }  # fmt: skip


def test_the_likeliest_completion_is_transformers_own(tmp_path: Path, model: Path, prompts: Path) -> None:
    command = ["generate", str(model), "--prompts", str(prompts), "--temperature", "0", *SHORT]
    assert main([*command, "--output_dir", str(tmp_path / "out")]) == 0
    plain, spelling = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    for row in rows_of(tmp_path / "out"):
        ids = torch.tensor([spelling(row["prompt"]).input_ids])
        for token in row["token_ids"]:
            assert int(plain(ids).logits[0, -1].argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], 1)


def test_conversations_and_lines_of_text(tmp_path: Path, model: Path) -> None:
    (tmp_path / "turns.jsonl").write_text(json.dumps({"prompt": [{"role": "user", "content": "hello there"}]}) + "\n")
    (tmp_path / "lines.txt").write_text("hello there\nthe cat\n")
    for name, count in (("turns.jsonl", 1), ("lines.txt", 2)):
        out = tmp_path / name.partition(".")[0]
        command = ["generate", str(model), "--prompts", str(tmp_path / name), *SHORT, "--output_dir", str(out)]
        assert main(command) == 0
        assert len(rows_of(out)) == count
    assert rows_of(tmp_path / "turns")[0]["prompt"] == [{"role": "user", "content": "hello there"}]
    # The same words, once as a turn of a conversation and once as they are: another prompt, another draw.
    assert rows_of(tmp_path / "turns")[0]["token_ids"] != rows_of(tmp_path / "lines")[0]["token_ids"]


def test_an_interrupted_run_goes_on(tmp_path: Path, model: Path, prompts: Path) -> None:
    command = ["generate", str(model), "--prompts", str(prompts), "--num_samples", "3", *SHORT, "--batch_size", "2"]
    assert main([*command, "--output_dir", str(tmp_path / "a")]) == 0
    (tmp_path / "b").mkdir()
    whole = (tmp_path / "a/completions.jsonl").read_bytes()
    (tmp_path / "b/completions.jsonl").write_bytes(whole[: len(whole) // 2])
    assert main([*command, "--output_dir", str(tmp_path / "b")]) == 0
    assert (tmp_path / "b/completions.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_inference_steps", "5"], "--num_inference_steps: means nothing for"),
        (["--lora", "x"], "--lora: means nothing for"),
        (["--num_samples", "0"], "--num_samples: got 0"),
        (["--temperature", "-1"], "--temperature: got -1.0"),
        (["--top_p", "0"], "--top_p: got 0.0"),
        (["--max_new_tokens", "128"], "leave no room for a prompt in the model's window of 128"),
        (["--family", "sd"], "not a diffusers pipeline"),
        (["--device", "cuda:77"], "--device cuda:77: cannot be used"),
        (["--chat_template", "nowhere.jinja"], "nowhere.jinja"),
    ],
)
def test_bad_flags_are_refused(
    tmp_path: Path, model: Path, prompts: Path, flags: list[str], message: str, capsys: Any
) -> None:
    command = ["generate", str(model), "--prompts", str(prompts), "--output_dir", str(tmp_path / "out"), *flags]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_flags_of_texts_are_refused_for_images(tmp_path: Path, tiny_pipelines: dict[str, Path], capsys: Any) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    command = ["generate", str(tiny_pipelines["sd"]), "--prompts", str(tmp_path / "p.txt"), "--num_samples", "2"]
    assert main([*command, "--output_dir", str(tmp_path / "out")]) == 2
    assert "--num_samples: means nothing for" in capsys.readouterr().err


def test_completions_of_another_model_are_kept_apart(tmp_path: Path, model: Path, prompts: Path, capsys: Any) -> None:
    other = tiny_text.save_tiny_lm(tmp_path / "other", seed=1)
    command = ["--prompts", str(prompts), *SHORT, "--output_dir", str(tmp_path / "out")]
    assert main(["generate", str(model), *command]) == 0
    assert main(["generate", str(other), *command]) == 2
    assert "holds completions of model" in capsys.readouterr().err
    assert main(["generate", str(other), *command, "--overwrite"]) == 0


def test_what_is_no_language_model_is_told(tmp_path: Path, prompts: Path, capsys: Any) -> None:
    judge = tiny_text.save_tiny_reward_model(tmp_path / "judge")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (judge, "a reward model or classifier, which writes no texts"),
        (tmp_path / "empty", "holds none of model_index.json, config.json, adapter_config.json"),
        (tmp_path / "none", "no such folder"),
    ):
        command = ["generate", str(path), "--prompts", str(prompts), "--output_dir", str(tmp_path / "out")]
        assert main([*command, "--max_new_tokens", "2"]) == 2
        assert message in capsys.readouterr().err
    assert main(["generate", "runs/none", *command[2:], "--max_new_tokens", "2"]) == 2
    assert "means nothing for runs/none, which is no folder here" in capsys.readouterr().err


def test_completions_do_not_land_beside_something_else(tmp_path: Path, model: Path, prompts: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.yaml").write_text("mine")
    command = ["generate", str(model), "--prompts", str(prompts), *SHORT, "--output_dir", str(tmp_path / "out")]
    assert main([*command, "--overwrite"]) == 2
    assert "is there and holds recipe.yaml" in capsys.readouterr().err
