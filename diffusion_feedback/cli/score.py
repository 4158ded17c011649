"""``dfb score``: images x scorers to one table of scores with their recipes."""

from __future__ import annotations

from collections.abc import Sequence

from .flags import Flags
from .scoring import add_image_flags, add_scoring_flags, in_natural_order


def build_parser() -> Flags:
    """All flags of the command."""
    parser = Flags("dfb score", "Score images against their prompts, by one or several scorers at once.")
    add_image_flags(parser, metavar="IMAGES", about="folders of images, images, globs, or preference pairs, see below")
    parser.add_argument("--output", required=True, metavar="SCORES", help="file to write: .parquet, .csv or .jsonl")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it is there already")
    add_scoring_flags(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Score as ``argv`` says. Raises UserError for bad input."""
    given = vars(build_parser().parse_args(argv))

    from ..workflows.scoring import score

    score(in_natural_order(given.pop("images")), **given)
