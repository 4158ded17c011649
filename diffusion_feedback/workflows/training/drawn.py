"""Samples of a run on disk: ``samples/step-000060.json`` beside the grid or the page that people look at."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ...config.recipe import Recipe
from ...documents import read_object
from ...errors import plural
from ...evaluation.trained import DrawnSamples
from ...records import write_text

ItemT = TypeVar("ItemT")
SAMPLES = "samples"
_REMEDY = "remove the file; its samples are then left out"
_NAME = re.compile(r"step-\d{6,}\.json")


def evenly_spread(items: Sequence[ItemT], number: int) -> list[ItemT]:
    """``number`` of ``items``, evenly over all of them, the first one included; all where there are fewer."""
    count = min(number, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def source_of_prompts(recipe: Recipe, number: int, *, has_heldout: bool, are_spread: bool = True) -> str:
    """How many prompts the samples are of and where they come from, in words; ``are_spread`` over the set, where it is one."""
    if recipe.validation.prompts:
        return f"{plural(number, 'prompt')} of the recipe"
    kind = plural(number, "held-out prompt" if has_heldout else "training prompt")
    return kind + ", as none are held out" * (not has_heldout) + ", spread over the set" * (are_spread and number > 1)


def write_samples(run: Path, drawn: DrawnSamples) -> None:
    """Write what was drawn after a step; files of images are named by their place below ``samples``."""
    folder = run / SAMPLES

    def named(each: str | Path) -> str:
        return each.relative_to(folder).as_posix() if isinstance(each, Path) else each

    content = {
        "step": drawn.step,
        "source": drawn.source,
        "prompts": list(drawn.prompts),
        "seeds": list(drawn.seeds),
        "are_files": any(isinstance(each, Path) for each in drawn.after),
        "before": [named(each) for each in drawn.before],
        "after": [named(each) for each in drawn.after],
        "scores": list(drawn.scores),
    }
    write_text(folder / f"step-{drawn.step:06d}.json", json.dumps(content, ensure_ascii=False) + "\n")


def read_samples(run: Path, *, up_to: int) -> dict[int, DrawnSamples]:
    """What was drawn in the run ``run`` by step, without steps beyond ``up_to``, which a part that was dropped has left."""
    folder, samples = run / SAMPLES, {}
    for path in sorted(folder.glob("step-*.json")):
        if not _NAME.fullmatch(path.name):
            continue
        content = read_object(path, _REMEDY, ("step", "source", "prompts", "seeds", "are_files", "before", "after"))
        before, after = (
            [folder / each if content["are_files"] else each for each in content[side]] for side in ("before", "after")
        )
        step, source, prompts, seeds = (content[name] for name in ("step", "source", "prompts", "seeds"))
        if step <= up_to:
            samples[step] = DrawnSamples(step, source, prompts, seeds, before, after, content.get("scores", ()))
    return samples
