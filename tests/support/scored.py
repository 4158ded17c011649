"""Made-up scores of made-up images: records, candidates and panels for tests of labelling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_feedback.labeling.candidates import Candidate, join_scores
from diffusion_feedback.labeling.panel import LabelPolicy, Panel, build_panel
from diffusion_feedback.records import ScoreRecord, content_hash
from diffusion_feedback.workflows.settings import LabelingSettings

Table = Mapping[str, Mapping[str, Sequence[float]]]
"""Raw scores: prompt -> image name -> one for each scorer."""


def policy_of(ensemble: Any = "mean", ties: Any = "drop", **settings: Any) -> LabelPolicy:
    """A policy, by default that of the settings."""
    return LabelingSettings(ensemble=ensemble, ties=ties, **settings).policy


def key_of(name: str) -> str:
    return content_hash(f"bytes of {name}")


def records_of(table: Table, scales: Sequence[float | None]) -> list[ScoreRecord]:
    """Scorers are named a, b, ...; ``score`` is ten times ``raw``, so that the two cannot be mistaken."""
    return [
        ScoreRecord(name, key_of(name), prompt, scorer, f"{scorer}.1", 10 * raws[number], raws[number], scale)
        for number, (scorer, scale) in enumerate(zip("abcdef", scales, strict=False))
        for prompt, images in table.items()
        for name, raws in images.items()
    ]


def panel_and_candidates(
    table: Table, scales: Sequence[float | None] = (1.0,), policy: LabelPolicy | None = None
) -> tuple[Panel, list[Candidate]]:
    records = records_of(table, scales)
    panel = build_panel(records, policy or policy_of())
    images = [(name, key_of(name), prompt) for prompt, images in table.items() for name in images]
    return panel, join_scores(images, records, panel)


def one(raws: Sequence[float]) -> Table:
    """One prompt, whose images are named by their place, judged by one scorer."""
    return {"p": {f"{place:02d}": [raw] for place, raw in enumerate(raws)}}


def logistic(x: float) -> float:
    """By the definition, in plain floats."""
    return 1 / (1 + math.exp(-x))


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
