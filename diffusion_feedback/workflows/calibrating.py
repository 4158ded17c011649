"""Scorers against pairs that people have labelled: how far each can be trusted, and on which scale."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy.special import expit

from ..data.image_handles import PairImage
from ..data.rankings import RankingSource
from ..data.readers import open_pairs
from ..errors import UserError, nearest
from ..evaluation.bootstrap import Array
from ..evaluation.calibrated import CalibrationResult
from ..evaluation.calibration import (
    Judgement,
    LabelledPairs,
    ScorerCalibration,
    agreements,
    calibrate_scorer,
    confident_mistakes,
)
from ..folders import at_home, is_main_process
from ..records import ScoreRecord, content_hash, write_json
from ..reports.console import calibration_summary
from ..reports.content import Group, Mistake
from ..reports.pages.calibration import calibration_report
from ..reports.pages.folder import write_pages
from ..scorers.loading import AnyScorer, label_of
from ..types.images import ImageItem
from .outputs import output_folder
from .scoring import Scorers, score_items
from .settings import CalibrationSettings, ScoringSettings, as_list, made_of_keywords, refuse, shows

if TYPE_CHECKING:
    from ..data.places import Dataset

logger = logging.getLogger(__name__)

_SHOWN = 4  # mistakes of each scorer: two rows of two

Pairs: TypeAlias = "str | Path | Dataset"
"""Labelled pairs: a path, glob or hub id, or a ``datasets.Dataset``."""


_KINDS = (CalibrationSettings, ScoringSettings)


@shows(*_KINDS)
def calibrate(
    pairs: Pairs,
    *,
    scorers: Scorers,
    tune: Pairs | None = None,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    **settings: object,
) -> CalibrationResult:
    """Measure ``scorers`` on labelled ``pairs``, and fit the logit scale of each.

    ``pairs``: a path (parquet, glob, folder, hub id, rankings) or a ``datasets.Dataset`` of pairs; ``tune`` are others, on
    which scale and tie threshold are fitted, else the halves of the prompts tune each other. ``scorers`` as for
    ``score``; ``settings`` are the fields of CalibrationSettings and ScoringSettings. The result's ``scorers`` hold accuracy
    (share of decided pairs), log loss (nats) and fitted scale, each with a 95 % interval that resamples prompts;
    it is the ``calibration`` of labelling, as its ``logit_scales`` are. ``output_dir`` becomes a
    folder of calibration.json, which is one too, report.html and README.md; files of before are replaced with ``overwrite``
    alone. Raises UserError for bad pairs, scorers and settings, and for a folder that holds files already.
    """
    calibration, scoring = made_of_keywords(settings, *_KINDS)
    if tune is None:
        refuse(settings, ["tune_split"], "without `tune`")
    listed = as_list(scorers)
    _check_ceiling(calibration, listed)
    with output_folder(output_dir, "calibrate", overwrite=overwrite) as folder:
        result, scored = _calibrated(pairs, listed, tune, calibration, scoring)
        if folder is not None and is_main_process():
            write_pages(calibration_report(result, scored.mistakes(result)), "calibration", folder)
            write_json(folder / "calibration.json", result.to_json(), allow_nan=False)
            summary = calibration_summary(result)
            logger.info("%s\n%s: calibration.json, report.html, README.md", summary, output_dir)
    return result


def _calibrated(
    pairs: Pairs,
    scorers: Sequence[AnyScorer],
    tune: Pairs | None,
    settings: CalibrationSettings,
    scoring: ScoringSettings,
) -> tuple[CalibrationResult, _Scored]:
    test = _read(pairs, settings.split, settings)
    tuning = None if tune is None else _read(tune, settings.tune_split, settings)
    if tuning is not None:
        _check_apart(test, tuning)
    sides = [*test.sides, *(tuning.sides if tuning else [])]
    records = score_items([item for pair in sides for item in pair], scorers, scoring)
    scored, tuned = _Scored(test, records), None if tuning is None else _Scored(tuning, records)
    labels = None if tuned is None else tuned.labels
    judgements = [
        Judgement(name, recipe, own, scored.difference(recipe), None if tuned is None else tuned.difference(recipe))
        for name, recipe, own in dict.fromkeys((r.scorer, r.recipe_id, r.logit_scale) for r in records)
    ]
    result = CalibrationResult(
        source=test.name,
        pairs=scored.labels,
        tuning_source=None if tuning is None else tuning.name,
        tuning=labels,
        scorers=[calibrate_scorer(judgement, scored.labels, labels) for judgement in judgements],
        agreements=agreements(judgements, scored.labels),
        ceiling=settings.ceiling_scorer,
        num_left_out=scored.num_left_out,
        per_prompt=settings.per_prompt,
    )
    return result, scored


def _check_ceiling(settings: CalibrationSettings, scorers: Sequence[AnyScorer]) -> None:
    """Raise UserError where the ceiling is none of the ``scorers``, before any of them is loaded."""
    names = [label_of(scorer) for scorer in scorers]
    if settings.ceiling_scorer is not None and settings.ceiling_scorer not in names:
        problem = f"`ceiling_scorer`: {settings.ceiling_scorer!r} is none of the scorers"
        raise UserError(problem, nearest(settings.ceiling_scorer, names))


@dataclass(frozen=True, slots=True)
class _PairSet:
    """Labelled pairs: ``sides`` are image 0 and image 1 of each.

    ``rankings`` is the ranking of each pair; None where the pairs were not made of rankings.
    """

    name: str
    sides: list[tuple[ImageItem, ImageItem]]
    label_0: list[float]
    num_bad_rows: int
    rankings: list[int] | None = None

    def identities(self) -> set[tuple[str, frozenset[str]]]:
        """What each pair is by its content, whichever image comes first."""
        return {(a.prompt, frozenset((a.handle.key, b.handle.key))) for a, b in self.sides}


class _Scored:
    """The pairs of ``pairs`` both of whose images were scored, as arrays; bad images may have been left out."""

    def __init__(self, pairs: _PairSet, records: Sequence[ScoreRecord]) -> None:
        # By content: the same image under the same prompt has one score, wherever it stands.
        self._raw = {(record.recipe_id, record.sample_key, record.prompt): record.raw for record in records}
        seen = {(record.sample_key, record.prompt) for record in records}
        kept = [all((item.handle.key, item.prompt) in seen for item in pair) for pair in pairs.sides]
        if not any(kept):
            raise UserError(f"{pairs.name}: no pair has two images that can be decoded", "replace the images")
        self._sides = list(compress(pairs.sides, kept))
        self.num_left_out = pairs.num_bad_rows + kept.count(False)
        labels = np.array(list(compress(pairs.label_0, kept)))
        rankings = None if pairs.rankings is None else list(compress(pairs.rankings, kept))
        try:
            self.labels: LabelledPairs = LabelledPairs(labels, [first.prompt for first, _ in self._sides], rankings)
        except UserError as error:
            raise UserError(f"{pairs.name}: {error.problem}", error.remedy) from error

    def difference(self, recipe_id: str) -> Array:
        """raw_0 - raw_1 of each pair."""
        raw = [[self._raw[recipe_id, i.handle.key, i.prompt] for i in pair] for pair in self._sides]
        return np.array([first - second for first, second in raw])

    def mistakes(self, result: CalibrationResult) -> list[Group[Mistake]]:
        """The pairs of which each scorer is surest and wrong, with their images; none of what knows the truth."""
        scorers = [scorer for scorer in result.ranked if scorer.name != result.ceiling]
        groups = [Group(scorer.name, self._mistakes_of(scorer)) for scorer in scorers]
        return [group for group in groups if group.parts]

    def _mistakes_of(self, scorer: ScorerCalibration) -> list[Mistake]:
        difference, mistakes = self.difference(scorer.recipe_id), []
        for place in confident_mistakes(difference, self.labels, _SHOWN):
            side = 0 if self.labels.label_0[place] > 0.5 else 1
            preferred, favoured = (self._sides[place][number].handle.open() for number in (side, 1 - side))
            votes = max(float(self.labels.label_0[place]), 1 - float(self.labels.label_0[place]))
            confidence = float(expit(scorer.fit.logit_scale * abs(difference[place])))
            mistakes.append(Mistake(self._sides[place][0].prompt, preferred, favoured, votes, confidence))
        return mistakes


def _read(pairs: Pairs, split: str, settings: CalibrationSettings) -> _PairSet:
    """The labelled ``pairs``, ties included; the images stay where they are. Raises UserError as the reader does."""
    reader = open_pairs(
        at_home(pairs),
        split=split,
        revision=settings.revision,
        on_bad_row=settings.on_bad_row,
        ties="soft",
        columns=settings.columns,
        decode=False,  # each image is decoded when it is scored
    )
    sides: list[tuple[ImageItem, ImageItem]] = []
    labels: list[float] = []
    rankings: list[int] = []
    for record, location in reader.log.watched(reader.scan(), "reading", reader.num_rows):
        assert location is not None  # only streams have none
        prompt, pair = record.prompt.strip(), []
        for side, data in enumerate((record.image_0, record.image_1)):
            name = f"{record.source}, image {side}"
            pair.append(ImageItem(name, prompt, PairImage(reader.source, location, side, name, content_hash(data))))
        sides.append((pair[0], pair[1]))
        labels.append(record.label_0)
        if isinstance(reader.source, RankingSource):
            rankings.append(reader.source.ranking_of(location))
    reader.require_usable()
    # Where each ranking is of two images, nothing but the prompt holds pairs together.
    are_longer = len(set(rankings)) < len(rankings)
    return _PairSet(reader.log.name, sides, labels, reader.log.counts.bad.total(), rankings if are_longer else None)


def _check_apart(test: _PairSet, tune: _PairSet) -> None:
    shared = test.identities() & tune.identities()
    if shared:
        first = min(prompt for prompt, _ in shared)
        problem = f"{tune.name}: {len(shared)} pairs stand in {test.name} too; the prompt of one is {first!r}"
        raise UserError(problem, "tune on other pairs, or leave `tune` out: halves of the prompts then tune each other")
