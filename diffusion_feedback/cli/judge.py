"""``dfb judge``: two language models on the same prompts: win rate, perplexity, divergence from a reference."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from ..workflows.settings import CompletionSampling
from .flags import Flags
from .sampling import add_completion_flags
from .settings import made_of

EPILOG = """examples:
  dfb judge runs/text_dpo assets/captions-lm --prompts assets/captions/validation.jsonl \\
    --judge function=diffusion_feedback.shapes.captions:reward --output_dir runs/judged
  dfb judge runs/a runs/b --prompts heldout.jsonl --judge reward_model=runs/reward --num_samples 4 --output_dir runs/judged
  dfb judge runs/a runs/b --prompts heldout.jsonl --judge llm=Qwen/Qwen2.5-7B-Instruct --output_dir runs/judged
  dfb judge out/a/completions.jsonl out/b --judge classifier=sentiment,label=POSITIVE --output_dir runs/judged
  dfb judge runs/dpo runs/sft --texts heldout.jsonl --reference runs/sft --prompts heldout.jsonl --output_dir runs/judged

A and B are folders or hub ids of language models, or completions that dfb generate wrote for the same prompts and seeds.

judges, written KIND=SOURCE[,key=value,...]:
  reward_model=PATH                a transformers model with one label; as_chat=true, max_length, batch_size
  classifier=PATH,label=POSITIVE   the log-odds of a label; output=probability, reads=completion
  function=module:attribute        of your own, called with prompts and completions; also function=path/to/file.py:attribute
  llm=PATH                         a language model that is shown both and says A or B; template=FILE with the question

An LLM judge is asked in both orders: where its answers contradict each other the pair is a tie, and the share of such
pairs is told. Intervals are over prompts, whose samples belong together. --texts gives each model's perplexity on texts of
any format that is trained on, --reference the divergence of each model from it. The folder holds completions of both,
judgements.jsonl, results.json, report.html and README.md. Run the same command again to go on after an interruption.
"""


def build_parser() -> argparse.ArgumentParser:
    """All flags of the command."""
    parser = Flags(
        prog="dfb judge",
        description="Compare two language models, or their completions, on held-out prompts.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("a", metavar="A", help="model folder, hub id, or completions")
    add("b", metavar="B", help="what A is compared with")
    add("--output_dir", "--output-dir", required=True, help="folder to write")
    add("--prompts", help="held-out prompts, in any form of dfb generate; not needed for two files of completions")
    add("--judge", nargs="+", action="extend", default=[], metavar="SPEC", help="who judges, see below")
    add("--tie_margin", "--tie-margin", type=float, default=0.0, help="scores this close count as a tie (default 0)")
    add("--texts", help="held-out texts on which each model's perplexity is measured")
    add("--reference", help="model from which the divergence of A and B is measured")
    add("--names", nargs=2, metavar=("A", "B"), help="what the two are called (default: their folders)")
    add("--seed", type=int, default=0, help="seed of the samples (default 0)")
    add_completion_flags(parser)
    add("--batch_size", "--batch-size", type=int, default=16, help="completions at once (default 16)")
    add("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="precision of models and judges")
    add("--device", help="cuda, cpu, ...; the best one there is by default")
    add("--overwrite", action="store_true", help="replace what is in the folder")
    return parser


def run(argv: Sequence[str]) -> None:
    """Judge as ``argv`` says. Raises UserError for bad input."""
    arguments = build_parser().parse_args(argv)
    vars(arguments).update(asdict(made_of(arguments, CompletionSampling)))
    _check(arguments)
    from ..workflows.judging import judge

    judge(arguments)


def _check(arguments: argparse.Namespace) -> None:
    from ..errors import UserError

    if not (arguments.judge or arguments.texts or arguments.reference):
        raise UserError("nothing to measure", "give --judge, --texts or --reference")
    for flag, low in (("batch_size", 1), ("seed", 0)):
        if getattr(arguments, flag) < low:
            raise UserError(f"--{flag}: got {getattr(arguments, flag)}", f"allowed: {low} or more")
    if not arguments.tie_margin >= 0:
        raise UserError(f"--tie_margin: got {arguments.tie_margin}", "allowed: 0 or more, in the unit of the scores")
    bends = arguments.temperature == 0 or arguments.top_k > 0 or arguments.top_p < 1
    if arguments.reference and bends:
        problem = "--reference: no divergence can be told of samples with temperature 0, top_k or top_p"
        raise UserError(problem, "draw with all tokens at a temperature above 0, or leave --reference out")
