"""The flags of commands that take no recipe: whole names only, nearest names for misspelt ones, and one short message."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..catalog import names
from ..catalog.formats import EXPORT_FORMATS
from ..config.wording import among
from ..errors import UserError
from ..values import described, one_of
from .settings import check_settings_of

_MOST = 2**63  # what torch and files of numbers can hold


def help_text(command: str) -> str:
    """What ``dfb COMMAND --help`` says below the flags: the text ``help/COMMAND.txt``; "" where there is none.

    A text of its own is in the place of ``{scorers}`` and ``{images}``, the catalog's scorers in that of ``{names}``, and its forms of results in that of ``{formats}``.
    """
    file = Path(__file__).with_name("help") / f"{command.replace(' ', '_')}.txt"
    text = file.read_text("utf-8") if file.is_file() else ""
    text = re.sub(r"^\{(scorers|images)\}$", lambda part: help_text(part[1]), text, flags=re.MULTILINE)
    formats = "\n".join(f"  {name:<12} {row.readers}" for name, row in EXPORT_FORMATS.items())
    return text.replace("{names}", ", ".join(names("scorer"))).replace("{formats}", formats)


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
        check_settings_of(self, vars(parsed))
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
            names = [name.partition("/")[0] if name[:2] == "--" else name for name in missing[1].split(", ")]
            raise UserError(f"missing: {', '.join(names)}", self._remedy())
        no_value = re.search(r"^(--\w+): expected (?:one|at least one|\d+) arguments?$", problem)
        if no_value:
            raise UserError(f"{no_value[1]}: has no value", f"give {self._taken(no_value[1])}")
        wrong = re.search(r"^(\S+): invalid (\w+) value: (.+)$", problem, re.DOTALL)
        if wrong:
            raise UserError(f"{wrong[1]}: got {wrong[3]}", f"allowed: {self._taken(wrong[1])}")
        choice = re.search(r"^(\S+): invalid choice: (.+) \(choose from (.+)\)$", problem, re.DOTALL)
        if choice:
            known = [name.strip(" '\"") for name in choice[3].split(",")]
            allowed = self._taken(choice[1]) if choice[1][:2] == "--" else ", ".join(known)
            raise UserError(f"{choice[1]}: got {choice[2]}", among(choice[2].strip("'\""), allowed, known))
        raise UserError(problem, self._remedy())

    def _taken(self, flag: str) -> str:
        """What values ``flag`` takes, in words."""
        action = self._option_string_actions[flag]
        if action.choices is not None:
            return one_of(list(action.choices))
        return described(action.type) if action.type in (int, float) else "a value, which stands behind it"

    def format_help(self) -> str:
        """The help, whose first line names what is needed alone."""
        wanted = [action for action in self._actions if action.required and not action.option_strings]
        flags = [action for action in self._actions if action.required and action.option_strings]
        names = [str(action.metavar or action.dest) for action in wanted]
        names += [f"{action.option_strings[0]} {action.metavar or action.dest.upper()}" for action in flags]
        self.usage = " ".join([self.prog, *names, "[options]"])
        return super().format_help()

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse is silent where this cannot be written, as on a full disk.
        (file or sys.stderr).write(message)

    def _remedy(self) -> str:
        return f"{self.prog} --help shows all options with examples"

    def _check_names(self, args: Sequence[str]) -> None:
        """Raise UserError for the first flag that does not exist: before argparse tells of others that are missing."""
        known, parser = set(self._option_string_actions), self  # the parser of the command that is meant
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for chosen in (action.choices[argument] for argument in args if argument in action.choices):
                    known, parser = known | set(chosen._option_string_actions), chosen
        for argument in args:
            name = argument.partition("=")[0]
            if name == "--":
                return
            if name.startswith("--") and name not in known:
                close = difflib.get_close_matches(
                    name.replace("-", "_"), [flag for flag in known if "-" not in flag[2:]], n=1
                )
                hint = f"did you mean {close[0]}? " if close else ""
                raise UserError(f"unknown option {name}", f"{hint}{parser._remedy()}")


def _check_number(name: str, value: object) -> None:
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, float) and not math.isfinite(each):
            raise UserError(f"--{name}: got {each}", "allowed: a finite number")
        if isinstance(each, int) and not -_MOST <= each < _MOST:
            raise UserError(f"--{name}: got {each}", "allowed: numbers below 2^63")
