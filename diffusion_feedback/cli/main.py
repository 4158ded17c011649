"""``dfb``: dispatches to one module a command, imported only when its command is called.

Exit codes: 0 for done, 2 for a user's mistake, a full disk or too little memory (told in one message, without a
traceback), 130 or 143 for an interruption (SIGINT, SIGTERM); any other failure is a defect and shows its traceback.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from .. import __version__
from ..catalog import nearest
from ..errors import Interrupted, UserError, first_line, is_out_of_memory

COMMANDS: Mapping[str, str] = {
    "train": "fine-tune a model on preference pairs, from a recipe",
    "rounds": "draw, judge, pair and train, round after round",
    "generate": "prompts and a model to a folder of images, or to completions",
    "score": "images and scorers to a table of scores",
    "label": "scored images to preference pairs; pairs to new labels",
    "calibrate": "scorers against labelled pairs: accuracy, logit scale, report",
    "benchmark": "a benchmark's prompts, a model or its images, and scorers to figures",
    "judge": "two language models on the same prompts: win rate, perplexity, divergence",
    "report": "several benchmark runs on one page, side by side",
    "data": "check preference pairs, convert them to one parquet file",
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


_INTERRUPTED = "interrupted; the same command (dfb train with --resume) goes on from the last whole piece of work"
_TRAINING = (
    "set model.gradient_checkpointing: true, lower data.resolution, text.max_length or training.train_batch_size (and raise"
    " training.gradient_accumulation_steps by as much), or use another device"
)
# What takes less memory, by command.
_SMALLER = {
    "train": _TRAINING,
    "rounds": f"lower rounds.batch_size; {_TRAINING}",
    "data": "check or convert a part of the data at a time, or close other programs",
    "others": "give a lower --batch_size, a smaller size of images or fewer tokens, or another --device",
}
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def overview() -> str:
    """What ``dfb --help`` prints."""
    return OVERVIEW.format(commands="\n".join(f"  {name:<12} {what}" for name, what in COMMANDS.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` is ``sys.argv[1:]`` unless given."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _run(arguments)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        signum = error.signum if isinstance(error, Interrupted) else int(signal.SIGINT)
        print(f"\n{(isinstance(error, Interrupted) and error.message) or _INTERRUPTED}", file=sys.stderr)
        return 128 + signum
    except BrokenPipeError:
        # The reader, such as `head`, has gone. What is still buffered would fail again when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        remedy = "make room, or write elsewhere; the same command (dfb train with --resume) goes on"
        print(f"error: {error.filename or 'writing'}: {error.strerror}\n  -> {remedy}", file=sys.stderr)
        return 2
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        remedy = _SMALLER.get(arguments[0], _SMALLER["others"])
        print(f"error: out of memory: {first_line(error)}\n  -> {remedy}", file=sys.stderr)
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
            importlib.import_module("diffusion_feedback.installation").check_installed()
        importlib.import_module(f"diffusion_feedback.cli.{command}").run(arguments[1:])
    else:
        raise UserError(f"unknown command {command!r}", nearest(command, list(COMMANDS)))
