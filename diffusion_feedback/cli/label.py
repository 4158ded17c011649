"""``dfb label``: scored images to preference pairs, and pairs to new labels."""

from __future__ import annotations

from collections.abc import Sequence

from ..workflows.settings import LabelingSettings
from .flags import Flags
from .scoring import IMAGES_HELP, SCORERS_HELP, add_image_flags, add_scoring_flags, in_natural_order
from .settings import add_flags

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
  file.py:NAME     your own function from the ranked images of a prompt to pairs of places, 0 the best; module:NAME too

{SCORERS_HELP}
{IMAGES_HELP}
Probabilities are sigmoid(logit_a - logit_b) with logit = logit_scale * raw. A scorer without a logit scale (shapes,
aesthetic, clip_score, function) needs --calibration for all that speaks of probabilities; alone it ranks without one.
The output has Pick-a-Pic's columns with the images inside, and the scores, scorers, recipes and rule beside them. Each
prompt weighs the same (num_example_per_prompt). Pairs as input keep their pairs and get new labels, unless --rule is
given; their old label_0 stands in human_label_0. Run the same command again to go on after an interruption.
"""
HELPS = {
    "relabel": "keep the pairs of the input, label them again (the default for pairs)",
    "ensemble": "several scorers: mean of their probabilities, majority of their sides, or only where all agree",
    "ties": "leave ties out, label every pair by its probability, or keep ties with label 0.5",
    "tie_margin": "a pair with |P - 0.5| up to this is a tie; at 0 only exactly equal scores are",
    "min_probability": "keep a pair only if P(preferred image preferred) is at least this, in [0.5, 1)",
    "calibration": "logit scales from dfb calibrate; they replace the scorers' own",
    "max_pairs_per_prompt": "keep the rule's first pairs of each prompt",
}


def build_parser() -> Flags:
    """All flags of the command."""
    parser = Flags(
        "dfb label", "Make preference pairs of scored images, or label pairs again, by one or several scorers.", EPILOG
    )
    add = parser.add_argument
    add_image_flags(parser, metavar="IMAGES_OR_PAIRS", about="images with prompts, see below, or preference pairs")
    add("--output", required=True, metavar="PAIRS.parquet", help="file to write")
    add("--scores", metavar="SCORES.parquet", help="use the scores of this table from dfb score, in place of --scorer")
    add(
        "--use",
        nargs="+",
        default=(),
        metavar="SCORER",
        help="with --scores: the scorers of the table that judge (default all)",
    )
    add("--rule", help="how pairs are picked, see below (default best_worst)")
    add_flags(parser, LabelingSettings, HELPS, calibration={"metavar": "FILE.json"})
    add("--overwrite", action="store_true", help="replace the output if it is there already")
    add_scoring_flags(parser, required=False)
    return parser


def run(argv: Sequence[str]) -> None:
    """Label as ``argv`` says. Raises UserError for bad input."""
    given = vars(build_parser().parse_args(argv))

    from ..workflows.labeling import label

    label(in_natural_order(given.pop("images")), **given)
