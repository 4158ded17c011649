"""``dfb label``: scored images to preference pairs, and pairs to new labels."""

from __future__ import annotations

from collections.abc import Sequence

from ..workflows.settings import LabelingSettings
from .flags import Flags
from .scoring import add_image_flags, add_scoring_flags, in_natural_order
from .settings import add_flags

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
        "dfb label", "Make preference pairs of scored images, or label pairs again, by one or several scorers."
    )
    add = parser.add_argument
    add_image_flags(parser, metavar="IMAGES_OR_PAIRS", about="images with prompts, see below, or preference pairs")
    add("--output", required=True, metavar="PAIRS.parquet", help="file to write")
    add("--scores", metavar="SCORES.parquet", help="use the scores of this table from dfb score, in place of --scorer")
    add("--use", nargs="+", default=(), metavar="SCORER", help="with --scores: the scorers that judge (default all)")
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
