"""From scored candidates to labelled pairs, prompt by prompt, with a count of all that was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import UserError
from .candidates import Candidate, rank, raw_scores
from .ensembles import Verdicts
from .panel import Panel, chosen_probability
from .rules import Rule


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two candidates of one prompt with their label.

    ``first`` is the one whose content hash is smaller, so sides say nothing about labels. ``label_0`` in [0, 1];
    ``probability_0`` is the calibrated probability that ``first`` is preferred (mean of the scorers), None without logit
    scales; ``weight`` is 1 / n where n pairs of the prompt are given out, so that every prompt weighs the same.
    """

    prompt: str
    first: Candidate
    second: Candidate
    label_0: float
    probability_0: float | None
    weight: float


@dataclass(frozen=True, slots=True)
class PairCounts:
    """What became of the candidates, and of the pairs that a rule picked.

    ``identical``: candidates of a prompt with the bytes of another, left out. ``lonely_prompts``: prompts with fewer
    than two candidates left. ``picked`` = ``pairs`` + ``abstained`` + ``ties_dropped`` + ``improbable`` + ``capped``;
    ``ties`` counts ties whether kept or not. ``mean_probability`` of the preferred sample over ``pairs``.
    """

    prompts: int
    candidates: int
    identical: int
    lonely_prompts: int
    picked: int
    abstained: int
    ties: int
    ties_dropped: int
    improbable: int
    capped: int
    pairs: int
    mean_probability: float | None


def build_pairs(
    candidates: Iterable[Candidate], panel: Panel, rule: Rule, *, max_pairs_per_prompt: int | None = None
) -> tuple[list[LabelledPair], PairCounts]:
    """Pairs of ``candidates`` that ``rule`` picks within each prompt, labelled by ``panel``.

    Ordered by prompt, then as the rule orders them; the first ``max_pairs_per_prompt`` of a prompt that pass are kept.
    The order of ``candidates`` does not matter: nothing but their content, prompts and scores does.
    No pair at all is no error here. Raises UserError for a cap below 1.
    """
    if max_pairs_per_prompt is not None and max_pairs_per_prompt < 1:
        raise UserError(f"`max_pairs_per_prompt`: got {max_pairs_per_prompt}", "allowed: 1 or more")
    groups, given = _by_prompt(candidates)
    picked: list[tuple[Candidate, Candidate]] = []
    for prompt in sorted(prompt for prompt, group in groups.items() if len(group) > 1):
        standing = rank(prompt, groups[prompt].values(), panel)
        for i, j in rule(standing):
            first, second = sorted((standing.candidates[i], standing.candidates[j]), key=lambda c: c.key)
            picked.append((first, second))
    verdicts = judge_pairs(panel, picked)
    labels, outcomes = settle(panel, verdicts)
    outcomes = _capped([first.prompt for first, _ in picked], outcomes, max_pairs_per_prompt)
    per_prompt = Counter(first.prompt for (first, _), out in zip(picked, outcomes, strict=True) if out == "pair")
    pairs = [
        LabelledPair(
            first.prompt,
            first,
            second,
            labels[i],
            None if verdicts.probability is None else float(verdicts.probability[i]),
            1 / per_prompt[first.prompt],
        )
        for i, (first, second) in enumerate(picked)
        if outcomes[i] == "pair"
    ]
    tally = Counter(outcomes)
    counts = PairCounts(
        prompts=len(groups),
        candidates=given,
        identical=given - sum(map(len, groups.values())),
        lonely_prompts=sum(len(group) < 2 for group in groups.values()),
        picked=len(picked),
        abstained=tally["abstained"],
        ties=int(np.sum((verdicts.side == 0) & verdicts.agreed)),
        ties_dropped=tally["tie"],
        improbable=tally["improbable"],
        capped=tally["capped"],
        pairs=len(pairs),
        mean_probability=mean_probability(verdicts, outcomes),
    )
    return pairs, counts


def judge_pairs(panel: Panel, pairs: Sequence[tuple[Candidate, Candidate]]) -> Verdicts:
    """The panel's verdicts on ``pairs`` (sample 0, sample 1)."""
    shape = (len(panel.judges), len(pairs))
    raw_0, raw_1 = (raw_scores([pair[side] for pair in pairs]).reshape(shape) for side in (0, 1))
    return panel.judge(raw_0, raw_1)


def settle(panel: Panel, verdicts: Verdicts) -> tuple[list[float], list[str]]:
    """The label of each pair under the panel's policy, and what becomes of it.

    An outcome is "pair", "abstained", "tie" (dropped) or "improbable" (below ``min_probability``).
    """
    soft = panel.policy.ties == "soft"
    if soft:
        assert verdicts.soft is not None
    hard = (verdicts.side + 1) / 2
    labels = verdicts.soft if soft and verdicts.soft is not None else hard
    ties = (verdicts.side == 0) & (panel.policy.ties == "drop")
    outcomes = np.select(
        [~verdicts.agreed, ties, ~panel.is_probable(verdicts)], ["abstained", "tie", "improbable"], "pair"
    )
    return [float(label) for label in labels], [str(outcome) for outcome in outcomes]


def mean_probability(verdicts: Verdicts, outcomes: Sequence[str]) -> float | None:
    """Mean calibrated probability of the preferred sample over the pairs kept; None without logit scales or pairs."""
    kept = np.array([outcome == "pair" for outcome in outcomes], bool)
    if verdicts.probability is None or not kept.any():
        return None
    return float(chosen_probability(verdicts)[kept].mean())


def _by_prompt(candidates: Iterable[Candidate]) -> tuple[dict[str, dict[str, Candidate]], int]:
    """Candidates by prompt and key, and how many were given; of identical ones the first name is kept."""
    groups: dict[str, dict[str, Candidate]] = {}
    given = 0
    for candidate in candidates:
        given += 1
        group = groups.setdefault(candidate.prompt, {})
        known = group.get(candidate.key)
        if known is None:
            group[candidate.key] = candidate
        elif candidate.name < known.name:
            group[candidate.key] = replace(known, name=candidate.name)
    return groups, given


def _capped(prompts: Sequence[str], outcomes: Sequence[str], cap: int | None) -> list[str]:
    kept: Counter[str] = Counter()
    result: list[str] = []
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        if outcome == "pair":
            kept[prompt] += 1
            if cap is not None and kept[prompt] > cap:
                outcome = "capped"
        result.append(outcome)
    return result
