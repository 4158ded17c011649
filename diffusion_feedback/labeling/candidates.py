"""The samples of one prompt with what the panel says of each, and their order from best to worst."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..records import ScoreRecord
from .ensembles import FloatArray
from .panel import Panel, chosen_probability


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sample with its scores, as published and raw, one for each judge of the panel.

    ``name`` says where the sample stands, ``key`` is the content hash of its bytes.
    """

    name: str
    key: str
    prompt: str
    scores: tuple[float, ...]
    raws: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """The candidates of one prompt from best to worst, with their strengths (n,).

    Strength under one judge is its raw score. Under several it is what a candidate gains on average from being compared
    with each other candidate: the mean of the judges' Bradley-Terry probabilities (ensemble mean), or its share of their
    votes (vote, abstain), in [0, 1]. Equal strengths are ordered by content hash, so the order depends on content alone.
    """

    prompt: str
    candidates: tuple[Candidate, ...]
    strengths: FloatArray
    panel: Panel

    def __len__(self) -> int:
        return len(self.candidates)

    def margins(self) -> FloatArray:
        """P(preferred sample preferred) - 0.5 for each two candidates, (n, n). Raises UserError without logit scales."""
        self.panel.require_scales("a margin above 0")
        raws = raw_scores(self.candidates)
        first, second = (axis.ravel() for axis in np.indices((len(self), len(self))))
        verdicts = self.panel.judge(raws[:, first], raws[:, second])
        return chosen_probability(verdicts).reshape(len(self), len(self)) - 0.5


def raw_scores(candidates: Sequence[Candidate]) -> FloatArray:
    """The raw scores, (judges, candidates)."""
    return np.array([candidate.raws for candidate in candidates], np.float64).T


def rank(prompt: str, candidates: Iterable[Candidate], panel: Panel) -> Standing:
    """Order the ``candidates`` of one prompt, at least two and of different content, from best to worst."""
    # Sums run in the order of the hashes, so that not even rounding depends on the order of the input.
    ordered = sorted(candidates, key=lambda candidate: candidate.key)
    raws = raw_scores(ordered)
    number = len(ordered)
    if len(panel.judges) == 1:
        strengths = raws[0]
    else:
        first, second = (axis.ravel() for axis in np.indices((number, number)))
        gains = panel.judge(raws[:, first], raws[:, second]).standing.reshape(number, number)
        # Rounded, as equal strengths must not be distinguished by the last bit of a sum.
        strengths = np.round((gains.sum(axis=1) - gains.diagonal()) / (number - 1), 12)
    best_first = np.argsort(-strengths, kind="stable")
    return Standing(prompt, tuple(ordered[i] for i in best_first), strengths[best_first], panel)


def join_scores(
    samples: Iterable[tuple[str, str, str]], records: Iterable[ScoreRecord], panel: Panel
) -> list[Candidate]:
    """A candidate for each (name, key, prompt) of ``samples``, with its scores found by key and prompt.

    Where several records speak of one sample, prompt and scorer, the one whose sample name comes first is taken.
    Raises UserError saying how many samples lack a score of a judge, and which is the first.
    """
    position = {judge.recipe_id: number for number, judge in enumerate(panel.judges)}
    by_sample: dict[tuple[str, str], list[ScoreRecord | None]] = {}
    for record in records:
        if record.recipe_id not in position:
            continue
        row = by_sample.setdefault((record.sample_key, record.prompt), [None] * len(position))
        known = row[position[record.recipe_id]]
        if known is None or (record.sample, record.raw, record.score) < (known.sample, known.raw, known.score):
            row[position[record.recipe_id]] = record
    candidates: list[Candidate] = []
    missing: list[tuple[str, str]] = []
    nothing: list[ScoreRecord | None] = [None] * len(position)
    for name, key, prompt in samples:
        row = by_sample.get((key, prompt), nothing)
        scored = [record for record in row if record is not None]
        if len(scored) < len(position):
            number = next(i for i, record in enumerate(row) if record is None)
            missing.append((name, panel.judges[number].scorer))
            continue
        candidates.append(Candidate(name, key, prompt, tuple(r.score for r in scored), tuple(r.raw for r in scored)))
    if missing:
        name, scorer = missing[0]
        problem = f"{len(missing)} samples have no score for their prompt; the first: {name}, by scorer {scorer!r}"
        raise UserError(problem, "score these samples (a changed sample or prompt has no score any more)")
    return candidates
