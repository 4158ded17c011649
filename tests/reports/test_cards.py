"""Cards of runs made up here: front matter, code and recipe can be read back, and the tables hold the metrics."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import jinja2
import pytest
import yaml
from card_snippets import snippets

from diffusion_feedback.reports.cards.writer import CardKind, TokenizerFacts, render_card

RECIPE: dict[str, Any] = {
    "model": {"pretrained_model_name_or_path": "some/base", "tuning": "lora", "revision": "main`", "variant": None},
    "data": {"train": "train.jsonl"},
    "objective": {"name": "dpo", "beta": 0.1},
    "training": {"max_train_steps": 12},
    "validation": {"prompts": ["a 'red' `circle`"]},
    "rollouts": {"max_new_tokens": 9, "reward": "function=rewards.py:length"},
}
METRICS = ("accuracy", "loss", "error/chosen_change", "error/rejected_change", "nll", "losses/q", "losses/v", "losses/cql", "values/v", "margin", "mean_reward", "scores", "finished", "mean_length")  # fmt: skip
EVALUATED = {"step": 12} | {f"validation/{name}": 0.25 for name in METRICS}
EVALUATED |= {"validation/accuracy_low": 0.125, "validation/accuracy_high": 0.5}
HEADINGS = {
    "diffusion": "| step | implicit accuracy (95 % interval) | chosen error, change | rejected error, change |",
    "scorer": "| step | accuracy (95 % interval) | loss |",
    "language_model": "| step | change of the chosen | perplexity | accuracy (95 % interval) | loss | log-ratio per token |",
    "reward_model": "| step | accuracy (95 % interval) | loss | margin | mean reward |",
    "policy_gradient": "| step | reward | KL | ended | tokens |",
    "value_learning": "| step | nll | Q | V | CQL | mean V |",
}
ROWS = {
    "diffusion": "| 12 | 0.250 (0.125 to 0.500) | +2.50e-01 | +2.50e-01 |",
    "scorer": "| 12 | 0.250 (0.125 to 0.500) | 0.2500 |",
    "language_model": "| 12 | - | - | 0.250 (0.125 to 0.500) | 0.2500 | - |",
    "reward_model": "| 12 | 0.250 (0.125 to 0.500) | 0.2500 | +0.250 | +0.250 |",
    "policy_gradient": "| 12 | 0.250 | - | 0.25 | 0.2 |",
    "value_learning": "| 12 | 0.2500 | 0.2500 | 0.2500 | 0.2500 | 0.2500 |",
}
KINDS: tuple[CardKind, ...] = get_args(CardKind)


def facts_of(kind: str) -> Iterator[dict[str, object]]:
    """What a card of ``kind`` may be told."""
    if kind == "diffusion":
        yield {}
    elif kind == "scorer":
        yield {"logit_scale": 98.7654}
    else:
        every = itertools.product((False, True), (False, True), (None, "<pad>"), ((), (2, 9)))
        for is_chat, adds_end, pad_token, ends in every:
            tokenizer = TokenizerFacts(adds_end=adds_end, has_types=is_chat, pad_token=pad_token, end_token_ids=ends)
            yield {"is_chat": is_chat, "tokenizer": tokenizer, "is_heldout": True}


def card(kind: CardKind, folder: Path, metrics: list[Mapping[str, Any]], **facts: object) -> str:
    folder.mkdir(exist_ok=True)
    page = render_card(kind, folder, RECIPE, metrics, effective_batch=8, **facts)
    (folder / "README.md").write_text(page, "utf-8")
    return page


@pytest.mark.parametrize("is_adapter", [False, True], ids=["whole", "adapter"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_card_holds_can_be_read_back(kind: CardKind, is_adapter: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if is_adapter:
        (folder / "adapter_config.json").write_text("{}")
    for facts in facts_of(kind):
        page = card(kind, folder, [{"step": 1, "loss": 0.5}, EVALUATED], **facts)
        front = yaml.safe_load(page.split("---\n")[1])
        assert front["base_model"] == "some/base"
        assert front["tags"][-1] == "dpo"
        assert yaml.safe_load(page[page.index("```yaml\n") + 8 :].removesuffix("```\n")) == RECIPE
        [code] = snippets(folder / "README.md")
        strings = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
        assert str(folder) in strings
        assert "\n\n\n" not in re.sub(r"```python.*?```", "code", page, flags=re.DOTALL)
        lines = page.splitlines()
        assert lines[lines.index(HEADINGS[kind]) + 1] == "|---|" + "---|" * (HEADINGS[kind].count("|") - 2)
        assert lines[lines.index(HEADINGS[kind]) + 2] == ROWS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_without_evaluation_says_so(kind: CardKind, tmp_path: Path) -> None:
    page = card(kind, tmp_path / "run", [{"step": 1, "loss": 0.5}], **next(facts_of(kind)))
    assert re.search(r"^No (held-out \w+ were given|completions were drawn)\.$", page, re.MULTILINE)
    assert HEADINGS[kind] not in page


def test_paths_and_prompts_are_code_wherever_it_is_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is named in full and a hub id as it is; quotes and backticks end neither the text nor the block."""
    monkeypatch.chdir(tmp_path)
    page = card("diffusion", Path("run"), [])
    assert f"load_lora_weights('{tmp_path / 'run'}')" in page
    assert "from_pretrained('some/base', dtype=torch.float32, revision='main\\x60')" in page
    assert "pipeline(\"a 'red' \\x60circle\\x60\", generator" in page


def test_a_fact_that_is_missing_stops_the_card(tmp_path: Path) -> None:
    with pytest.raises(jinja2.UndefinedError, match="logit_scale"):
        card("scorer", tmp_path / "run", [])
    assert not (tmp_path / "run" / "README.md").exists()
