"""``dfb judge``: two language models on the same prompts: win rate, perplexity, divergence from a reference."""

from __future__ import annotations

from collections.abc import Sequence

from ..workflows.settings import JudgeSettings
from .flags import Flags
from .sampling import add_completion_flags
from .settings import add_flags


def build_parser() -> Flags:
    """All flags of the command."""
    parser = Flags("dfb judge", "Compare two language models, or their completions, on held-out prompts.")
    add = parser.add_argument
    add("a", metavar="A", help="model folder, hub id, or completions")
    add("b", metavar="B", help="what A is compared with")
    add("--output_dir", "--output-dir", required=True, help="folder to write")
    add("--prompts", help="held-out prompts, in any form of dfb generate; not needed for two files of completions")
    add("--judge", dest="judges", nargs="+", action="extend", default=[], metavar="SPEC", help="who judges, see below")
    add("--texts", help="held-out texts on which each model's perplexity is measured")
    add("--reference", help="model from which the divergence of A and B is measured")
    add("--names", nargs=2, metavar=("A", "B"), help="what the two are called (default: their folders)")
    helps = {
        "tie_margin": "scores this close count as a tie",
        "seed": "seed of the samples",
        "batch_size": "completions at once",
        "dtype": "precision of models and judges (default float32)",
        "device": "cuda, cpu, ...; the best one there is by default",
        "lora_scale": "how much of the adapters of A and B is added, where they are adapter folders",
        "overwrite": "replace what is in the folder",
    }
    add_flags(parser, JudgeSettings, helps)
    add_completion_flags(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Judge as ``argv`` says. Raises UserError for bad input."""
    given = vars(build_parser().parse_args(argv))

    from ..workflows.judging import judge

    result = judge(**given)
    print(result)
    print(f"{result.folder}: results.json, report.html, README.md")
