"""The model card of a finished run that learnt values of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...records import atomic_write
from ...training.run_folder import RunFolder
from .model import folder_section, literal, location
from .text_snippets import prompt_ids

CARD = """---
library_name: transformers
base_model: {base}
tags:
- text-generation
- value-learning
- {objective}
---

# {title}

{base} tuned with `{objective}` on {data}, {steps} optimizer steps of {batch} trajectories: a language model that imitates
them, and Q and V heads that say which of its tokens lead to reward.

## Use

By itself the folder is {kind} that plain transformers loads, and imitates the trajectories. The heads move its
choices by beta times the advantage of each token, softmax(log pi + beta (Q - V)):

```python
from diffusion_feedback.models import causal_lm, value_heads

model = causal_lm.load({folder})
network = value_heads.attach(model.network, "{title}", seed=0)
prompts = {prompts}
with value_heads.steered(network, beta=4.0) as policy:
    completions = model.sample(policy, prompts, seeds=[0], max_new_tokens=64, temperature=1.0)
print(model.tokenizer.batch_decode(completions, skip_special_tokens=True))
```

At beta 0 these are the samples of the language model itself. Rewards of another size need another beta: it multiplies
values that are sums of rewards.

## Held-out trajectories

{heldout}

Means over actions. `nll` is the negative log-likelihood of the actions under the language model; the losses of Q and V are
squared errors in units of the squared reward, against targets that the heads themselves take part in.

"""

_COLUMNS = {"nll": "nll", "losses/q": "Q", "losses/v": "V", "losses/cql": "CQL", "values/v": "mean V"}


def write_card(folder: RunFolder, recipe: Mapping[str, Any], effective_batch: int, *, is_chat: bool) -> None:
    """Write README.md for the run in ``folder``; it comes last and marks the run as complete."""
    adapted = (folder.path / "adapter_config.json").is_file()  # over another adapter it is merged, and is none
    looks = [row for row in folder.read_metrics() if "validation/nll" in row]
    card = CARD.format(
        base=recipe["model"]["pretrained_model_name_or_path"],
        objective=recipe["objective"]["name"],
        title=folder.path.name,
        folder=literal(location(str(folder.path))),
        data=recipe["data"]["train"],
        steps=recipe["training"]["max_train_steps"],
        batch=effective_batch,
        prompts=prompt_ids(is_chat=is_chat),
        kind="an adapter" if adapted else "a language model",
        heldout=_looks(looks),
    )
    result = (
        "`adapter_model.safetensors` with `adapter_config.json`" if adapted else "`model.safetensors`, `config.json`"
    )
    with atomic_write(folder.path / "README.md") as file:
        file.write_text(
            card + folder_section(recipe, f"{result}, the tokenizer and `value_heads.safetensors`"), "utf-8"
        )


def _looks(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "No held-out trajectories were given."
    head = f"| step | {' | '.join(_COLUMNS.values())} |\n|---|{'---|' * len(_COLUMNS)}\n"
    lines = [
        f"| {row['step']} | {' | '.join(format(row[f'validation/{name}'], '.4f') for name in _COLUMNS)} |"
        for row in rows
    ]
    return head + "\n".join(lines)
