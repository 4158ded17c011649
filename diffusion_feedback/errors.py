"""The errors that are no defects: the command line turns them into a clear message and an exit code of their own."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What allocators say in a RuntimeError of no kind of its own: torch's on the CPU, cuBLAS, and the drivers of devices.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")


class UserError(ValueError):
    """A mistake in the user's input: names the file, row, column or key, the value found, and what to do.

    ``problem`` says what is wrong and where; ``remedy`` says what to do about it. Whatever of a stranger's text stands in
    them is ``visible``.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        problem, remedy = visible(problem), visible(remedy)
        super().__init__(f"{problem}\n  -> {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


class Interrupted(KeyboardInterrupt):
    """A signal ended the work at a place from where it goes on; the exit code is 128 + ``signum``.

    Of a training run ``step`` is the last one that was finished, whose checkpoint is the folder ``checkpoint``.
    """

    def __init__(
        self, signum: int, message: str = "", *, step: int | None = None, checkpoint: Path | None = None
    ) -> None:
        super().__init__(message)
        self.signum = int(signum)
        self.message = message
        self.step = step
        self.checkpoint = checkpoint


def first_line(error: BaseException) -> str:
    """The first line of what ``error`` says, for a message, and the next where it ends in a colon; its kind where it
    says nothing.
    """
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{first} {rest[0]}" if first.endswith(":") and rest else first


def nearest(name: str, known: list[str]) -> str:
    """A hint for a misspelt ``name``: the closest of ``known``, and the list of all."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(known)}"


def shown(value: object, most: int = 60) -> str:
    """``value`` in ``most`` characters, for a message."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def plural(number: int, one: str, many: str | None = None) -> str:
    """``number`` with its noun, and its verb where ``many`` is given: "1 tie", "1,632 prompts", "2 passes", "1 row repeats"."""
    several = many or one + ("es" if one.endswith("s") else "s")
    return f"{number:,} {one if number == 1 else several}"


def visible(text: str) -> str:
    r"""``text`` with its control characters written out: ESC as \x1b, a right-to-left override as \u202e.

    A terminal or a page would obey them: names of files and texts of strangers could colour, hide or turn round what
    stands beside them. Line breaks and tabs stay, and so do joiners, which scripts and emoji need.
    """
    return _CONTROLS.sub(lambda match: _written_out(match[0]), text)


# ESC, NUL, DEL and their like; halves of characters, which nothing can print; what turns the direction of writing.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]|\r(?!\n)")


def _written_out(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on the CPU or on a device; torch need not be imported for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _OUT_OF_MEMORY)


@contextmanager
def within_memory(what: str, remedy: str) -> Iterator[None]:
    """Turn running out of memory in ``what`` into a UserError that ends in ``remedy``; other errors pass."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{what}: out of memory: {first_line(error)}", remedy) from error
