"""What the parser of recipes has to say, in a user's words: the key, the value found, and what is allowed."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Literal, TypeVar

from ..values import described, hints_of, notes_of, one_of
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


def choices_of(key: str) -> list[str]:
    """The names that ``key`` may have, where it takes names of a list alone."""
    hint = _hints().get(key)
    parts = [hint, *typing.get_args(hint)]
    return [str(name) for part in parts if typing.get_origin(part) is Literal for name in typing.get_args(part)]


def is_optional(key: str) -> bool:
    """Whether ``key`` may be null."""
    return type(None) in typing.get_args(_hints()[key])


def holds_list(key: str) -> bool:
    """Whether ``key`` holds a list of texts, and nothing else."""
    return key in _hints() and typing.get_origin(_hints()[key]) is list


def full_key(name: str, flags: Sequence[str]) -> str:
    """The key that ``name`` stands for: itself with its section, where one section alone has it and no flag is called so."""
    keys = [key for key in known_keys() if key.partition(".")[2] == name]
    return keys[0] if len(keys) == 1 and name not in flags else name


def unknown_option(name: str, flags: Sequence[str]) -> tuple[str, str]:
    """(problem, remedy) for the option --``name``, which is neither a key of a recipe nor one of the command's ``flags``."""
    known = known_keys()
    last = name.rpartition(".")[2]
    problem, section = f"unknown option --{name}", name.partition(".")[0] + "."
    sections = [key for key in known if key.partition(".")[2] == last]
    if sections:
        return problem, f"did you mean {_as_flags(sections)}?"
    inside = [key for key in known if key.startswith(section)]
    every = inside or [*flags, *known]
    ends = [key.rpartition(".")[2] for key in every]
    close = difflib.get_close_matches(last, ends, n=1, cutoff=0.5 if inside else 0.7)
    meant = [key for key, end in zip(every, ends, strict=True) if end in close]
    hint = f"did you mean {_as_flags(dict.fromkeys(meant))}? " if meant else ""
    more = f"--help {section[:-1]} lists its keys" if inside else "--help all lists every key, as --SECTION.KEY"
    catalogued = "" if meant or inside else "; settings of the objective are --objective.KEY, as --objective.beta"
    return problem, f"{hint}{more}{catalogued}"


def _as_flags(keys: Iterable[str]) -> str:
    return one_of([f"--{key}" for key in keys][:_TIMES_SAID])


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
        return f"--{key}: has no value", f"give {what}" if what else "give one behind it"
    wrong = re.search(r"[Kk]ey \"([\w.]+)\"", message)
    if wrong and allowed(wrong.group(1)):
        key = wrong.group(1)
        value = re.search(r"(?:Got|Given) value: (.*)\Z", message, re.DOTALL) or re.search(r"[\"'](.+)[\"']", message)
        named_value = value.group(1).strip() if value else ""
        problem = f"{key}: got {_short(named_value)}" if named_value else f"{key}: no such value"
        return problem, among(named_value, allowed(key), choices_of(key))
    return message, "correct the recipe" if flags is None else "see --help"


def among(value: str, taken: str, choices: Sequence[str]) -> str:
    """What may stand in the place of ``value``: ``taken``, in words; the nearest of ``choices`` before it."""
    close = difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
    return f"{f'did you mean {close[0]}? ' if close else ''}allowed: {taken}"


def _short(text: str) -> str:
    """``text`` of the parser as a message shows a value: words in quotes, numbers and what has parts as they are."""
    if text == "None":
        return "null"
    text = repr(text) if re.fullmatch(r"[^\W\d].*", text) and text not in ("null", "true", "false") else text
    return text if len(text) <= 200 else f"{text[:200]}..."
