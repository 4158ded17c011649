"""The one error for a user's mistake: the command line turns it into a clear message and exit code 2."""

from __future__ import annotations

import re


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


def first_line(error: BaseException) -> str:
    """The first line of what ``error`` says, for a message; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def visible(text: str) -> str:
    r"""``text`` with its control characters written out: ESC as \x1b, a right-to-left override as \u202e.

    A terminal or a page would obey them: names of files and texts of strangers could colour, hide or turn round what
    stands beside them. Line breaks and tabs stay, and so do joiners, which scripts and emoji need.
    """
    return _CONTROLS.sub(lambda found: _written_out(found[0]), text)


# ESC, NUL, DEL and their like; halves of characters, which nothing can print; what turns the direction of writing.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]|\r(?!\n)")


def _written_out(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
