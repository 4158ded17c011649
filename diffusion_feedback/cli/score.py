"""``dfb score``: images x scorers to one table of scores with their recipes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..folders import hold_file
from .flags import Flags
from .scoring import SCORERS_HELP, add_scoring_flags

EPILOG = f"""examples:
  dfb score runs/demo/samples/dpo --scorer pickscore=assets/shapes-scorer shapes --output scores.parquet
  dfb score images --prompts prompts.txt --scorer hpsv2 pickscore --output scores.parquet
  dfb score 'pickapic/validation-*.parquet' --scorer hpsv2=HPS_v2.1_compressed.pt --dtype bfloat16 --output scores.parquet
  accelerate launch --num_processes 4 -m diffusion_feedback score images --scorer hpsv2 --output scores.parquet

{SCORERS_HELP}
IMAGES is a folder that dfb generate wrote, any image folder with metadata.jsonl, a plain folder with a .txt beside each
image, or preference pairs. The table has a row for each image, prompt and scorer: image, image_key, prompt, scorer,
recipe_id, score, raw (the cosine of CLIP scorers), logit_scale. Run the same command again to go on after an interruption.
"""


def build_parser() -> argparse.ArgumentParser:
    """All flags of the command."""
    parser = Flags(
        prog="dfb score",
        description="Score images against their prompts, by one or several scorers at once.",
        epilog=EPILOG,
    )
    parser.add_argument("images", metavar="IMAGES", help="folder of images, or preference pairs")
    parser.add_argument("--output", required=True, metavar="SCORES.parquet", help="file to write")
    parser.add_argument("--prompts", help="one prompt for each image of a plain folder, in the order of the file names")
    parser.add_argument("--split", default="train", help="split, where the source has splits (default train)")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it is there already")
    add_scoring_flags(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Score as ``argv`` says. Raises UserError for bad input."""
    arguments = build_parser().parse_args(argv)

    from .scoring import check_output

    output = Path(arguments.output)
    check_output(output, overwrite=arguments.overwrite)
    with hold_file(output, "dfb score"):
        _score(arguments, output)


def _score(arguments: argparse.Namespace, output: Path) -> None:
    from ..data.image_sets import open_images
    from ..data.scores import write_scores
    from ..prompts import read_prompts
    from .scoring import check_not_input, process_state, score_items, summary

    prompts = [record.prompt for record in read_prompts(arguments.prompts)] if arguments.prompts else None
    items = open_images(arguments.images, prompts=prompts, split=arguments.split, revision=arguments.revision)
    check_not_input(output, items, arguments.prompts)
    records = score_items(items, arguments)
    if process_state().is_main_process:
        write_scores(records, output)
        print(summary(records))
        print(f"{output}: {len(records):,} scores of {len(items):,} images")
