"""Scored images to preference pairs, and pairs to new labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..data.image_handles import PairImage, encoded_bytes
from ..data.pickapic import pickapic_dataset, read_labels, write_pickapic
from ..data.places import check_not_inside
from ..data.rows import BadRow, to_record, unlabelled
from ..data.scores import read_scores
from ..errors import UserError, nearest, plural
from ..evaluation.calibrated import CalibrationResult
from ..folders import is_main_process
from ..labeling.candidates import Candidate, join_scores
from ..labeling.pairs import build_pairs
from ..labeling.panel import Panel, build_panel, read_calibration
from ..labeling.relabel import relabel
from ..labeling.rule_specs import NamedRule, rule_of
from ..processes import process_state
from ..progress import progress
from ..prompts import prompt_file
from ..records import PairRecord, ScoreRecord
from ..reports.console import pairs_summary, relabelled_summary
from ..scorers.loading import AnyScorer
from ..types.images import ImageItem
from .image_inputs import Images, Prompts, open_inputs
from .outputs import check_not_input, output_file
from .scoring import Scorers, score_items
from .settings import ImageSettings, LabelingSettings, ScoringSettings, as_list, made_of_keywords, shows

if TYPE_CHECKING:
    from ..data.places import Dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Labelled pairs with ``columns`` beside Pick-a-Pic's own, and a ``summary`` of what became of the images.

    ``rows`` reads the images when they are written, from where they stand.
    """

    num: int
    rows: Callable[[], Iterator[PairRecord]]
    columns: Mapping[str, Any]
    summary: str

    def write(self, path: Path) -> None:
        """Write a parquet file, whole or not at all, and note the summary."""
        write_pickapic(self.rows(), path, self.columns)
        logger.info("%s\n%s: %s pairs", self.summary, path, f"{self.num:,}")

    def dataset(self) -> Dataset:
        """A ``datasets.Dataset``, the images in memory."""
        return pickapic_dataset(self.rows(), self.columns)


_KINDS = (LabelingSettings, ScoringSettings, ImageSettings)


@shows(*_KINDS)
def label(
    images: Images,
    prompts: Prompts = None,
    *,
    scorers: Scorers | None = None,
    scores: str | Path | Dataset | None = None,
    use: str | Sequence[str] = (),
    rule: str | Callable[..., Any] | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    **settings: object,
) -> Dataset:
    """Pairs of ``images`` with labels by ``scorers``: a ``datasets.Dataset`` in Pick-a-Pic's columns.

    ``images`` and ``prompts`` as for ``score``; of pairs (a file, or a ``datasets.Dataset`` of them) the pairs are kept and
    get new labels, unless a ``rule`` is given. ``scorers`` as for ``score``; in their place ``scores``, a table that
    scoring wrote or gave, of which the scorers ``use`` judge (all by default). ``rule``: how pairs are picked from
    the ranked images of a prompt, best_worst by default: a name of the catalog, "file.py:attribute" (settings as
    ",key=value"), or a function from a ``Standing`` to pairs of places. ``settings`` are the fields of LabelingSettings,
    ScoringSettings and ImageSettings; ``calibration`` may be what ``calibrate`` returned. ``caption, jpg_0, jpg_1`` (encoded bytes), ``label_0`` in [0, 1], scores and recipes
    are among the columns.

    ``output``, a .parquet file, is written pair by pair, so that no more than a few images are in memory at once; what is
    returned then lacks the columns jpg_0 and jpg_1. One of before is replaced with ``overwrite`` alone. Raises UserError for
    bad input, where no pair is left, and for an output that is there already or is read from.
    """
    if isinstance(calibration := settings.get("calibration"), CalibrationResult):
        settings["calibration"] = calibration.logit_scales
    labeling, scoring, inputs = made_of_keywords(settings, *_KINDS)
    rule = None if rule is None else rule_of(rule, "`rule`")
    judges = None if scorers is None else as_list(scorers)
    with output_file(output, [".parquet"], "label", overwrite=overwrite) as path:
        items = open_inputs(images, prompts, inputs).items
        if path is not None:
            _check_apart(path, images, items, scores, prompt_file(prompts))
        labelled = label_images(
            items, scorers=judges, scores=scores, use=as_list(use), rule=rule, settings=labeling, scoring=scoring
        )
        if path is None:
            return labelled.dataset()
        if is_main_process():
            labelled.write(path)
        process_state().wait_for_everyone()
        return read_labels(path)


def _check_apart(output: Path, images: Images, items: Sequence[ImageItem], *others: object) -> None:
    """Raise UserError where ``output`` is an input, or lies in a folder of the pairs that are read."""
    check_not_input(output, items, *others)
    if are_pairs(items):
        places = images if isinstance(images, list | tuple) else [images]
        check_not_inside(output, [str(place) for place in places if isinstance(place, str | Path)])


def label_images(
    items: Sequence[ImageItem],
    *,
    scorers: Sequence[AnyScorer] | None = None,
    scores: str | Path | Dataset | None = None,
    use: Sequence[str] = (),
    rule: NamedRule | None = None,
    settings: LabelingSettings,
    scoring: ScoringSettings,
) -> LabelledImages:
    """Make pairs of ``items`` by ``rule``, or label the pairs that they are the images of; see ``label``.

    Raises UserError for settings that contradict each other, bad scores, and where no pair is left.
    """
    if (scorers is None) == (scores is None):
        which = "neither scorers nor `scores` are given" if scorers is None else "both scorers and `scores` are given"
        raise UserError(which, "give scorers to score the images now, or a table of scores")
    if use and scores is None:
        raise UserError("`use`: chooses among the scorers of a table", "give the table as `scores`, or leave it out")
    if settings.relabel and rule is not None:
        raise UserError(f"`relabel`: keeps the pairs, `rule` {rule.name} makes new ones", "leave one of the two out")
    if absent := [item.name for item in items if not item.prompt]:
        problem = f"{plural(len(absent), 'image has', 'images have')} no prompt; the first: {absent[0]}"
        raise UserError(problem, "give `prompts`, a .txt beside each image, or a metadata.jsonl")
    is_pairs = are_pairs(items)
    if settings.relabel and not is_pairs:
        raise UserError("`relabel`: is for pairs, and single images are given", "leave it out, or give pairs")
    relabels = is_pairs and rule is None
    if relabels and settings.max_pairs_per_prompt is not None:
        problem = "`max_pairs_per_prompt`: the pairs of the input are kept as they are"
        raise UserError(problem, "leave it out, or make new pairs of the images with `rule`")
    calibration = settings.calibration
    scales = read_calibration(calibration) if isinstance(calibration, str) else calibration
    if scorers is not None:
        records = score_items(items, scorers, scoring)
        names = {record.sample for record in records}
        scored = [item for item in items if item.name in names]  # all of them, unless bad images are skipped
    else:
        records, scored = _scores_of(items, scores, use), list(items)
    panel = build_panel(records, settings.policy, scales)
    if relabels:
        return relabel_images(items, scored, records, panel)
    return pair_images(scored, records, panel, rule or rule_of("best_worst", "`rule`"), settings.max_pairs_per_prompt)


def are_pairs(items: Sequence[ImageItem]) -> bool:
    """Whether ``items`` are the images of pairs. Raises UserError for pairs of several places, or pairs and images."""
    sources = {id(item.handle.source) if isinstance(item.handle, PairImage) else None for item in items}
    if len(sources) > 1:
        raise UserError("pairs from several places, or pairs and images", "label each source of pairs by itself")
    return sources != {None}


def pair_images(
    items: Sequence[ImageItem],
    records: Sequence[ScoreRecord],
    panel: Panel,
    rule: NamedRule,
    max_pairs_per_prompt: int | None = None,
) -> LabelledImages:
    """Pick pairs of ``items`` by ``rule``. Raises UserError for scores that are missing, and where no pair is left."""
    candidates = join_scores(_identities(items), records, panel)
    pairs, counts = build_pairs(candidates, panel, rule, max_pairs_per_prompt=max_pairs_per_prompt)
    summary = pairs_summary(counts, panel)
    if not pairs:
        raise UserError(f"no pairs to write\n{summary}", _remedy(counts.prompts == counts.lonely_prompts))
    by_name = {item.name: item for item in items}

    def rows() -> Iterator[PairRecord]:
        for pair in pairs:
            image_0, image_1 = (encoded_bytes(by_name[candidate.name]) for candidate in (pair.first, pair.second))
            source = f"{pair.first.name} against {pair.second.name}"
            yield PairRecord(pair.prompt, image_0, image_1, pair.label_0, pair.weight, source)

    sides = [(pair.first, pair.second) for pair in pairs]
    columns = _columns(panel, sides, [pair.probability_0 for pair in pairs], rule.name)
    return LabelledImages(len(pairs), rows, columns, summary)


def relabel_images(
    items: Sequence[ImageItem], scored: Sequence[ImageItem], records: Sequence[ScoreRecord], panel: Panel
) -> LabelledImages:
    """Label the pairs that ``items`` are the images of, two by two; their weights stay.

    Pairs of identical images and pairs with an image that is not among the ``scored`` are left out. Raises UserError for
    bad rows, scores that are missing, and where no pair is left.
    """
    candidates = {c.name: c for c in join_scores(_identities(scored), records, panel)}
    old, identical = _old_pairs(items)
    known = [pair for pair in old if pair.first.name in candidates and pair.second.name in candidates]
    sides = [(candidates[pair.first.name], candidates[pair.second.name]) for pair in known]
    new = relabel(sides, [pair.label_0 for pair in known], panel)
    summary = relabelled_summary(new.counts, panel, identical, len(old) - len(known))
    kept = [(number, label) for number, label in enumerate(new.label_0) if label is not None]
    if not kept:
        raise UserError(f"no pairs to write\n{summary}", _remedy(not known))

    def rows() -> Iterator[PairRecord]:
        for number, own in kept:
            pair = known[number]
            image_0, image_1 = encoded_bytes(pair.first), encoded_bytes(pair.second)
            yield PairRecord(pair.prompt, image_0, image_1, own, pair.weight, pair.source)

    columns = _columns(panel, [sides[i] for i, _ in kept], [new.probability_0[i] for i, _ in kept], "relabel")
    columns["human_label_0"] = pa.array([known[i].label_0 for i, _ in kept], pa.float64())
    return LabelledImages(len(kept), rows, columns, summary)


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
            raise UserError(error.problem, "correct the row; converting the pairs can leave bad rows out") from error
        label_0 = None if why == "unlabelled" else record.label_0
        pairs.append(_OldPair(record.prompt, first, second, label_0, record.weight, record.source))
    return pairs, identical


def _scores_of(items: Sequence[ImageItem], scores: str | Path | Dataset, use: Sequence[str]) -> list[ScoreRecord]:
    """The scores of ``items`` in a table. Raises UserError where it has none of them, or none of a scorer to ``use``."""
    table = read_scores(scores)
    name = scores if isinstance(scores, str | Path) else "`scores`"
    there = list(dict.fromkeys(record.scorer for record in table))
    for scorer in use:
        if scorer not in there:
            raise UserError(f"`use`: {name} has no scores of {scorer!r}", nearest(scorer, there))
    table = [record for record in table if not use or record.scorer in use]
    known = {(record.sample_key, record.prompt) for record in table}
    bar = progress(items, desc="hash images", unit="image", delay=1.0)
    identities = {(item.handle.key, item.prompt) for item in bar}
    if not identities & known:
        problem = f"{name}: no score for any of the {len(items)} images; the first: {items[0].name}"
        raise UserError(problem, "score these images, with the same prompts")
    return [record for record in table if (record.sample_key, record.prompt) in identities]


def _identities(items: Sequence[ImageItem]) -> Iterator[tuple[str, str, str]]:
    return ((item.name, item.handle.key, item.prompt) for item in items)


def _columns(
    panel: Panel,
    sides: Sequence[tuple[Candidate, Candidate]],
    probabilities: Sequence[float | None],
    rule: str,
) -> dict[str, Any]:
    """The columns beside Pick-a-Pic's own: who judged what, and how it became a label."""
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


def _remedy(nothing_to_compare: bool) -> str:
    if nothing_to_compare:
        return "give at least two different images of one prompt"
    return "keep ties with `ties` half, lower `min_probability` or `tie_margin`, or give more images"
