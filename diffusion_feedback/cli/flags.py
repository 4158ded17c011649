"""The flags of commands that take no recipe: whole names only, nearest names for misspelt ones, and one short message."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..catalog import names
from ..errors import UserError, nearest

_WORDS = {"int": "a whole number", "float": "a number"}
_MOST = 2**63  # what torch and files of numbers can hold


def help_text(command: str) -> str:
    """What ``dfb COMMAND --help`` says below the flags: the text ``help/COMMAND.txt``; "" where there is none.

    A text of its own is in the place of ``{scorers}`` and ``{images}``, the catalog's scorers in that of ``{names}``.
    """
    file = Path(__file__).with_name("help") / f"{command.replace(' ', '_')}.txt"
    text = file.read_text("utf-8") if file.is_file() else ""
    text = re.sub(r"^\{(scorers|images)\}$", lambda part: help_text(part[1]), text, flags=re.MULTILINE)
    return text.replace("{names}", ", ".join(names("scorer")))


class Flags(argparse.ArgumentParser):
    """argparse, which raises a UserError for a mistake instead of printing all flags and leaving the process."""

    def __init__(self, prog: str, description: str = "", **more: object) -> None:
        own: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **more}
        super().__init__(prog, None, description, help_text(prog.removeprefix("dfb ")), **own)

    def parse_args(self, args: Sequence[str] | None = None, namespace: object = None) -> Any:  # type: ignore[override]
        """Read ``args``. Raises UserError for flags that do not exist, are missing, or have values that they cannot have."""
        given = list(args or ())
        self._check_names(given)
        parsed = super().parse_args(given, namespace)
        for name, value in vars(parsed).items():
            _check_number(name, value)
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raise UserError for what argparse has found."""
        # A flag is named once, not in all its spellings.
        problem = re.sub(r"^argument (--\w+)(?:/--[\w-]+)*", r"\1", message)
        problem = re.sub(
            r"^argument (?:\{.*\}|(\w+)): invalid choice", lambda own: f"{own[1] or 'command'}: invalid choice", problem
        )
        problem = re.sub(r"^unrecognized arguments: ", "one argument too many: ", problem)
        missing = re.search(r"arguments are required: (.+)", problem)
        if missing:
            names = [name.partition("/")[0] for name in missing[1].split(", ")]
            raise UserError(f"missing: {', '.join(names)}", self._remedy())
        wrong = re.search(r"^(\S+): invalid (\w+) value: (.+)$", problem, re.DOTALL)
        if wrong:
            raise UserError(f"{wrong[1]}: got {wrong[3]}", f"give {_WORDS.get(wrong[2], wrong[2])}")
        choice = re.search(r"^(\S+): invalid choice: (.+) \(choose from (.+)\)$", problem, re.DOTALL)
        if choice:
            known = [name.strip(" '\"") for name in choice[3].split(",")]
            raise UserError(f"{choice[1]}: got {choice[2]}", nearest(choice[2].strip("'\""), known))
        raise UserError(problem, self._remedy())

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse is silent where this cannot be written, as on a full disk.
        (file or sys.stderr).write(message)

    def _remedy(self) -> str:
        return f"{self.prog} --help shows all options with examples"

    def _check_names(self, args: Sequence[str]) -> None:
        """Raise UserError for the first flag that does not exist: before argparse tells of others that are missing."""
        known = set(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                known.update(
                    *(set(action.choices[arg]._option_string_actions) for arg in args if arg in action.choices)
                )
        for argument in args:
            name = argument.partition("=")[0]
            if name == "--":
                return
            if name.startswith("--") and name not in known:
                names = sorted(flag for flag in known if flag.startswith("--") and "-" not in flag[2:])
                raise UserError(f"unknown option {name}", nearest(name, names))


def _check_number(name: str, value: object) -> None:
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, float) and not math.isfinite(each):
            raise UserError(f"--{name}: got {each}", "allowed: a finite number")
        if isinstance(each, int) and not -_MOST <= each < _MOST:
            raise UserError(f"--{name}: got {each}", "allowed: numbers below 2^63")
