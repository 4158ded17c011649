"""The model cards of finished runs on texts: a tuned language model, and a reward model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...records import atomic_write
from ...training.run_folder import RunFolder
from ...types import GenerativeTextModel, TextModel, Tokenizer
from .model import folder_section
from .text_snippets import judging, writing

_HEAD = """---
library_name: {library}
base_model: {base}
tags:
- {kind}
- {tuning}
- {objective}
---

# {title}

"""

CARD = """{base} tuned with `{objective}` on {data}, {steps} optimizer steps of {batch} examples.

## Use

```python
{code}
```

## Held-out texts

{heldout}

Change is what the chosen completions have gained in log-likelihood (nats each), {against}. Where it is negative, they have
become less likely; a loss on pairs falls even so, as long as the rejected ones fall faster. Lower the learning rate, raise
beta, or add a term on the chosen completion. Perplexity is that of the chosen completions, per token.
{accuracy}
"""

_ACCURACY = """
Accuracy says how often the implicit reward prefers the completion that held-out labels prefer, ties half.
"""

REWARD_CARD = """A judge of completions: {base} trained with `{objective}` on {data}, {steps} optimizer steps of {batch} pairs.

## Use

```python
{code}
```

Scores compare completions of one prompt; the sigmoid of the difference of two is the probability that the first is
preferred. A score is read at the last token: of a plain text the end token, of a conversation the end of its template.
{padding}

## Held-out pairs

{heldout}

Accuracy says how often the model prefers the completion that held-out labels prefer, ties left out. The loss is the
negative log-likelihood of those labels; a model that knows nothing has ln 2 = 0.693.

"""


def write_card(
    folder: RunFolder, recipe: Mapping[str, Any], effective_batch: int, loaded: GenerativeTextModel, *, is_chat: bool
) -> None:
    """Write README.md for a language model's run in ``folder``; it comes last and marks the run as complete."""
    rows = folder.read_metrics()
    looks = [row for row in rows if "validation/loss" in row]
    has_reference = any("logps/chosen_change" in row for row in rows)
    card = CARD.format(
        **_facts(recipe, folder, effective_batch),
        code=writing(folder.path, loaded, is_chat=is_chat, how="max_new_tokens=64"),
        heldout=_looks(looks),
        against="against the reference" if has_reference else "against the model before training",
        accuracy=_ACCURACY if any("validation/accuracy" in row for row in looks) else "",
    )
    has_samples = bool(list((folder.path / "samples").glob("step-*.md")))
    more = (
        "| `samples/` | completions of the same prompts before and after, on the same seeds |\n" if has_samples else ""
    )
    _write(folder, recipe, "text-generation", card, more)


def write_reward_card(
    folder: RunFolder, recipe: Mapping[str, Any], effective_batch: int, loaded: TextModel, *, is_chat: bool
) -> None:
    """Write README.md for a reward model's run in ``folder``; it comes last and marks the run as complete."""
    looks = [row for row in folder.read_metrics() if "validation/accuracy" in row]
    card = REWARD_CARD.format(
        **_facts(recipe, folder, effective_batch),
        code=judging(folder.path, loaded, is_chat=is_chat),
        padding=_padding(loaded.tokenizer),
        heldout=_reward_looks(looks),
    )
    _write(folder, recipe, "reward-model", card, "")


def _padding(tokenizer: Tokenizer) -> str:
    if tokenizer.pad_token is None:
        return "The tokenizer has no token for padding that ends no text, so texts go through one by one."
    return f"Padding is {tokenizer.pad_token!r}, which ends no text: whoever looks for the last token that is no padding finds the right one."


def _is_adapted(folder: RunFolder) -> bool:
    """Whether the result is an adapter; one that was trained over another adapter is merged, and is none."""
    return (folder.path / "adapter_config.json").is_file()


def _facts(recipe: Mapping[str, Any], folder: RunFolder, effective_batch: int) -> dict[str, Any]:
    return {
        "base": recipe["model"]["pretrained_model_name_or_path"],
        "objective": recipe["objective"]["name"],
        "title": folder.path.name,
        "data": recipe["data"]["train"],
        "steps": recipe["training"]["max_train_steps"],
        "batch": effective_batch,
    }


def _write(folder: RunFolder, recipe: Mapping[str, Any], kind: str, card: str, more: str) -> None:
    adapted = _is_adapted(folder)
    head = _HEAD.format(
        library="peft" if adapted else "transformers",
        base=recipe["model"]["pretrained_model_name_or_path"],
        kind=kind,
        tuning="lora" if adapted else "full-fine-tuning",
        objective=recipe["objective"]["name"],
        title=folder.path.name,
    )
    weights = "`adapter_model.safetensors`, `adapter_config.json`" if adapted else "`model.safetensors`, `config.json`"
    with atomic_write(folder.path / "README.md") as file:
        file.write_text(head + card + folder_section(recipe, f"{weights} and the tokenizer", more), "utf-8")


def _interval(row: Mapping[str, Any]) -> str:
    if "validation/accuracy" not in row:
        return "-"
    low, high = row["validation/accuracy_low"], row["validation/accuracy_high"]
    return f"{row['validation/accuracy']:.3f} ({low:.3f} to {high:.3f})"


def _number(row: Mapping[str, Any], name: str, form: str) -> str:
    return format(row[f"validation/{name}"], form) if f"validation/{name}" in row else "-"


def _looks(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "No held-out texts were given."
    head = (
        "| step | change of the chosen | perplexity | accuracy (95 % interval) | loss | log-ratio per token |\n"
        "|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(
        f"| {row['step']} | {_number(row, 'logps/chosen_change', '+.3f')} | {_number(row, 'perplexity', '.3f')} "
        f"| {_interval(row)} | {_number(row, 'loss', '.4f')} | {_number(row, 'log_ratio', '+.4f')} |"
        for row in rows
    )


def _reward_looks(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "No held-out pairs were given."
    head = "| step | accuracy (95 % interval) | loss | margin | mean reward |\n|---|---|---|---|---|\n"
    return head + "\n".join(
        f"| {row['step']} | {_interval(row)} | {_number(row, 'loss', '.4f')} | {_number(row, 'margin', '+.3f')} "
        f"| {_number(row, 'mean_reward', '+.3f')} |"
        for row in rows
    )
