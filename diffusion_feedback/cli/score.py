"""``dfb score``: images x scorers to one table of scores with their recipes."""

from __future__ import annotations

from collections.abc import Sequence

from .flags import Flags
from .scoring import IMAGES_HELP, SCORERS_HELP, add_image_flags, add_scoring_flags, in_natural_order

EPILOG = f"""examples:
  dfb score runs/demo/samples/dpo --scorer pickscore=assets/shapes-scorer shapes --output scores.parquet
  dfb score images --prompts prompts.txt --scorer hpsv2 pickscore --output scores.parquet
  dfb score 'pickapic/validation-*.parquet' --scorer hpsv2=HPS_v2.1_compressed.pt --dtype bfloat16 --output scores.parquet
  dfb score sdxl sd15 --prompts prompts.txt --scorer hpsv2 --output scores.csv
  dfb score cat.png 'drafts/*.webp' --prompt "a cat in a hat" --scorer pickscore --output scores.csv
  dfb score images --scorer rewards.py:brightness --output scores.csv
  accelerate launch --num_processes 4 -m diffusion_feedback score images --scorer hpsv2 --output scores.parquet

{SCORERS_HELP}
{IMAGES_HELP}
The table has a row for each image, prompt and scorer: image, image_key, prompt, scorer, recipe_id, score, raw (the cosine
of CLIP scorers), logit_scale, prompt_cut; .parquet, .csv or .jsonl by its ending. Of several folders the mean of each is printed too.
Run the same command again to go on after an interruption.
"""


def build_parser() -> Flags:
    """All flags of the command."""
    parser = Flags("dfb score", "Score images against their prompts, by one or several scorers at once.", EPILOG)
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
