"""``dfb train``: a recipe to a tuned model, scorer or reward model in a run folder that explains itself."""

from __future__ import annotations

from collections.abc import Sequence

from ..config.parsing import build_parser, parse
from ..config.recipe import to_yaml
from ..folders import is_main_process
from .flags import help_text
from .recipe_help import answer_help


def run(argv: Sequence[str]) -> None:
    """Train as ``argv`` says. Raises UserError for bad input."""
    parser = build_parser(
        "dfb train", "Fine-tune a model, or train a scorer or a reward model, on feedback.", help_text("train")
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in output_dir")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in output_dir")
    parser.add_argument("--print_config", action="store_true", help="print the resolved recipe and stop")
    parser.add_argument("--dry_run", action="store_true", help="say what would be trained, with memory, and stop")
    answer_help(parser, argv)
    recipe, flags = parse(parser, argv)
    if flags.print_config:
        print(to_yaml(recipe), end="")
        return
    from ..workflows.training.run import train

    run = train(recipe, resume=flags.resume, overwrite=flags.overwrite, dry_run=flags.dry_run)
    if is_main_process():
        print(*run.plan, sep="\n", end="\n" if run.plan else "")
