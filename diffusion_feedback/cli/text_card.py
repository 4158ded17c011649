"""The model cards of finished runs on texts: a tuned language model, and a reward model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..records import atomic_write
from ..training.run_folder import RunFolder
from .model_card import folder_section

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
tokenizer = AutoTokenizer.from_pretrained("{title}")
inputs = tokenizer("your prompt", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))
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
import torch
{code}
tokenizer = AutoTokenizer.from_pretrained("{title}")
ids = tokenizer("prompt and completion" + tokenizer.eos_token, return_tensors="pt")
with torch.no_grad():
    score = model(**ids).logits[0, 0]
```

Scores compare completions of one prompt; the sigmoid of the difference of two is the probability that the first is
preferred. A score is read at the last token: of a plain text the end token, of a conversation the end of its template.

## Held-out pairs

{heldout}

Accuracy says how often the model prefers the completion that held-out labels prefer, ties left out. The loss is the
negative log-likelihood of those labels; a model that knows nothing has ln 2 = 0.693.

"""

_LM = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")"""
_LM_LORA = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{folder}")"""
_REWARD = """from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("{folder}")"""
_REWARD_LORA = """from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

model = AutoPeftModelForSequenceClassification.from_pretrained("{folder}", num_labels=1)"""


def write_card(folder: RunFolder, recipe: Mapping[str, Any], effective_batch: int) -> None:
    """Write README.md for a language model's run in ``folder``; it comes last and marks the run as complete."""
    rows = folder.read_metrics()
    looks = [row for row in rows if "validation/loss" in row]
    has_reference = any("logps/chosen_change" in row for row in rows)
    card = CARD.format(
        **_facts(recipe, folder, effective_batch),
        code=(_LM_LORA if _is_adapted(folder) else _LM).format(folder=folder.path.name),
        heldout=_looks(looks),
        against="against the reference" if has_reference else "against the model before training",
        accuracy=_ACCURACY if any("validation/accuracy" in row for row in looks) else "",
    )
    has_samples = bool(list((folder.path / "samples").glob("step-*.md")))
    more = (
        "| `samples/` | completions of the same prompts before and after, on the same seeds |\n" if has_samples else ""
    )
    _write(folder, recipe, "text-generation", card, more)


def write_reward_card(folder: RunFolder, recipe: Mapping[str, Any], effective_batch: int) -> None:
    """Write README.md for a reward model's run in ``folder``; it comes last and marks the run as complete."""
    looks = [row for row in folder.read_metrics() if "validation/accuracy" in row]
    card = REWARD_CARD.format(
        **_facts(recipe, folder, effective_batch),
        code=(_REWARD_LORA if _is_adapted(folder) else _REWARD).format(folder=folder.path.name),
        heldout=_reward_looks(looks),
    )
    _write(folder, recipe, "reward-model", card, "")


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
