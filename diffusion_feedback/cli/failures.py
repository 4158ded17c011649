"""What becomes of a failure that is no defect: a message with its remedy, an exit code, and the command that goes on."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from ..errors import Interrupted, UserError, first_line, is_out_of_memory
from ..folders import is_main_process
from ..processes import num_launched
from ..progress import LOGGER

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_OF_A_PATH = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EEXIST,
    errno.ENOTEMPTY, errno.EIO, errno.ESTALE, errno.EBUSY, errno.ETXTBSY, errno.EMFILE, errno.ENFILE,
)  # fmt: skip
_MAY_BE_EMPTY = ("--negative_prompt", "--negative-prompt", "--prompt")  # texts, of which the last has its own message
_OUTPUTS = ("--output_dir", "--output-dir", "--output")
# Commands that keep what is whole in their folder and go on from there; the others begin again.
_GOING_ON = ("train", "rounds", "generate", "score", "label", "calibrate", "benchmark", "judge", "demo")


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


def going_on(arguments: Sequence[str], step: int | None = None) -> str:
    """What to run after an interruption of ``dfb *arguments``, of training after ``step``, and what that does."""
    command = arguments[0] if arguments else ""
    if command not in _GOING_ON:
        return "nothing half-written stands under its final name; the same command begins again"
    keeps_old = command in ("score", "label", "calibrate")  # --overwrite allows them to replace what stood there before
    more = [argument for argument in arguments[1:] if argument != "--overwrite" or keeps_old]
    if command == "train" and "--resume" not in more:
        more.append("--resume")
    command_line = f"`dfb {shlex.join([command, *more])}`"
    if num_launched() > 1:
        command_line += ", launched as before,"
    return f"{command_line} goes on from {f'step {step}' if step else 'the last whole piece of work'}"


def as_user_error(error: Exception, arguments: Sequence[str]) -> UserError | None:
    """The message of a failure of the machine, the disk or a path; None where ``error`` is a defect of ours."""
    if isinstance(error, UserError):
        return error
    if is_out_of_memory(error):
        remedy = _SMALLER.get(arguments[0] if arguments else "", _SMALLER["others"])
        return UserError(f"out of memory: {first_line(error)}", remedy)
    if isinstance(error, OSError):
        return _of_the_disk(error, arguments)
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        name = str(error.object).encode("utf-8", "backslashreplace").decode()
        return UserError(f"{name[:200]}: not UTF-8", "give the file or folder a name in UTF-8")
    if isinstance(error, RuntimeError) and "Symlink loop" in str(error):
        return UserError(str(error), "remove the link that leads back to itself, or use another path")
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return UserError("~: there is no home folder on this machine", "set HOME, or write whole paths")
    if isinstance(error, ValueError) and "null byte" in str(error):
        return UserError("a path holds a NUL character", "give the name of a file or folder")
    return None


def _of_the_disk(error: OSError, arguments: Sequence[str]) -> UserError | None:
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else None
    what = f"{path or 'reading or writing a file, or standard output'}: {error.strerror}"
    if error.errno in _FULL:
        return UserError(what, f"make room, or write elsewhere; {going_on(arguments)}")
    if error.errno in _FORBIDDEN:
        return UserError(what, f"change its rights, or use another path; {going_on(arguments)}")
    if error.errno not in _OF_A_PATH or (path and Path(path).is_relative_to(Path(__file__).parent.parent)):
        return None  # the latter is a file of this package
    if path and any(Path(path).absolute().is_relative_to(place) for place in _outputs(arguments)):
        return UserError(what, f"was it moved or deleted meanwhile? {going_on(arguments)}; or choose another output")
    return UserError(what, "check this path: is it there, a file or a folder as is wanted, and readable?")


def _outputs(arguments: Sequence[str]) -> Iterator[Path]:
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in _OUTPUTS:
            value = value if equals else "".join(arguments[place + 1 : place + 2])
            with suppress(RuntimeError):
                yield Path(value).expanduser().absolute()


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise UserError for an argument that is no UTF-8, as it could not be written into any file, and for an empty one.

    A variable of the shell that is not set gives those: --lora "" would draw the base, --output "" write here.
    """
    for place, argument in enumerate(arguments[1:], start=1):
        flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        if not flag and place > 1 and arguments[place - 1].startswith("--"):
            flag = arguments[place - 1]
        is_empty = not argument or (argument.startswith("--") and equals and not value)
        if is_empty and "." not in flag and flag not in _MAY_BE_EMPTY:
            what = flag or f"argument {place} of dfb {arguments[0]}"
            raise UserError(f"{what}: is empty", "give a value, or leave it out; is a variable of the shell not set?")
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            name = argument.encode("utf-8", "backslashreplace").decode()
            remedy = "rename the file or folder: names must be UTF-8, as files of results tell them"
            raise UserError(f"argument {name!r}: not UTF-8", remedy) from error


class _Printer(logging.Handler):
    """Prints what workflows note, once for all processes, with parameters as flags."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print ``record``; a reader that has gone is for ``main`` to see."""
        if is_main_process():
            print(as_flags(record.getMessage()), flush=True)


def as_flags(text: str) -> str:
    """``text`` of a workflow as the command line tells it: a parameter, which stands in backquotes, is a flag here."""
    return re.sub(r"`([a-z][a-z0-9_]*)`", r"--\1", text)


@contextmanager
def printing_notes() -> Iterator[None]:
    """Within this, what workflows note is printed, and their bars are shown."""
    logger, printer = logging.getLogger(LOGGER), _Printer()
    level, propagates = logger.level, logger.propagate
    logger.addHandler(printer)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(printer)
        logger.setLevel(level)
        logger.propagate = propagates


def say(text: str) -> None:
    """Print ``text`` to standard error, as far as there is one."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


@contextmanager
def stopping() -> Iterator[list[int]]:
    """The signals that came. Within this, a request to end (SIGTERM, SIGUSR1, a terminal that closes) raises ``Interrupted``, as Ctrl-C does its like."""

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Interrupted(number)

    received: list[int] = []
    before = {}
    with suppress(ValueError):  # not the main thread: signals are somebody else's
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
            if signal.getsignal(number) in (
                signal.SIG_DFL,
                signal.default_int_handler,
            ):  # nohup ignores SIGHUP, and means it
                before[number] = signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interruption(error: BaseException | None, received: Sequence[int]) -> KeyboardInterrupt | None:
    """The interruption behind ``error``: a library that is interrupted while it loads may say that this failed."""
    if received:
        return Interrupted(received[-1])
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def interrupted(error: KeyboardInterrupt, arguments: Sequence[str]) -> int:
    """Say what happened and how to go on, from one of several processes; returns the exit code."""
    number = error.signum if isinstance(error, Interrupted) else int(signal.SIGINT)
    if is_main_process():
        message = error.message if isinstance(error, Interrupted) else ""
        what = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        step = error.step if isinstance(error, Interrupted) else None
        say(f"\n{message or what}; {going_on(arguments, step)}")
    return 128 + number


def open_streams() -> None:
    """Give what the shell has closed (``>&-``) a place to go, so that no file of ours takes its number.

    Raises UserError where standard output is closed: whatever is printed would be lost.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    is_closed = sys.stdout is None
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            # What the terminal's encoding lacks, or a name that is no UTF-8, is written out.
            stream.reconfigure(errors="backslashreplace")
    if is_closed:
        raise UserError("standard output is closed", "redirect it to a file, or to /dev/null")


def flushed(code: int) -> int:
    """Bring what was printed to its reader; ``code``, or that of a failure to do so where all else went well."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has gone. What is still buffered would fail again when Python flushes at exit.
        _give_up()
        return code or 128 + signal.SIGPIPE
    except OSError as error:
        _give_up()
        say(f"error: standard output: {error.strerror}\n  -> make room, or redirect it elsewhere; files are in place")
        return code or 2
    return code


def _give_up() -> None:
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
