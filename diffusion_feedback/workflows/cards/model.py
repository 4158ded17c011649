"""The model card of a finished run on a diffusion model, and the end that it shares with other cards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...records import atomic_write
from ...training.run_folder import RunFolder

CARD = """---
library_name: diffusers
base_model: {base}
tags:
- text-to-image
- diffusers
- {kind}
- {objective}
---

# {title}

{base} tuned with `{objective}` on {data}, {steps} optimizer steps of {batch} pairs.

{picture}## Use

```python
import torch
from diffusers import DiffusionPipeline

{code}
image = pipeline({prompt}, generator=torch.Generator().manual_seed(0)).images[0]
```

Every part is loaded in float32, since a base may mix precisions; on a GPU take `dtype=torch.float16` and `.to("cuda")`.

## Held-out pairs

{heldout}

Implicit accuracy says how often the tuned model, as a judge against the model it started from, agrees with held-out
labels. Chosen and rejected error should part ways; where both rise, lower the learning rate or raise the batch.

"""

_FOLDER = """## What is in this folder

| | |
|---|---|
| {weights} | the result |
| `recipe.yaml` | every setting; `dfb train --config recipe.yaml --output_dir ...` repeats the run |
| `environment.json` | versions and hardware |
| `metrics.jsonl` | one line a step |
{more}| `checkpoints/` | to continue with `--resume` |

## Recipe

```yaml
{recipe}```
"""

_LORA_CODE = """pipeline = DiffusionPipeline.from_pretrained({base})
pipeline.load_lora_weights({folder})"""
_FULL_CODE = """pipeline = DiffusionPipeline.from_pretrained({folder}, dtype=torch.float32)"""


def write_card(folder: RunFolder, recipe: Mapping[str, Any], effective_batch: int) -> None:
    """Write README.md for the run in ``folder``; it comes last and marks the run as complete."""
    model, training = recipe["model"], recipe["training"]
    adapted = model["tuning"] == "lora"
    rows = folder.read_metrics()
    looks = [row for row in rows if "validation/accuracy" in row]
    samples = sorted((folder.path / "samples").glob("step-*.png"))
    base, result = model["pretrained_model_name_or_path"], literal(location(str(folder.path)))
    code = (
        _LORA_CODE.format(base=_base_arguments(model), folder=result) if adapted else _FULL_CODE.format(folder=result)
    )
    card = CARD.format(
        base=base,
        kind="lora" if adapted else "full-fine-tuning",
        objective=recipe["objective"]["name"],
        title=folder.path.name,
        data=recipe["data"]["train"],
        steps=training["max_train_steps"],
        batch=effective_batch,
        picture=f"![before and after](samples/{samples[-1].name})\n\n" if samples else "",
        code=code,
        prompt=literal((recipe["validation"]["prompts"] or ["your prompt"])[0]),
        heldout=_looks(looks),
    )
    weights = "`pytorch_lora_weights.safetensors`" if adapted else "`model_index.json` and the folders beside it"
    samples_row = "| `samples/` | before and after on fixed seeds |\n"
    with atomic_write(folder.path / "README.md") as file:
        file.write_text(card + folder_section(recipe, weights, samples_row), "utf-8")


def location(path: str) -> str:
    """``path`` as code finds it from any working folder; a hub id as it is."""
    return str(Path(path).expanduser().resolve()) if Path(path).expanduser().exists() else path


def literal(text: str) -> str:
    """``text`` as Python code that may stand within a block of Markdown."""
    return repr(text).replace("`", "\\x60")


def _base_arguments(model: Mapping[str, Any]) -> str:
    """What the base of ``model`` was loaded with."""
    said = {name: model[name] for name in ("revision", "variant") if model[name] is not None}
    named = "".join(f", {name}={literal(value)}" for name, value in said.items())
    return f"{literal(location(model['pretrained_model_name_or_path']))}, dtype=torch.float32{named}"


def folder_section(recipe: Mapping[str, Any], weights: str, more: str = "") -> str:
    """The end of every card: what lies beside ``weights``, with ``more`` rows of the table, and the recipe."""
    text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    return _FOLDER.format(weights=weights, more=more, recipe=text)


def _looks(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "No held-out pairs were given."
    head = "| step | implicit accuracy (95 % interval) | chosen error, change | rejected error, change |\n|---|---|---|---|\n"
    lines = [
        f"| {row['step']} | {row['validation/accuracy']:.3f} "
        f"({row['validation/accuracy_low']:.3f} to {row['validation/accuracy_high']:.3f}) "
        f"| {row['validation/error/chosen_change']:+.2e} | {row['validation/error/rejected_change']:+.2e} |"
        for row in rows
    ]
    return head + "\n".join(lines)
