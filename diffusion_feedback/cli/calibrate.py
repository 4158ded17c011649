"""``dfb calibrate``: scorers against labelled pairs: accuracy, temperature fit, reliability, agreement, and a report."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..folders import hold_folder
from ..workflows.settings import ScoringSettings
from .flags import Flags
from .scoring import SCORERS_HELP, add_scoring_flags
from .settings import made_of

if TYPE_CHECKING:
    from ..evaluation.calibration import Judgement, LabelledPairs
    from ..records import ScoreRecord
    from ..types import ImageItem

EPILOG = f"""examples:
  dfb calibrate assets/pairs/validation-00000.parquet --scorer pickscore=assets/shapes-scorer shapes \\
      --ceiling_scorer shapes --output_dir out/calibration
  dfb calibrate test.parquet --tune validation.parquet --scorer pickscore hpsv2 imagereward --output_dir out/calibration
  dfb calibrate HPDv2/test.json --per_prompt --scorer hpsv2=HPS_v2.1_compressed.pt --output_dir out/hpdv2
  dfb label out/base --scorer shapes --calibration out/calibration/calibration.json --ties soft --output pairs.parquet

{SCORERS_HELP}
The folder: calibration.json (read by dfb label --calibration), report.html, README.md.
  accuracy     share of pairs on which the scorer prefers what people prefer; labelled ties left out, equal scores one half
  per prompt   (--per_prompt) mean over prompts of each one's accuracy: what HPSv2 reports, 83.3 and 84.1 on HPDv2's test set
  with ties    PickScore's protocol: a tie is predicted where |p_1 - p_0| <= t; one half where exactly one side is a tie
  logit scale  the s for which sigmoid(s * (raw_0 - raw_1)) has the least cross entropy against the labels
t and s are never judged on the pairs that they were fitted on: they come from --tune, else each half of the prompts is
judged by what the other half gave. Intervals (95 %) resample prompts. Labels are read from label_0: 0.5 is a tie, other
shares are votes.
"""


def build_parser() -> argparse.ArgumentParser:
    """All flags of the command."""
    parser = Flags(
        prog="dfb calibrate",
        description="Measure how far scorers can be trusted, on pairs that people have labelled, and fit their scale.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("pairs", metavar="PAIRS", help="labelled preference pairs: parquet, glob, folder, hub id or rankings (.json)")
    add("--output_dir", "--output-dir", required=True, help="folder to write")
    add("--tune", metavar="PAIRS", help="other labelled pairs, to fit scale and tie threshold on")
    add(
        "--ceiling_scorer",
        "--ceiling-scorer",
        metavar="NAME",
        help="the scorer that knows the truth: its accuracy is the noise ceiling of the labels",
    )
    add(
        "--per_prompt",
        "--per-prompt",
        action="store_true",
        help="show the mean over prompts of each one's accuracy too, as HPSv2 reports it",
    )
    add("--split", default="train", help="split of PAIRS, where the source has splits (default train)")
    add("--tune_split", "--tune-split", default="train", help="split of --tune (default train)")
    add("--revision", help="branch, tag or commit on the hub")
    add(
        "--on_bad_row",
        "--on-bad-row",
        choices=["error", "skip"],
        default="error",
        help="stop at the first bad row, or leave bad rows out (default error)",
    )
    add("--overwrite", action="store_true", help="write into a folder that holds files already")
    add_scoring_flags(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Calibrate as ``argv`` says. Raises UserError for bad input."""
    arguments = build_parser().parse_args(argv)
    _check(arguments)
    with hold_folder(Path(arguments.output_dir), "dfb calibrate"):
        _calibrate(arguments)


def _calibrate(arguments: argparse.Namespace) -> None:
    from ..evaluation.calibrated import CalibrationResult
    from ..evaluation.calibration import agreements, calibrate
    from ..processes import process_state
    from ..records import atomic_write
    from ..reports.console import calibration_summary
    from ..reports.pages.calibration import write_pages
    from ..workflows.scoring import score_items

    test = _read(arguments.pairs, arguments.split, arguments)
    tune = _read(arguments.tune, arguments.tune_split, arguments) if arguments.tune else None
    if tune is not None:
        _check_apart(test, tune)
    records = score_items(
        [*test.items, *(tune.items if tune else [])], arguments.scorer, made_of(arguments, ScoringSettings)
    )
    if not process_state().is_main_process:
        return
    scored, tuned = _Scored(test, records), None if tune is None else _Scored(tune, records)
    tuning = None if tuned is None else tuned.labels
    judgements = _judgements(records, scored, tuned)
    result = CalibrationResult(
        source=arguments.pairs,
        pairs=scored.labels,
        tuning_source=arguments.tune,
        tuning=tuning,
        scorers=[calibrate(judgement, scored.labels, tuning) for judgement in judgements],
        agreements=agreements(judgements, scored.labels),
        ceiling=arguments.ceiling_scorer,
        num_left_out=scored.num_left_out,
        per_prompt=arguments.per_prompt,
    )
    folder = Path(arguments.output_dir)
    write_pages(result, folder)
    with atomic_write(folder / "calibration.json") as file:
        content = json.dumps(result.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        file.write_text(content + "\n", "utf-8")
    print(calibration_summary(result))
    print(f"{arguments.output_dir}: calibration.json, report.html, README.md")


@dataclass(frozen=True, slots=True)
class _PairSet:
    """Labelled pairs and their images: ``items`` has image 0 and image 1 of one pair after the other.

    ``rankings`` is the ranking of each pair; None where the pairs were not made of rankings.
    """

    name: str
    items: list[ImageItem]
    label_0: list[float]
    num_bad_rows: int
    rankings: list[int] | None = None

    def identities(self) -> set[tuple[str, frozenset[str]]]:
        """What each pair is by its content, whichever image comes first."""
        sides = zip(self.items[::2], self.items[1::2], strict=True)
        return {(a.prompt, frozenset((a.handle.key, b.handle.key))) for a, b in sides}


class _Scored:
    """The pairs of ``pairs`` both of whose images were scored, as arrays; bad images may have been left out."""

    def __init__(self, pairs: _PairSet, records: Sequence[ScoreRecord]) -> None:
        import numpy as np

        from ..errors import UserError
        from ..evaluation.calibration import LabelledPairs

        # By content: the same image under the same prompt has one score, wherever it stands.
        self._raw = {(record.recipe_id, record.sample_key, record.prompt): record.raw for record in records}
        seen = {(record.sample_key, record.prompt) for record in records}
        sides = list(zip(pairs.items[::2], pairs.items[1::2], strict=True))
        kept = [all((item.handle.key, item.prompt) in seen for item in pair) for pair in sides]
        if not any(kept):
            raise UserError(f"{pairs.name}: no pair has two images that can be decoded", "replace the images")
        self._sides = [pair for pair, is_kept in zip(sides, kept, strict=True) if is_kept]
        self.num_left_out = pairs.num_bad_rows + kept.count(False)
        labels = np.array([label for label, is_kept in zip(pairs.label_0, kept, strict=True) if is_kept])
        rankings = None
        if pairs.rankings is not None:
            rankings = [ranking for ranking, is_kept in zip(pairs.rankings, kept, strict=True) if is_kept]
        try:
            self.labels: LabelledPairs = LabelledPairs(labels, [first.prompt for first, _ in self._sides], rankings)
        except UserError as error:
            raise UserError(f"{pairs.name}: {error.problem}", error.remedy) from error

    def difference(self, recipe_id: str) -> list[float]:
        """raw_0 - raw_1 of each pair."""
        raw = [[self._raw[recipe_id, i.handle.key, i.prompt] for i in pair] for pair in self._sides]
        return [first - second for first, second in raw]


def _judgements(records: Sequence[ScoreRecord], scored: _Scored, tuned: _Scored | None) -> list[Judgement]:
    import numpy as np

    from ..evaluation.calibration import Judgement

    return [
        Judgement(
            name,
            recipe,
            own,
            np.array(scored.difference(recipe)),
            None if tuned is None else np.array(tuned.difference(recipe)),
        )
        for name, recipe, own in dict.fromkeys((r.scorer, r.recipe_id, r.logit_scale) for r in records)
    ]


def _read(path: str, split: str, arguments: argparse.Namespace) -> _PairSet:
    """The labelled pairs of ``path``, ties included; the images stay on the disk. Raises UserError as the reader does."""
    from tqdm import tqdm

    from ..data.image_handles import PairImage
    from ..data.rankings import RankingSource
    from ..data.readers import open_pairs
    from ..records import content_hash
    from ..types import ImageItem

    reader = open_pairs(
        path,
        split=split,
        revision=arguments.revision,
        on_bad_row=arguments.on_bad_row,
        ties="soft",
        decode=False,  # each image is decoded when it is scored
    )
    items: list[ImageItem] = []
    labels: list[float] = []
    rankings: list[int] = []
    bar = tqdm(reader.scan(), desc=f"reading {path}", total=reader.num_rows, unit="row", mininterval=0.5)
    for record, location in bar:
        assert location is not None  # only streams have none
        prompt = record.prompt.strip()
        for side, data in enumerate((record.image_0, record.image_1)):
            name = f"{record.source}, image {side}"
            items.append(ImageItem(name, prompt, PairImage(reader.source, location, side, name, content_hash(data))))
        labels.append(record.label_0)
        if isinstance(reader.source, RankingSource):
            rankings.append(reader.source.ranking_of(location))
    reader.require_pairs()
    # Where each ranking is of two images, nothing but the prompt holds pairs together.
    are_longer = len(set(rankings)) < len(rankings)
    return _PairSet(path, items, labels, reader.counts.bad.total(), rankings if are_longer else None)


def _check(arguments: argparse.Namespace) -> None:
    from ..errors import UserError, nearest
    from ..scorers.loading import parse_spec

    specs = [parse_spec(text) for text in arguments.scorer]
    names = [spec.alias or spec.name for spec in specs]
    if arguments.ceiling_scorer is not None and arguments.ceiling_scorer not in names:
        problem = f"--ceiling_scorer: {arguments.ceiling_scorer!r} is none of the scorers"
        raise UserError(problem, nearest(arguments.ceiling_scorer, names))
    folder = Path(arguments.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file", "choose another --output_dir")
    if folder.is_dir() and any(folder.glob("[!.]*")) and not arguments.overwrite:
        raise UserError(f"{folder}: holds files already", "choose another --output_dir, or give --overwrite")


def _check_apart(test: _PairSet, tune: _PairSet) -> None:
    from ..errors import UserError

    shared = test.identities() & tune.identities()
    if shared:
        problem = f"{tune.name}: {len(shared)} pairs stand in {test.name} too; the prompt of one is {min(prompt for prompt, _ in shared)!r}"
        raise UserError(problem, "tune on other pairs, or leave --tune out: halves of the prompts then tune each other")
