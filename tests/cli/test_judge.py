"""``dfb judge`` on tiny models: figures against numbers got another way, the page, kills, and bad input."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny_text
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from diffusion_feedback.cli.main import main
from diffusion_feedback.evaluation.judging import clustered_win_rate

REWARDS = """
def by_length(prompts, completions):
    return [float(len(c)) for c in completions]
def broken(prompts, completions):
    return [float("nan") for c in completions]
"""
TEXTS = [
    ("a red", " circle on a mat"),
    ("the cat", " ran away"),
    ("hello", " there, how are you"),
    ("bad", " worse worst"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models a and b, prompts, texts and functions."""
    folder = tmp_path_factory.mktemp("world")
    for seed, name in enumerate("ab"):
        tiny_text.save_tiny_lm(folder / name, seed=seed)
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "prompts.txt").write_text("a red circle\nthe cat sat\nhello there\ngood better\nQuestion:\n")
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in TEXTS]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(world: Path, out: Path, *more: str) -> list[str]:
    flags = ["--prompts", str(world / "prompts.txt"), "--num_samples", "3", "--max_new_tokens", "4"]
    return ["judge", str(world / "a"), str(world / "b"), *flags, "--output_dir", str(out), *more]


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def judgements(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "judgements.jsonl").read_text("utf-8").split("\n")[:-1]]


def test_the_win_rate_is_that_of_the_function(world: Path, tmp_path: Path, capsys: Any) -> None:
    spec = f"function={world / 'rewards.py'}:by_length"
    assert main(command(world, tmp_path / "out", "--judge", spec)) == 0
    rows = judgements(tmp_path / "out")
    assert len(rows) == 15
    outcomes = []
    for row in rows:
        a, b = len(row["a"]), len(row["b"])
        outcomes.append(0.5 if a == b else float(a > b))
        assert row["judges"][spec] == {"a": a, "b": b, "outcome": outcomes[-1]}
    (found,) = results(tmp_path / "out")["judges"]
    expected = clustered_win_rate(outcomes, [row["prompt"] for row in rows])
    assert (found["win_rate"]["win_rate"], found["win_rate"]["low"]) == (expected.win_rate, expected.low)
    assert found["win_rate"]["win_rate"] == pytest.approx(sum(outcomes) / 15)
    assert found["means"][0]["value"] == pytest.approx(sum(len(row["a"]) for row in rows) / 15)
    assert f"a against b by rewards:by_length: win rate {expected.win_rate:.3f}" in capsys.readouterr().out
    page = (tmp_path / "out/report.html").read_text("utf-8")
    assert "Both models draw a completion" in page
    assert "<script" not in page


def test_files_of_completions_are_judged_as_the_models_are(world: Path, tmp_path: Path) -> None:
    spec = f"function={world / 'rewards.py'}:by_length"
    assert main(command(world, tmp_path / "out", "--judge", spec)) == 0
    files = [str(tmp_path / "out/a"), str(tmp_path / "out/b/completions.jsonl")]
    assert main(["judge", *files, "--judge", spec, "--output_dir", str(tmp_path / "again")]) == 0
    assert judgements(tmp_path / "again") == judgements(tmp_path / "out")
    assert results(tmp_path / "again")["judges"] == results(tmp_path / "out")["judges"]


def test_a_model_against_itself_is_a_tie(world: Path, tmp_path: Path) -> None:
    reward = tiny_text.save_tiny_reward_model(tmp_path / "reward")
    argv = command(world, tmp_path / "out", "--judge", f"reward_model={reward}", "--names", "x", "y")
    argv[2] = argv[1]
    assert main(argv) == 0
    (found,) = results(tmp_path / "out")["judges"]
    assert (found["win_rate"]["win_rate"], found["win_rate"]["ties"]) == (0.5, 15)


def test_an_llm_judge_is_asked_in_both_orders(world: Path, tmp_path: Path) -> None:
    spelling = tiny_text.tokenizer(chat_template=tiny_text.CHATML)
    folder = tiny_text.save_tiny_lm(tmp_path / "judge", seed=5, spelling=spelling, positions=512)
    (tmp_path / "q.txt").write_text("{prompt} A: {first} B: {second}")
    spec = f"llm={folder},template={tmp_path / 'q.txt'}"
    assert main(command(world, tmp_path / "out", "--judge", spec)) == 0
    (found,) = results(tmp_path / "out")["judges"]
    said = [row["judges"][spec] for row in judgements(tmp_path / "out")]
    for verdict in said:
        agree = (verdict["a"] > 0.5) != (verdict["b"] > 0.5)
        assert verdict["outcome"] == (float(verdict["a"] > 0.5) if agree else 0.5)
    first = sum((v["a"] > 0.5) + (v["b"] > 0.5) for v in said) / 30
    assert found["position_bias"]["first_share"]["value"] == pytest.approx(first)
    contradictions = sum((v["a"] > 0.5) == (v["b"] > 0.5) for v in said) / 15
    assert found["position_bias"]["disagreement"]["value"] == pytest.approx(contradictions)
    assert "Does the judge favour a place?" in (tmp_path / "out/report.html").read_text("utf-8")


def test_perplexity_is_transformers_own(world: Path, tmp_path: Path) -> None:
    argv = ["judge", str(world / "a"), str(world / "b"), "--texts", str(world / "texts.jsonl")]
    assert main([*argv, "--output_dir", str(tmp_path / "out"), "--batch_size", "2"]) == 0
    found = results(tmp_path / "out")["fluency"]
    for name in "ab":
        model = AutoModelForCausalLM.from_pretrained(world / name, dtype=torch.float64)
        spelling = AutoTokenizer.from_pretrained(world / name)
        loss, tokens = 0.0, 0
        for prompt, completion in TEXTS:
            start = len(spelling(prompt).input_ids)
            ids = torch.tensor([[*spelling(prompt + completion).input_ids, spelling.eos_token_id]])
            labels = ids.clone()
            labels[:, :start] = -100
            count = int((labels != -100).sum())
            loss, tokens = loss + float(model(ids, labels=labels).loss.detach()) * count, tokens + count
        assert found[name]["tokens"] == tokens
        assert found[name]["perplexity"]["value"] == pytest.approx(math.exp(loss / tokens), rel=1e-4)
        size = sum(len(completion.encode()) for _, completion in TEXTS)
        assert found[name]["bits_per_byte"] == pytest.approx(loss / size / math.log(2), rel=1e-4)


def test_bits_a_byte_count_the_bytes_that_were_scored(world: Path, tmp_path: Path) -> None:
    """A text beyond the window of 128 tokens: what was cut off is in neither sum."""
    row = {"prompt": "a red", "completion": " circle on a mat" * 40}
    (tmp_path / "long.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    argv = ["judge", str(world / "a"), str(world / "b"), "--texts", str(tmp_path / "long.jsonl")]
    assert main([*argv, "--output_dir", str(tmp_path / "out")]) == 0
    found = results(tmp_path / "out")["fluency"]["a"]
    spelling = AutoTokenizer.from_pretrained(world / "a")
    start = len(spelling(row["prompt"]).input_ids)
    kept = spelling(row["prompt"] + row["completion"]).input_ids[start : start + found["tokens"] // 2]
    assert found["tokens"] < 2 * 128
    bits = math.log2(found["perplexity"]["value"]) * len(kept) / len(spelling.decode(kept).encode())
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-6)


def test_divergence_from_a_reference(world: Path, tmp_path: Path) -> None:
    argv = command(world, tmp_path / "out", "--reference", str(world / "b"))
    argv[argv.index("4")] = "1"  # one token: the divergence of one distribution, which can be summed by hand
    assert main(argv) == 0
    found = results(tmp_path / "out")["divergence"]
    assert found["b"] == {**found["b"], "kl_error": 0.0, "log_ratio": 0.0, "exact": 0.0}
    models = [AutoModelForCausalLM.from_pretrained(world / name, dtype=torch.float64) for name in "ab"]
    spelling = AutoTokenizer.from_pretrained(world / "a")
    kls: list[float] = []
    for prompt in (world / "prompts.txt").read_text().splitlines():
        ids = torch.tensor([spelling(prompt).input_ids])
        p, q = (torch.log_softmax(model(ids).logits[0, -1], -1) for model in models)
        kls.append(float((p.exp() * (p - q)).sum().detach()))
    assert found["a"]["exact"] == pytest.approx(sum(kls) / len(kls), rel=1e-5)
    # Of a single token the divergence along the way is that of its distribution.
    assert found["a"]["kl"]["value"] == pytest.approx(found["a"]["exact"], rel=1e-4)


def test_an_interrupted_command_goes_on(world: Path, tmp_path: Path) -> None:
    argv = command(world, tmp_path / "out", "--judge", f"function={world / 'rewards.py'}:by_length")
    assert main(argv) == 0
    files = (
        "a/completions.jsonl",
        "b/completions.jsonl",
        "judgements.jsonl",
        "results.json",
        "report.html",
        "README.md",
    )
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files}
    for name, kept in itertools.zip_longest(files, (0.3, 0.6), fillvalue=None):
        path = tmp_path / "out" / str(name)
        if name == "results.json":  # as it stands until all is measured
            path.write_text(json.dumps({"settings": json.loads(path.read_text())["settings"]}))
            continue
        path.unlink() if kept is None else path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert main(argv) == 0
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == before


def test_bad_input_is_refused(world: Path, tmp_path: Path, capsys: Any) -> None:
    length = f"function={world / 'rewards.py'}:by_length"
    for more, message in [
        ([], "nothing to measure"),
        (["--judge", "llm=none"], "none: could not be read as a language model that judges"),
        (["--judge", "nobody=x"], "unknown kind of judge 'nobody'"),
        (["--judge", f"function={world / 'rewards.py'}:broken"], "is nan"),
        (["--judge", length, "--tie_margin", "-1"], "--tie_margin: got -1.0"),
        (["--reference", str(world / "b"), "--top_k", "3"], "no divergence can be estimated"),
        (["--judge", length, "--names", "x", "x"], "would both be called 'x'"),
    ]:
        out = tmp_path / f"out{abs(hash(message))}"
        assert main(command(world, out, *more)) == 2
        assert message in capsys.readouterr().err
        assert not (out / "results.json").exists() or "judges" not in results(out)


def test_completions_that_do_not_match(world: Path, tmp_path: Path, capsys: Any) -> None:
    length = f"function={world / 'rewards.py'}:by_length"
    for name, samples in (("one", "1"), ("two", "2")):
        argv = ["generate", str(world / "a"), "--prompts", str(world / "prompts.txt"), "--num_samples", samples]
        assert main([*argv, "--max_new_tokens", "3", "--output_dir", str(tmp_path / name)]) == 0
    both = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert main(["judge", *both, "--judge", length, "--output_dir", str(tmp_path / "out")]) == 2
    assert "one has 5 completions, two has 10" in capsys.readouterr().err
    assert main(["judge", both[0], str(world / "b"), "--judge", length, "--output_dir", str(tmp_path / "out")]) == 2
    assert "--prompts: is not given" in capsys.readouterr().err
    argv = [
        "judge",
        both[0],
        str(world / "b"),
        "--texts",
        str(world / "texts.jsonl"),
        "--output_dir",
        str(tmp_path / "o"),
    ]
    assert main(argv) == 2
    assert "holds completions, not a model" in capsys.readouterr().err
