"""``dfb``: dispatches to one module a command, imported only when its command is called.

Exit codes: 0 for done; 2 for a user's mistake, or a failure of the disk, of a path or of memory (reported in one message,
without a traceback); 130 for an interruption, 143 for a request to end (SIGTERM), 141 where the reader of the output has
gone. Any other failure is a defect and shows its traceback.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Mapping, Sequence

from .. import __version__
from ..errors import UserError, nearest
from . import failures
from .launching import check_launch
from .network import go_offline_without_a_hub

COMMANDS: Mapping[str, str] = {
    "train": "fine-tune a model on preference pairs, from a recipe",
    "rounds": "draw, judge, pair and train, round after round",
    "generate": "prompts and a model to a folder of images, or to completions",
    "score": "images and scorers to a table of scores",
    "label": "scored images to preference pairs; pairs to new labels",
    "calibrate": "scorers against labelled pairs: accuracy, logit scale, report",
    "benchmark": "a benchmark's prompts, a model or its images, and scorers to metrics",
    "judge": "two language models on the same prompts: win rate, perplexity, divergence",
    "export": "a result to the form of another tool: kohya, ComfyUI, peft, diffusers, one file",
    "push": "a run, a step of it, or an export to the hub, with its card",
    "report": "several benchmark runs on one page, side by side",
    "data": "check, view and audit preference pairs, convert them to one parquet file",
    "demo": "the whole story on the embedded model, with a report",
}

OVERVIEW = """\
usage: dfb COMMAND [options]

Takes generative models beyond imitation by learning from feedback.

commands:
{commands}

options:
  --help       this overview; dfb COMMAND --help shows the options of a command
  --version    the version

examples:
  dfb demo
  dfb train --config configs/shapes_dpo_lora.yaml
  dfb train --config configs/shapes_dpo_lora.yaml --training.learning_rate 1e-5 --output_dir runs/second
"""


def overview() -> str:
    """What ``dfb --help`` prints."""
    return OVERVIEW.format(commands="\n".join(f"  {name:<12} {what}" for name, what in COMMANDS.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` is ``sys.argv[1:]`` unless given."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with failures.printing_notes(), failures.stopping() as received:
        try:
            code = _guarded(arguments, received)
        except SystemExit as error:  # of --help, and of commands that have said everything
            code = failures.flushed(error.code if isinstance(error.code, int) else int(error.code is not None))
            raise SystemExit(code) from error
        return failures.flushed(code)


def _guarded(arguments: Sequence[str], received: Sequence[int]) -> int:
    try:
        failures.open_streams()
        failures.check_arguments(arguments)
        _run(arguments)
    except KeyboardInterrupt as error:
        return failures.interrupted(error, arguments)
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except Exception as error:
        if stopped := failures.interruption(error, received):
            return failures.interrupted(stopped, arguments)
        message = failures.as_user_error(error, arguments)
        if message is None:
            raise
        failures.say(f"error: {failures.as_flags(str(message))}")
        return 2
    return 0


def _run(arguments: Sequence[str]) -> None:
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        print(overview(), end="")
    elif command == "--version":
        print(__version__)
    elif command in COMMANDS:
        # Imported here and not above, so that the overview and a misspelt name are answered at once.
        if not {"-h", "--help"} & set(arguments):
            check_launch(command)
            go_offline_without_a_hub()
            importlib.import_module("diffusion_feedback.installation").check_installed()
        importlib.import_module(f"diffusion_feedback.cli.{command}").run(arguments[1:])
    else:
        raise UserError(f"unknown command {command!r}", nearest(command, list(COMMANDS)))
