"""``dfb rounds``: draw from the model, judge, pair and train, round after round, each measured on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence

from ..config.parsing import build_parser, parse
from ..config.recipe import to_yaml

EPILOG = """examples:
  dfb rounds --config configs/text_rounds_tiny.yaml
  dfb rounds --config configs/text_rounds_tiny.yaml --rounds.reference previous --output_dir runs/rounds-previous
  dfb rounds --config configs/text_rounds_tiny.yaml --rounds.num_rounds 5
  dfb rounds --config configs/shapes_rounds.yaml

The recipe is one of dfb train, with the section rounds; data.train is a file of prompts, not of pairs. Every round lies
in a folder of its own under output_dir: round-1/samples, scores.parquet, pairs.jsonl or pairs.parquet, run (the training
run), evaluation and summary.json; rounds.json, report.html and README.md join them.
Run the same command again to go on after an interruption, or with more rounds; what is there is not made again.
"""


def run(argv: Sequence[str]) -> None:
    """Go through the rounds as ``argv`` says. Raises UserError for bad input."""
    description = "Let a model learn from judgements of what it makes itself, in rounds."
    parser = build_parser("dfb rounds", description, EPILOG)
    parser.add_argument("--overwrite", action="store_true", help="start over, even where output_dir holds rounds")
    parser.add_argument("--print_config", action="store_true", help="print the resolved recipe and stop")
    recipe, flags = parse(parser, argv)
    if flags.print_config:
        print(to_yaml(recipe), end="")
        return
    from ..workflows.rounds import rounds

    rounds(recipe, overwrite=flags.overwrite)
