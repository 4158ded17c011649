"""The model card of a finished run: README.md, whose code runs as it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ...catalog.families import pipeline_classes
from ...config.data_lists import named
from ...foreign import is_hub_id
from ..rendering import load_template

CardKind = Literal["diffusion", "scorer", "language_model", "reward_model", "policy_gradient", "value_learning"]


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What the code of a card on texts depends on.

    ``adds_end``: the tokenizer puts its end token behind a text of its own accord; ``has_types``: it gives token type ids;
    ``end_token_ids``: the tokens that end a text, where the base's own settings do not name them all.
    """

    adds_end: bool
    has_types: bool
    pad_token: str | None
    end_token_ids: Sequence[int] = ()


def render_card(
    kind: CardKind, folder: Path, recipe: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], **facts: object
) -> str:
    """README.md of the run in ``folder``; it is written last and marks the run as complete.

    ``recipe`` is the resolved one, ``metrics`` are the lines of metrics.jsonl. ``facts``: ``effective_batch`` (but for
    policy gradients, which count completions); of a scorer its ``logit_scale``; of texts ``is_chat`` and ``tokenizer``
    (``TokenizerFacts``); of policy gradients ``is_heldout``, whether prompts were held out. ``steps`` is their number, the
    recipe's where it is not said; ``history`` are lines on what changed while the run went on, ``outcomes`` on the best step and on why it ended early.
    """
    template = load_template(f"cards/{kind}.md.j2", {**CODE, "table": _table, "data_sets": named})
    return template.render(
        folder=str(folder),
        title=folder.name,
        recipe=recipe,
        recipe_yaml=yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True),
        metrics=metrics,
        base=recipe["model"]["pretrained_model_name_or_path"],
        base_is_hub_id=is_hub_id(recipe["model"]["pretrained_model_name_or_path"]),
        objective=recipe["objective"]["name"],
        history=facts.pop("history", ()),
        outcomes=facts.pop("outcomes", ()),
        steps=facts.pop("steps", recipe["training"]["max_train_steps"]),
        pipeline=pipeline_classes().get(recipe["model"].get("family", "")),
        # A result that was trained over another adapter is merged, and is none itself.
        is_adapter=(folder / "adapter_config.json").is_file(),
        samples=sorted(path.name for path in (folder / "samples").glob("step-*") if path.suffix in (".png", ".md")),
        **facts,
    )


def code_text(text: str) -> str:
    """``text`` as Python code that may stand within a block of Markdown."""
    return repr(text).replace("`", "\\x60")


def code_path(path: str) -> str:
    """``path`` as code that finds it from any working folder; a hub id as it is."""
    place = Path(path).expanduser()
    return code_text(str(place.resolve()) if place.exists() else path)


def is_file(path: str) -> bool:
    """Whether ``path`` is a file on this disk: a whole model in one."""
    return Path(path).expanduser().is_file()


CODE: Mapping[str, Callable[..., object]] = {"literal": code_text, "path": code_path, "is_file": is_file}


def _table(metrics: Sequence[Mapping[str, object]], evaluated: str, columns: Mapping[str, tuple[str, str]]) -> str:
    """The rows of ``metrics`` that hold the validation metric ``evaluated``; empty where none does.

    ``columns`` map titles to validation metrics and their format; "interval" adds the bounds where there are any.
    """
    rows = [row for row in metrics if f"validation/{evaluated}" in row]
    if not rows:
        return ""
    cells = [[_cell(row, f"validation/{name}", form) for name, form in columns.values()] for row in rows]
    lines = [f"| step | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {row['step']} | {' | '.join(own)} |" for row, own in zip(rows, cells, strict=True)]
    return "\n".join(lines)


def _cell(row: Mapping[str, object], name: str, form: str) -> str:
    if name not in row:
        return "-"
    if form != "interval":
        return format(row[name], form)
    bounds = f" ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})" if f"{name}_low" in row else ""
    return f"{row[name]:.3f}{bounds}"
