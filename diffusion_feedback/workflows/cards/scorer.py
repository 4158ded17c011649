"""The model card of a finished run on a scorer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...records import atomic_write
from ...training.run_folder import RunFolder
from .model import folder_section, literal, location

CARD = """---
library_name: transformers
base_model: {base}
tags:
- reward-model
- clip
- {objective}
---

# {title}

A scorer of images against prompts: {base} trained with `{objective}` on {data}, {steps} optimizer steps of {batch} pairs.

## Use

```python
import torch
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

folder = {folder}
model = CLIPModel.from_pretrained(folder).eval()
text = CLIPTokenizer.from_pretrained(folder)([prompt], padding=True, truncation=True, return_tensors="pt")
pixels = CLIPImageProcessorPil.from_pretrained(folder)([image_0, image_1], return_tensors="pt")
with torch.no_grad():
    logits = model(input_ids=text.input_ids, **pixels).logits_per_text[0]
probabilities = logits.softmax(0)  # that image_0 or image_1 is preferred
```

Scores compare images of one prompt. A score is the cosine times the logit scale, here {scale:.2f}; the sigmoid of the
difference of two scores is the probability that the first image is preferred.

## Held-out pairs

{heldout}

Accuracy says how often the scorer prefers the image that held-out labels prefer, ties left out. The loss is the negative
log-likelihood of those labels; a scorer that knows nothing has ln 2 = 0.693.

"""


def write_card(folder: RunFolder, recipe: Mapping[str, Any], effective_batch: int, *, logit_scale: float) -> None:
    """Write README.md for the run in ``folder``; it comes last and marks the run as complete."""
    looks = [row for row in folder.read_metrics() if "validation/accuracy" in row]
    card = CARD.format(
        base=recipe["model"]["pretrained_model_name_or_path"],
        objective=recipe["objective"]["name"],
        title=folder.path.name,
        folder=literal(location(str(folder.path))),
        data=recipe["data"]["train"],
        steps=recipe["training"]["max_train_steps"],
        batch=effective_batch,
        scale=logit_scale,
        heldout=_looks(looks),
    )
    weights = "`model.safetensors`, `config.json`, the tokenizer and `preprocessor_config.json`"
    with atomic_write(folder.path / "README.md") as file:
        file.write_text(card + folder_section(recipe, weights), "utf-8")


def _looks(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "No held-out pairs were given."
    head = "| step | accuracy (95 % interval) | loss |\n|---|---|---|\n"
    lines = [
        f"| {row['step']} | {row['validation/accuracy']:.3f} ({row['validation/accuracy_low']:.3f} to "
        f"{row['validation/accuracy_high']:.3f}) | {row['validation/loss']:.4f} |"
        for row in rows
    ]
    return head + "\n".join(lines)
