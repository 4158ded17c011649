"""``dfb label``: scored images to preference pairs, and pairs to new labels."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..folders import hold_file
from ..workflows.settings import ImageSettings, ScoringSettings
from .flags import Flags
from .scoring import IMAGES_HELP, SCORERS_HELP, add_image_flags, add_scoring_flags
from .settings import made_of

if TYPE_CHECKING:
    from ..labeling.panel import LabelPolicy
    from ..records import ScoreRecord
    from ..types import ImageItem

EPILOG = f"""examples:
  dfb label out/base --scorer pickscore=assets/shapes-scorer --output pairs.parquet
  dfb label out/base --scores scores.parquet --use pickscore --rule all_pairs --min_probability 0.7 --output pairs.parquet
  dfb label out/base --scorer pickscore hpsv2 --ensemble vote --rule random,pairs_per_prompt=4 --output pairs.parquet
  dfb label out/base --scorer shapes --calibration calibration.json --ties soft --output pairs.parquet
  dfb label pairs.parquet --relabel --scorer hpsv2 --output relabelled.parquet

rules, on the images of one prompt (NAME or NAME,key=value,...):
  best_worst       the best against the worst (the default)
  adjacent         each against the next one down
  opposite         the best against the worst, the second best against the second worst, ...: every image once
  all_pairs        every two, the widest gaps in rank first
  random           pairs_per_prompt=1 pairs drawn among those with P(preferred) >= 0.5 + margin; margin=0, seed=0
  mu_minus_2sigma  the best against the one nearest to mean - 2 standard deviations of the scores (arXiv:2502.16825)

{SCORERS_HELP}
{IMAGES_HELP}
Probabilities are sigmoid(logit_a - logit_b) with logit = logit_scale * raw. A scorer without a logit scale (shapes,
aesthetic, clip_score) needs --calibration for all that speaks of probabilities; alone it ranks without one.
The output has Pick-a-Pic's columns with the images inside, and the scores, scorers, recipes and rule beside them. Each
prompt weighs the same (num_example_per_prompt). Pairs as input keep their pairs and get new labels, unless --rule is
given; their old label_0 stands in human_label_0. Run the same command again to go on after an interruption.
"""


def build_parser() -> argparse.ArgumentParser:
    """All flags of the command."""
    parser = Flags(
        prog="dfb label",
        description="Make preference pairs of scored images, or label pairs anew, by one or several scorers.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add_image_flags(parser, metavar="IMAGES_OR_PAIRS", about="images with prompts, see below, or preference pairs")
    add("--output", required=True, metavar="PAIRS.parquet", help="file to write")
    add("--scores", metavar="SCORES.parquet", help="use the scores of this table from dfb score, in place of --scorer")
    add("--use", nargs="+", metavar="SCORER", help="with --scores: the scorers of the table that judge (default all)")
    add("--rule", help="how pairs are picked, see below (default best_worst)")
    add("--relabel", action="store_true", help="keep the pairs of the input, label them anew (the default for pairs)")
    add(
        "--ensemble",
        choices=["mean", "vote", "abstain"],
        default="mean",
        help="several scorers: mean of their probabilities, majority of their sides, or only where all agree"
        " (default mean)",
    )
    add(
        "--ties",
        choices=["drop", "soft", "half"],
        default="drop",
        help="leave ties out, label every pair by its probability, or keep ties with label 0.5 (default drop)",
    )
    add(
        "--tie_margin",
        "--tie-margin",
        type=float,
        default=0.0,
        help="a pair with |P - 0.5| up to this is a tie (default 0: only exactly equal scores)",
    )
    add(
        "--min_probability",
        "--min-probability",
        type=float,
        default=0.5,
        help="keep a pair only if P(preferred image preferred) is at least this, in [0.5, 1) (default 0.5: all)",
    )
    add("--calibration", metavar="FILE.json", help="logit scales from dfb calibrate; they replace the scorers' own")
    add("--max_pairs_per_prompt", "--max-pairs-per-prompt", type=int, help="keep the rule's first pairs of each prompt")
    add("--overwrite", action="store_true", help="replace the output if it is there already")
    add_scoring_flags(parser, required=False)
    return parser


def run(argv: Sequence[str]) -> None:
    """Label as ``argv`` says. Raises UserError for bad input."""
    arguments = build_parser().parse_args(argv)
    _check(arguments)
    with hold_file(Path(arguments.output), "dfb label"):
        _label(arguments)


def _label(arguments: argparse.Namespace) -> None:
    from ..data.image_handles import PairImage
    from ..data.places import check_not_inside
    from ..errors import UserError
    from ..labeling.panel import read_calibration
    from ..labeling.rules import rule_of
    from ..processes import process_state
    from ..workflows.image_inputs import open_places
    from ..workflows.labeling import write_built, write_relabelled
    from ..workflows.outputs import check_not_input

    # Settings are checked before hours of scoring, not after.
    policy, rule = _policy(arguments), rule_of(arguments.rule or "best_worst", "--rule")
    calibration = read_calibration(arguments.calibration) if arguments.calibration else None
    items = open_places(
        arguments.images, arguments.prompts and Path(arguments.prompts), made_of(arguments, ImageSettings)
    ).items
    check_not_input(Path(arguments.output), items, arguments.scores, arguments.prompts)
    if absent := [item.name for item in items if not item.prompt]:
        problem = f"{' '.join(arguments.images)}: {len(absent)} images have no prompt; the first: {absent[0]}"
        raise UserError(problem, "give --prompts, a .txt beside each image, or a metadata.jsonl")
    sources = {id(item.handle.source) if isinstance(item.handle, PairImage) else None for item in items}
    are_pairs = None not in sources
    if are_pairs:
        check_not_inside(Path(arguments.output), arguments.images)
    if len(sources) > 1 and sources != {None}:
        problem = f"{' '.join(arguments.images)}: pairs from several places, or pairs and images"
        raise UserError(problem, "label each source of pairs by a command of its own")
    if arguments.relabel and not are_pairs:
        problem = f"{' '.join(arguments.images)}: holds single images, and --relabel is for pairs"
        raise UserError(problem, "leave --relabel out, or give preference pairs")
    relabels = are_pairs and arguments.rule is None
    if relabels and arguments.max_pairs_per_prompt is not None:
        problem = "--max_pairs_per_prompt: the pairs of the input are kept as they are"
        raise UserError(problem, "leave it out, or make new pairs of the images with --rule")
    scored, records = _scores(items, arguments)
    if not process_state().is_main_process:
        return
    output = Path(arguments.output)
    if relabels:
        print(write_relabelled(items, scored, records, policy, calibration, output))
    else:
        name, cap = arguments.rule or "best_worst", arguments.max_pairs_per_prompt
        print(write_built(scored, records, policy, calibration, (name, rule), cap, output))


def _check(arguments: argparse.Namespace) -> None:
    from ..errors import UserError
    from ..workflows.outputs import check_output

    check_output(Path(arguments.output), (".parquet",), overwrite=arguments.overwrite)
    if (arguments.scorer is None) == (arguments.scores is None):
        problem = "neither --scorer nor --scores" if arguments.scorer is None else "both --scorer and --scores"
        raise UserError(problem, "give scorers to score the images now, or a table that dfb score has written")
    if arguments.use and arguments.scores is None:
        raise UserError("--use chooses among the scorers of a table", "give the table with --scores, or leave it out")
    if arguments.relabel and arguments.rule is not None:
        raise UserError(
            f"--relabel keeps the pairs, --rule {arguments.rule} makes new ones", "leave one of the two out"
        )
    cap = arguments.max_pairs_per_prompt
    if cap is not None and cap < 1:
        raise UserError(f"--max_pairs_per_prompt: got {cap}", "allowed: 1 or more")


def _policy(arguments: argparse.Namespace) -> LabelPolicy:
    from ..labeling.panel import LabelPolicy

    return LabelPolicy(arguments.ensemble, arguments.ties, arguments.tie_margin, arguments.min_probability)


def _scores(items: Sequence[ImageItem], arguments: argparse.Namespace) -> tuple[list[ImageItem], list[ScoreRecord]]:
    """The ``items`` that have scores, and the scores of their images; all of them, unless bad images are skipped."""
    from tqdm import tqdm

    from ..data.scores import read_scores
    from ..errors import UserError, nearest
    from ..workflows.scoring import score_items

    scoring = made_of(arguments, ScoringSettings)
    if arguments.scores is None:
        records = score_items(items, arguments.scorer, scoring)
        if scoring.on_bad_image == "skip":
            names = {record.sample for record in records}
            items = [item for item in items if item.name in names]
        return list(items), records
    table = read_scores(arguments.scores)
    if arguments.use:
        there = list(dict.fromkeys(record.scorer for record in table))
        for name in arguments.use:
            if name not in there:
                raise UserError(f"--use: {arguments.scores} has no scores of {name!r}", nearest(name, there))
        table = [record for record in table if record.scorer in arguments.use]
    known = {(record.sample_key, record.prompt) for record in table}
    bar = tqdm(items, desc="hash images", unit="image", delay=1.0)
    identities = {(item.handle.key, item.prompt) for item in bar}
    if not identities & known:
        problem = f"{arguments.scores}: no score for any of the {len(items)} images; the first: {items[0].name}"
        raise UserError(problem, f"score them with dfb score {' '.join(arguments.images)}")
    return list(items), [record for record in table if (record.sample_key, record.prompt) in identities]
