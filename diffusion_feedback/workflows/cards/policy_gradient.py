"""The model card of a finished run that learnt from its own completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...records import atomic_write
from ...training.run_folder import RunFolder
from ...types import GenerativeTextModel
from .model import folder_section
from .text_snippets import writing

CARD = """---
library_name: {library}
base_model: {base}
tags:
- text-generation
- policy-gradient
- {objective}
---

# {title}

{base} tuned with `{objective}` on completions of its own: prompts of {data}, judged by `{reward}`; {steps} optimizer
steps, {completions:,} completions drawn.

## Use

```python
{code}
```

## Completions of {which}

{looks}

One completion of each prompt, on the same seeds at every look, with 95 % intervals over prompts. KL is the mean over
completions of log(policy / reference), nats: an estimate on samples of the policy, which may come out below 0. Ended is
the share of completions that end by themselves within {new} tokens. The reward is the judge's own, without the KL: it
is what was trained for, so another judge should have the last word.

"""

_SAMPLES = "| `samples/` | completions and their rewards at every look |\n"


def write_card(
    folder: RunFolder, recipe: Mapping[str, Any], loaded: GenerativeTextModel, *, is_heldout: bool, is_chat: bool
) -> None:
    """Write README.md for the run in ``folder``; it comes last and marks the run as complete."""
    adapted = (folder.path / "adapter_config.json").is_file()  # over another adapter it is merged, and is none
    rows = folder.read_metrics()
    new = recipe["rollouts"]["max_new_tokens"]
    own = bool(recipe["validation"]["prompts"])
    card = CARD.format(
        library="peft" if adapted else "transformers",
        base=recipe["model"]["pretrained_model_name_or_path"],
        objective=recipe["objective"]["name"],
        title=folder.path.name,
        data=recipe["data"]["train"],
        reward=recipe["rollouts"]["reward"],
        steps=recipe["training"]["max_train_steps"],
        completions=int(max((row.get("episode", 0) for row in rows), default=0)),
        new=new,
        code=writing(folder.path, loaded, is_chat=is_chat, how=f"do_sample=True, max_new_tokens={new}"),
        which="the recipe's prompts" if own else "held-out prompts" if is_heldout else "training prompts",
        looks=_looks([row for row in rows if "validation/scores" in row]),
    )
    weights = "`adapter_model.safetensors`, `adapter_config.json`" if adapted else "`model.safetensors`, `config.json`"
    with atomic_write(folder.path / "README.md") as file:
        file.write_text(card + folder_section(recipe, f"{weights} and the tokenizer", _SAMPLES), "utf-8")


def _looks(rows: list[dict[str, Any]]) -> str:
    head = "| step | reward | KL | ended | tokens |\n|---|---|---|---|---|\n"
    return head + "\n".join(
        f"| {row['step']} | {_interval(row, 'scores')} | {_interval(row, 'kl')} | {row['validation/finished']:.2f} "
        f"| {row['validation/mean_length']:.1f} |"
        for row in rows
    )


def _interval(row: Mapping[str, Any], name: str) -> str:
    name = f"validation/{name}"
    if name not in row:
        return "-"
    bounds = f" ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})" if f"{name}_low" in row else ""
    return f"{row[name]:.3f}{bounds}"
