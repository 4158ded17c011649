"""Flags made of the settings of workflows, which hold the defaults."""

from __future__ import annotations

import argparse
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

NAMES = "names of a table's columns, such as image_a=left_path,image_b=right_path,vote=winner"


_KIND = "settings"  # of an action: the class whose field it sets


def check_settings_of(parser: argparse.ArgumentParser, given: Mapping[str, object]) -> None:
    """Raise UserError for values of ``given`` that the settings behind their flags refuse: before anything heavy is loaded."""
    kinds: dict[type[Any], dict[str, object]] = {}
    for each in parsers_of(parser, given):
        for action in each._actions:
            if _KIND in vars(action) and action.dest in given:
                kinds.setdefault(vars(action)[_KIND], {})[action.dest] = given[action.dest]
    for kind, values in kinds.items():
        if all(field.name in values or has_default(field) for field in fields(kind)):
            kind(**values)


def has_default(field: Field[object]) -> bool:
    """Whether ``field`` may be left out."""
    return field.default is not MISSING or field.default_factory is not MISSING


def add_flags(
    parser: argparse._ActionsContainer, kind: type[Any], helps: Mapping[str, str], **more: Mapping[str, Any]
) -> None:
    """Add a flag for each field of the settings ``kind`` that ``helps`` names, in the order of ``helps``.

    The default stands behind the help unless it is None or False. ``more`` holds further arguments of argparse by field,
    such as ``scorers={"metavar": "SPEC"}``; ``flag`` among them is another name of the flag, ``also`` one more.
    """
    known = {field.name: field for field in fields(kind)}
    hints = get_type_hints(kind)
    for name, text in helps.items():
        given = dict(more.get(name, {}))
        flag = given.pop("flag", name)
        names = [flag, flag.replace("_", "-"), *([given.pop("also")] if "also" in given else [])]
        spellings = [f"--{each}" for each in dict.fromkeys(names)]
        how = {"dest": name, "default": argparse.SUPPRESS, "help": text + _default(known[name]), **_how(hints[name])}
        vars(parser.add_argument(*spellings, **{**how, **given}))[_KIND] = kind


def _default(field: Field[object]) -> str:
    value = field.default
    if value is MISSING or value is None or value is False or value in ((), ""):
        return ""
    return f" (default {' '.join(map(str, value)) if isinstance(value, tuple) else value})"


def _how(hint: object) -> dict[str, object]:
    """The arguments of argparse by which a value of type ``hint`` is read."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    if get_origin(hint) is Literal:
        return {"choices": list(get_args(hint))}
    if get_origin(hint) is Sequence:
        return {**_how(get_args(hint)[0]), "nargs": "+", "action": "extend"}
    if hint is bool:
        return {"action": "store_true"}
    return {"type": hint} if hint in (int, float) else {}


def parsers_of(
    parser: argparse.ArgumentParser, given: Mapping[str, object] | None = None
) -> list[argparse.ArgumentParser]:
    """``parser`` and the parsers of its second words; of the second word in ``given`` alone, where there is one."""
    parsers = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            chosen = None if given is None else given.get(action.dest)
            parsers += [inner for name, inner in action.choices.items() if chosen in (None, name)]
    return parsers
