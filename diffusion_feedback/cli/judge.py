"""``dfb judge``: two language models on the same prompts: win rate, perplexity, divergence from a reference."""

from __future__ import annotations

from collections.abc import Sequence

from ..workflows.settings import JudgeSettings
from .flags import Flags
from .sampling import add_completion_flags
from .settings import add_flags

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
  module:attribute                 of your own, called with prompts and completions; also path/to/file.py:attribute
  llm=PATH                         a language model that is shown both and says A or B; template=FILE with the question

An LLM judge judges in both orders: where its answers contradict each other the pair is a tie, and the share of such
pairs is reported. Intervals are over prompts, whose samples belong together. --texts gives each model's perplexity on texts of
any format that is trained on, --reference the divergence of each model from it. The folder holds completions of both,
judgements.jsonl, results.json, report.html and README.md. Run the same command again to go on after an interruption.
"""


def build_parser() -> Flags:
    """All flags of the command."""
    parser = Flags("dfb judge", "Compare two language models, or their completions, on held-out prompts.", EPILOG)
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
