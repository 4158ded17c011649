"""``dfb rounds``: draw from the model, judge, pair and train, round after round, each measured on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence

from ..config.parsing import build_parser, parse
from ..config.recipe import to_yaml
from .flags import help_text
from .recipe_help import answer_help


def run(argv: Sequence[str]) -> None:
    """Go through the rounds as ``argv`` says. Raises UserError for bad input."""
    description = "Let a model learn from judgements of what it makes itself, in rounds."
    parser = build_parser("dfb rounds", description, help_text("rounds"))
    parser.add_argument("--overwrite", action="store_true", help="start over, even where output_dir holds rounds")
    parser.add_argument("--print_config", action="store_true", help="print the resolved recipe and stop")
    answer_help(parser, argv)
    recipe, flags = parse(parser, argv)
    if flags.print_config:
        print(to_yaml(recipe), end="")
        return
    from ..workflows.rounds import rounds

    rounds(recipe, overwrite=flags.overwrite)
