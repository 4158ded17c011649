"""The one error for a user's mistake: the command line turns it into a clear message and exit code 2."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in the user's input: names the file, row, column or key, the value found, and what to do.

    ``problem`` says what is wrong and where; ``remedy`` says what to do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}\n  -> {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


def first_line(error: BaseException) -> str:
    """The first line of what ``error`` says, for a message; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
