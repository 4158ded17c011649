"""Recipe files and flags to a checked Recipe; an unknown key is an error with the nearest name."""

from __future__ import annotations

import argparse
import dataclasses
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from ..catalog import check_settings, nearest, resolve, settings_of
from ..errors import UserError
from .checks import check
from .recipe import SECTIONS, Recipe

_CATALOGUED = ("objective", "optimizer")


def known_keys() -> list[str]:
    """All recipe keys with their sections, such as training.learning_rate."""
    sections = [f"{name}.{item.name}" for name, section in SECTIONS.items() for item in dataclasses.fields(section)]
    return [item.name for item in dataclasses.fields(Recipe)] + sections


class _HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows types and defaults, and leaves the lines of the examples as they are."""


def build_parser(prog: str, description: str, epilog: str = "") -> ArgumentParser:
    """A parser with ``--config`` and every recipe key as a flag."""
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} --config RECIPE.yaml [--SECTION.KEY VALUE ...]",
        description=description,
        epilog=epilog,
        exit_on_error=False,
        print_config=None,  # our own prints the resolved recipe alone
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--config", action="config", help="Recipe file (YAML); flags override it.")
    parser.add_class_arguments(Recipe)
    return parser


def parse(parser: ArgumentParser, argv: Sequence[str]) -> tuple[Recipe, Namespace]:
    """Parse flags and recipe files into a checked Recipe, and the namespace with the command's own flags.

    Raises UserError for unknown keys (with the nearest name), wrong types, missing keys, and unreadable files.
    """
    argv = [_with_underscores(argument) for argument in argv]
    _check_files(argv)
    try:
        namespace = parser.parse_args(list(argv))
    except ArgumentError as error:
        raise UserError(*_explain(str(error))) from error
    parts = {name: section(**vars(namespace[name])) for name, section in SECTIONS.items()}
    objective, optimizer = (_coerce(kind, dict(namespace[kind])) for kind in _CATALOGUED)
    recipe = Recipe(output_dir=namespace.output_dir, objective=objective, optimizer=optimizer, **parts)
    check(recipe)
    return recipe, namespace


def _with_underscores(argument: str) -> str:
    """Flags may be written with dashes as well, as in --training.learning-rate."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument


def _config_files(argv: Sequence[str]) -> list[str]:
    following = [argv[i + 1] for i, argument in enumerate(argv[:-1]) if argument == "--config"]
    return following + [argument.partition("=")[2] for argument in argv if argument.startswith("--config=")]


def _check_files(argv: Sequence[str]) -> None:
    """Refuse recipe files that cannot be read or hold unknown keys, naming file, key and the nearest known key."""
    for file in _config_files(argv):
        path = Path(file)
        if not path.is_file():
            raise UserError(f"{file}: no such recipe file", "recipes lie under configs/")
        try:
            content = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise UserError(f"{file}: not valid YAML: {error}", "mend the file") from error
        if not isinstance(content, dict):
            raise UserError(f"{file}: a recipe is a mapping of keys, found {type(content).__name__}", "see configs/")
        top = [item.name for item in dataclasses.fields(Recipe)]
        for key, value in content.items():
            if key not in top:
                raise UserError(f"{file}: unknown key {key!r}", nearest(str(key), known_keys()))
            inner = [item.name for item in dataclasses.fields(SECTIONS[key])] if key in SECTIONS else []
            for name in value if key in SECTIONS and isinstance(value, dict) else []:
                if name not in inner:
                    raise UserError(f"{file}: unknown key '{key}.{name}'", nearest(str(name), inner))


def _explain(message: str) -> tuple[str, str]:
    """Turn the parser's message into (problem, remedy)."""
    unknown = re.search(r"unrecognized arguments: (?:--)?([\w.\-]+)|[Kk]ey \"?([\w.]+)\"? is not expected", message)
    if unknown:
        name = unknown.group(1) or unknown.group(2)
        section = name.partition(".")[0] + "."
        known = known_keys()
        if name in known:
            return f"{name!r} is an option, and wants its dashes", f"write --{name} VALUE"
        near = [key for key in known if key.startswith(section)] or [key for key in known if "." not in key]
        return f"unknown option {name!r}", nearest(name, near)
    missing = re.search(r"arguments are required: (.+)", message)
    if missing:
        return f"missing: {missing.group(1)}", "give it as a flag, or name a recipe with --config configs/....yaml"
    return message, "see --help"


def _coerce(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Check ``settings`` against the signature that ``name`` stands for, and bring numbers to their declared type."""
    name = settings.get("name")
    if not isinstance(name, str):
        raise UserError(f"{kind}.name is missing", f"set {kind}.name, for example in {kind}: {{name: ...}}")
    own = {key: value for key, value in settings.items() if key != "name"}
    check_settings(kind, name, own)
    function = resolve(kind, name)
    hints = typing.get_type_hints(function)
    for key in settings_of(function):
        is_number = hints.get(key) is float or (hints.get(key) == float | None and own.get(key) is not None)
        if is_number and key in own:
            own[key] = _number(f"{kind}.{key}", own[key])
    if kind == "objective" and "terms" in own:
        own["terms"] = [_coerce_term(number, dict(term)) for number, term in enumerate(own["terms"], 1)]
    return {"name": name, **own}


def _coerce_term(number: int, term: dict[str, Any]) -> dict[str, Any]:
    """A term of a weighted sum: an objective's name and settings, and its weight."""
    weight = _number(f"objective.terms: weight of term {number}", term.pop("weight"))
    coerced = _coerce("objective", term)
    return {"name": coerced.pop("name"), "weight": weight, **coerced}


def _number(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: expected a number, got {value!r}", "give a number") from error
