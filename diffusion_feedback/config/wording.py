"""What the parser of recipes has to say, in a user's words: the key, the value found, and what is allowed."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TypeVar

from ..errors import nearest
from ..values import described, hints_of, notes_of
from .recipe import SECTIONS, Recipe

_Said = TypeVar("_Said")
_TIMES_SAID = 3  # sections that a key without one may belong to, named together


def known_keys() -> list[str]:
    """All recipe keys with their sections, such as training.learning_rate."""
    return list(key_notes())


def _by_key(of_fields: Callable[[type[object]], Mapping[str, _Said]]) -> dict[str, _Said]:
    """What ``of_fields`` says of the fields of a class, by the keys of a recipe."""
    kinds = SECTIONS.items()
    return {
        **of_fields(Recipe),
        **{f"{name}.{key}": said for name, kind in kinds for key, said in of_fields(kind).items()},
    }


@cache
def key_notes() -> dict[str, tuple[object, ...]]:
    """What stands beside the types of all keys: ranges, and what a key is for."""
    return _by_key(notes_of)


@cache
def _hints() -> dict[str, object]:
    return _by_key(hints_of)


def allowed(key: str) -> str:
    """What values ``key`` may have, such as "lora or full"; nothing for a key that is not known."""
    return described(_hints()[key]) if key in _hints() else ""


def is_optional(key: str) -> bool:
    """Whether ``key`` may be null."""
    return type(None) in typing.get_args(_hints()[key])


def unknown_option(name: str, flags: Sequence[str]) -> tuple[str, str]:
    """(problem, remedy) for the option --``name``, which is neither a key of a recipe nor one of the command's ``flags``."""
    known = known_keys()
    last = name.rpartition(".")[2]
    sections = [key for key in known if key.partition(".")[2] == last]
    if sections:
        return f"unknown option --{name}", f"did you mean {_one_of(sections)}?"
    section = name.partition(".")[0] + "."
    inside = [key for key in known if key.startswith(section)]
    if inside:
        return f"unknown option --{name}", nearest(name, inside)
    every = list(dict.fromkeys([*flags, *known]))
    ends = {key.rpartition(".")[2]: key for key in every}
    close = difflib.get_close_matches(last, list(ends), n=1, cutoff=0.7)
    sections = [key for key in every if key.rpartition(".")[2] in close]
    tops = ", ".join(key for key in known if "." not in key)
    hint = f"did you mean {_one_of(sections)}? " if sections else ""
    return f"unknown option --{name}", f"{hint}keys are SECTION.KEY; sections and keys without one: {tops}"


def _one_of(keys: Sequence[str]) -> str:
    said = [f"--{key}" for key in keys[:_TIMES_SAID]]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} or {said[-1]}"


def explain(message: str, flags: Sequence[str] | None) -> tuple[str, str]:
    """Turn the parser's message into (problem, remedy); ``flags`` are the command's own, None where none is called."""
    unknown = re.search(r"[Kk]ey \"?([\w.]+)\"? is not expected", message)
    if unknown:
        return unknown_option(unknown.group(1), flags or ())
    stray = re.search(r"unrecognized arguments: (\S+)", message)
    if stray:
        name = stray.group(1).partition("=")[0]
        is_key = name in (*known_keys(), *(flags or ()))
        return (
            f"{name!r}: is no option{', without its dashes' * is_key}",
            f"write --{name if is_key else 'SECTION.KEY'} VALUE",
        )
    missing = re.search(r"arguments are required: (.+)", message)
    if missing:
        remedy = "give it as a flag, or name a recipe with --config configs/....yaml"
        return f"missing: {missing.group(1)}", "set it in the recipe" if flags is None else remedy
    no_value = re.search(r"^argument --([\w.]+): expected (?:one|at least one) argument", message)
    if no_value:
        key = no_value.group(1)
        what = "the name of a recipe file" if key == "config" else allowed(key)
        return f"--{key}: has no value", f"give {what}" if what else "give one"
    several = re.search(r"[Kk]ey \"(data\.(?:train|validation))\".*value: \[", message, re.DOTALL)
    if several:
        remedy = "convert each to a file of one folder, and give that folder"
        return f"{several.group(1)}: a list of data sets, where one is read", remedy
    wrong = re.search(r"[Kk]ey \"([\w.]+)\"", message)
    if wrong and allowed(wrong.group(1)):
        key = wrong.group(1)
        value = re.search(r"(?:Got|Given) value: (.*)\Z", message, re.DOTALL) or re.search(r"[\"'](.+)[\"']", message)
        named_value = value.group(1).strip() if value else ""
        return (
            f"{key}: got {_short(named_value)}" if named_value else f"{key}: no such value",
            f"allowed: {allowed(key)}",
        )
    return message, "correct the recipe" if flags is None else "see --help"


def _short(text: str) -> str:
    text = "null" if text == "None" else text
    return text if len(text) <= 200 else f"{text[:200]}..."
