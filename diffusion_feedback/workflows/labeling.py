"""What ``dfb label`` writes and says: pairs made of images, pairs labelled anew, and the counts of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..labeling.candidates import Candidate
    from ..labeling.pairs import PairCounts
    from ..labeling.panel import LabelPolicy, Panel
    from ..labeling.relabel import RelabelCounts
    from ..labeling.rules import Rule
    from ..records import PairRecord, ScoreRecord
    from ..types import ImageItem


def write_built(
    items: Sequence[ImageItem],
    records: Sequence[ScoreRecord],
    policy: LabelPolicy,
    calibration: Mapping[str, float] | None,
    rule: tuple[str, Rule],
    max_pairs_per_prompt: int | None,
    output: Path,
) -> str:
    """Pick pairs of ``items`` by ``rule`` (its text, and itself), write them to ``output``; returns the summary.

    Raises UserError for scores that are missing or do not fit together, and where no pair is left.
    """
    from ..data.image_handles import encoded_bytes
    from ..data.pickapic import write_pickapic
    from ..errors import UserError
    from ..labeling.candidates import join_scores
    from ..labeling.pairs import build_pairs
    from ..labeling.panel import build_panel
    from ..records import PairRecord

    panel = build_panel(records, policy, calibration)
    candidates = join_scores(_identities(items), records, panel)
    pairs, counts = build_pairs(candidates, panel, rule[1], max_pairs_per_prompt=max_pairs_per_prompt)
    summary = _built_summary(counts, panel)
    if not pairs:
        raise UserError(f"no pairs to write\n{summary}", _remedy(counts.prompts == counts.lonely_prompts))
    by_name = {item.name: item for item in items}

    def rows() -> Iterator[PairRecord]:
        for pair in pairs:
            image_0, image_1 = (encoded_bytes(by_name[candidate.name]) for candidate in (pair.first, pair.second))
            source = f"{pair.first.name} against {pair.second.name}"
            yield PairRecord(pair.prompt, image_0, image_1, pair.label_0, pair.weight, source)

    sides = [(pair.first, pair.second) for pair in pairs]
    write_pickapic(rows(), output, _columns(panel, sides, [pair.probability_0 for pair in pairs], rule[0]))
    return f"{summary}\n{output}: {counts.pairs:,} pairs"


def write_relabelled(
    items: Sequence[ImageItem],
    scored: Sequence[ImageItem],
    records: Sequence[ScoreRecord],
    policy: LabelPolicy,
    calibration: Mapping[str, float] | None,
    output: Path,
) -> str:
    """Label the pairs that ``items`` are the images of, two by two, anew; returns the summary.

    Pairs of identical images and pairs with an image that is not among the ``scored`` are left out. Weights stay.
    Raises UserError for bad rows, scores that are missing or do not fit together, and where no pair is left.
    """
    import pyarrow as pa

    from ..data.image_handles import encoded_bytes
    from ..data.pickapic import write_pickapic
    from ..errors import UserError
    from ..labeling.candidates import join_scores
    from ..labeling.panel import build_panel
    from ..labeling.relabel import relabel
    from ..records import PairRecord

    panel = build_panel(records, policy, calibration)
    candidates = {c.name: c for c in join_scores(_identities(scored), records, panel)}
    old, identical = _old_pairs(items)
    known = [pair for pair in old if pair.first.name in candidates and pair.second.name in candidates]
    sides = [(candidates[pair.first.name], candidates[pair.second.name]) for pair in known]
    new = relabel(sides, [pair.label_0 for pair in known], panel)
    summary = _relabelled_summary(new.counts, panel, identical, len(old) - len(known))
    kept = [number for number, label in enumerate(new.label_0) if label is not None]
    if not kept:
        raise UserError(f"no pairs to write\n{summary}", _remedy(not known))

    def rows() -> Iterator[PairRecord]:
        for number in kept:
            pair, label = known[number], new.label_0[number]
            assert label is not None
            image_0, image_1 = encoded_bytes(pair.first), encoded_bytes(pair.second)
            yield PairRecord(pair.prompt, image_0, image_1, label, pair.weight, pair.source)

    columns = _columns(panel, [sides[i] for i in kept], [new.probability_0[i] for i in kept], "relabel")
    columns["human_label_0"] = pa.array([known[i].label_0 for i in kept], pa.float64())
    write_pickapic(rows(), output, columns)
    return f"{summary}\n{output}: {len(kept):,} pairs"


@dataclass(frozen=True, slots=True)
class _OldPair:
    """A pair of the input; ``label_0`` is None where it has none."""

    prompt: str
    first: ImageItem
    second: ImageItem
    label_0: float | None
    weight: float
    source: str


def _old_pairs(items: Sequence[ImageItem]) -> tuple[list[_OldPair], int]:
    """The pairs that ``items`` are the images of, and how many others are two identical images."""
    from ..data.image_handles import PairImage
    from ..data.rows import BadRow, to_record, unlabelled
    from ..errors import UserError

    handle = items[0].handle
    assert isinstance(handle, PairImage)
    pairs: list[_OldPair] = []
    identical = 0
    for row, first, second in zip(handle.source.rows(), items[::2], items[1::2], strict=True):
        why = unlabelled(row)
        if why == "not_different" or first.handle.key == second.handle.key:
            identical += 1
            continue
        if why == "unlabelled":
            row = replace(row, values={**row.values, "label_0": 0.5, "label_1": 0.5})
        try:
            record = to_record(row, decode=False)
        except BadRow as error:
            raise UserError(
                error.problem, "correct the row; dfb data convert --on_bad_row skip leaves it out"
            ) from error
        label = None if why == "unlabelled" else record.label_0
        pairs.append(_OldPair(record.prompt, first, second, label, record.weight, record.source))
    return pairs, identical


def _identities(items: Sequence[ImageItem]) -> Iterator[tuple[str, str, str]]:
    return ((item.name, item.handle.key, item.prompt) for item in items)


def _columns(
    panel: Panel,
    sides: Sequence[tuple[Candidate, Candidate]],
    probabilities: Sequence[float | None],
    rule: str,
) -> dict[str, Any]:
    """The columns beside Pick-a-Pic's own: who judged what, and how it became a label."""
    import pyarrow as pa

    number, policy = len(sides), panel.policy
    scorers = [judge.scorer for judge in panel.judges]
    source = f"{policy.ensemble} of {', '.join(scorers)}" if len(scorers) > 1 else scorers[0]
    source += f"; ties={policy.ties}, tie_margin={policy.tie_margin}, min_probability={policy.min_probability}"
    columns: dict[str, Any] = {
        "image_0_name": [first.name for first, _ in sides],
        "image_1_name": [second.name for _, second in sides],
        # Typed, as a column of nulls would have no type of its own.
        "probability_0": pa.array(probabilities, pa.float64()),
        "rule": [rule] * number,
        "label_source": [source] * number,
        "scorers": [scorers] * number,
        "recipe_ids": [[judge.recipe_id for judge in panel.judges]] * number,
        "logit_scales": pa.array([[judge.logit_scale for judge in panel.judges]] * number, pa.list_(pa.float64())),
    }
    for position, scorer in enumerate(scorers):
        columns[f"score_0_{scorer}"] = [first.scores[position] for first, _ in sides]
        columns[f"score_1_{scorer}"] = [second.scores[position] for _, second in sides]
    return columns


def _built_summary(counts: PairCounts, panel: Panel) -> str:
    lonely = f" ({counts.lonely_prompts:,} with fewer than two candidates)" if counts.lonely_prompts else ""
    identical = f" ({counts.identical:,} identical ones removed)" if counts.identical else ""
    lines = [
        f"prompts           {counts.prompts:,}{lonely}",
        f"candidates        {counts.candidates:,}{identical}",
        f"picked            {counts.picked:,}",
        *_dropped(counts, panel),
    ]
    if counts.capped:
        lines.append(f"over the cap      {counts.capped:,}")
    return "\n".join([*lines, *_kept(counts)])


def _relabelled_summary(counts: RelabelCounts, panel: Panel, identical: int, unscored: int) -> str:
    from ..evaluation.statistics import proportion_interval

    unlabelled = f" ({counts.unlabelled:,} without an old label)" if counts.unlabelled else ""
    lines = [f"pairs judged      {counts.num:,}{unlabelled}"]
    if identical:
        lines.append(f"identical images  {identical:,} pairs left out")
    if unscored:
        lines.append(f"not scored        {unscored:,} pairs left out")
    lines += _dropped(counts, panel)
    agreement = "no pair that both the old labels and the scorers decide"
    if counts.compared:
        share = proportion_interval(counts.agreed, counts.compared)
        agreement = (
            f"{share.value:.1%} of {counts.compared:,} pairs that both decide (95 % interval {share.low:.1%} to"
            f" {share.high:.1%})"
        )
    lines.append(f"agreement         {agreement}")
    ties = f"{counts.old_ties:,} old, {counts.new_ties:,} new, {counts.both_tied:,} both"
    lines.append(f"ties              {ties}; old ties are labelled anew like all other pairs")
    return "\n".join([*lines, *_kept(counts)])


def _dropped(counts: PairCounts | RelabelCounts, panel: Panel) -> list[str]:
    policy = panel.policy
    lines = [f"ties dropped      {counts.ties_dropped:,}"] if policy.ties == "drop" else []
    if policy.ensemble == "abstain" and len(panel.judges) > 1:
        lines.append(f"abstained         {counts.abstained:,}")
    if policy.min_probability > 0.5:
        lines.append(f"below {policy.min_probability:<11g} {counts.improbable:,}")
    return lines


def _kept(counts: PairCounts | RelabelCounts) -> list[str]:
    lines = [f"pairs             {counts.pairs:,}"]
    if counts.mean_probability is not None:
        lines.append(f"mean probability  {counts.mean_probability:.4f} that the preferred image is preferred")
    return lines


def _remedy(nothing_to_compare: bool) -> str:
    if nothing_to_compare:
        return "give at least two different images of one prompt"
    return "keep ties with --ties half, lower --min_probability or --tie_margin, or give more images"
