"""The unit in which benchmarks show a scorer's metrics: that of the published tables, by the recipe of the scores."""

from __future__ import annotations

import re

from ...records import ScoreRecord

_HPSV2 = re.compile(r"hps(v2\.[01])/")


def version_of(recipe_id: str) -> str | None:
    """The version, v2.0 or v2.1, where ``recipe_id`` is that of an HPSv2 scorer, else None."""
    match = _HPSV2.match(recipe_id)
    return match.group(1) if match else None


def unit_of(recipe_id: str) -> str:
    """What a benchmark shows in the place of the score; empty where that is the score itself."""
    return "100 x cosine" if version_of(recipe_id) else ""


def published_value(record: ScoreRecord) -> float:
    """The number that is reported for one score: 100 x cosine for HPSv2, whose tables hold the cosine, else the score."""
    return 100 * record.raw if version_of(record.recipe_id) else record.score
