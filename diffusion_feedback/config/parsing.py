"""Recipe files and flags to a checked Recipe; an unknown key is an error with the nearest name."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ..catalog import check_settings, resolve
from ..catalog.rows import settings_of
from ..documents import parse_yaml, read_yaml
from ..errors import UserError, first_line, nearest, shown
from ..folders import at_home, expand
from .checks import check_recipe
from .meaning import keys_for
from .recipe import MAX_TRAIN_STEPS, SECTIONS, Recipe, plain, to_dict
from .wording import allowed, explain, full_key, holds_list, known_keys, unknown_option

_CATALOGUED = ("objective", "optimizer")
_STAND_IN: dict[str, Any] = {"name": "sft"}
_TOP = [item.name for item in dataclasses.fields(Recipe)]


def build_parser(prog: str, description: str, epilog: str = "") -> ArgumentParser:
    """A parser with ``--config`` and every recipe key as a flag."""
    parser = ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,  # our own prints the resolved recipe alone
    )
    parser.add_argument("--config", action="config", help="recipe file (YAML), as under configs/; flags override it")
    parser.add_class_arguments(Recipe)
    return parser


def parse(parser: ArgumentParser, argv: Sequence[str]) -> tuple[Recipe, Namespace]:
    """Parse flags and recipe files into a checked Recipe, and the namespace with the command's own flags.

    A key that one section alone has may be given without it. Raises UserError for unknown keys (with the nearest name),
    wrong types, missing keys, values that no run can have, and unreadable files.
    """
    flags = [name.removeprefix("--") for name in parser._option_string_actions if name.startswith("--")]
    argv = _with_sections([_with_underscores(argument) for argument in argv], flags)
    _check_flags(argv, flags)
    given = {name for name, _ in _given(argv)}
    try:
        namespace = _read(parser, _with_contents(argv), flags)
        return _recipe_of(namespace), namespace
    except UserError as error:  # a key of a recipe by its name, a flag with its dashes
        dashes = "--" if error.problem.partition(":")[0] in given else ""
        raise UserError(f"{dashes}{error.problem}", error.remedy) from error


def load_recipe(path: str | Path, overrides: Mapping[str, object] | None = None) -> Recipe:
    """The recipe in the YAML file ``path`` with ``overrides``, such as ``{"training.learning_rate": 1e-5}``.

    A section, the objective or the optimizer may be overridden as a whole, by a mapping. Raises UserError as a recipe file
    does: unknown keys (with the nearest name), wrong types, missing keys, values that no run can have.
    """
    content = _content_of(str(path))
    for key, value in (overrides or {}).items():
        section, _, name = key.partition(".")
        if section not in _TOP:
            raise UserError(f"unknown key {key!r}", nearest(key, known_keys()))
        content[section] = {**content.get(section, {}), name: value} if name else value
    return _recipe_from(content, str(path))


def require_recipe(recipe: object) -> None:
    """Raise UserError unless ``recipe`` is a Recipe."""
    if not isinstance(recipe, Recipe):
        raise UserError(f"`recipe`: got {shown(recipe)}", "give a Recipe: load_recipe reads one from a file")


def checked(recipe: Recipe) -> Recipe:
    """``recipe`` as it would be read from its own file: checked in the same way. Raises UserError naming the key.

    The name of its objective may be a function or a row, which no file can hold.
    """
    require_recipe(recipe)
    own = recipe.objective if not isinstance(recipe.objective.get("name", ""), str) else None
    plain = recipe if own is None else dataclasses.replace(recipe, objective=_STAND_IN)
    return _recipe_from(to_dict(plain), "recipe", own)


def _recipe_from(content: Mapping[str, object], where: str, objective: Mapping[str, object] | None = None) -> Recipe:
    _check_content(content, where)
    try:
        text = yaml.safe_dump(plain(content), sort_keys=False)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: a value cannot be written down: {first_line(error)}", "give plain values") from error
    return _recipe_of(_read(build_parser(where, ""), ["--config", text], None), objective)


def _read(parser: ArgumentParser, argv: Sequence[str], flags: Sequence[str] | None) -> Namespace:
    """What ``parser`` reads from ``argv``; ``flags`` are those of the command line, None where there is none."""
    try:
        namespace: Namespace = parser.parse_args(argv)
    except ArgumentError as error:
        raise UserError(*explain(str(error), flags)) from error
    except (ValueError, OverflowError, RecursionError) as error:  # numbers of thousands of digits, and their like
        if isinstance(error, UserError):
            raise
        raise UserError(f"a value cannot be read: {first_line(error)}", "correct the recipe or the flags") from error
    return namespace


def _recipe_of(namespace: Namespace, objective: Mapping[str, object] | None = None) -> Recipe:
    """What was read, checked; ``objective`` is one that was not read."""
    parts = {name: section(**vars(namespace[name])) for name, section in SECTIONS.items()}
    own, optimizer = _coerce("objective", dict(objective or namespace.objective)), dict(namespace.optimizer)
    optimizer = _coerce("optimizer", optimizer)
    recipe = Recipe(output_dir=namespace.output_dir, objective=own, optimizer=optimizer, **parts)
    check_recipe(recipe)
    if recipe.training.max_train_steps is None and recipe.training.num_train_epochs is None:
        recipe = dataclasses.replace(
            recipe, training=dataclasses.replace(recipe.training, max_train_steps=MAX_TRAIN_STEPS)
        )
    return _with_homes(recipe)


def _with_underscores(argument: str) -> str:
    """Flags may be written with dashes as well, as in --training.learning-rate."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument


def _with_sections(argv: Sequence[str], flags: Sequence[str]) -> list[str]:
    """``argv`` with the sections of keys that were given without, where one section alone has such a key; and with single
    values of keys that hold lists as lists.
    """
    written: list[str] = []
    for place, argument in enumerate(argv):
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            key = argv[place - 1].removeprefix("--") if place and argv[place - 1].startswith("--") else ""
            written.append(_listed(full_key(key, flags), argument))
        elif name not in flags:
            written.append(f"--{full_key(name, flags)}{equals}{_listed(full_key(name, flags), value)}")
        else:
            written.append(f"--{name}{equals}{_listed(name, value)}")
    return written


def _listed(key: str, value: str) -> str:
    return (
        yaml.safe_dump([value], default_flow_style=True).strip()
        if holds_list(key) and value[:1] not in ("", "[")
        else value
    )


def _with_homes(recipe: Recipe) -> Recipe:
    """``recipe`` with a leading ~ of its paths as the home folder."""
    for key in keys_for(at_home):
        section, _, name = key.rpartition(".")
        place: Any = getattr(recipe, section) if section else recipe
        changed = dataclasses.replace(place, **{name: at_home(getattr(place, name))})
        recipe = dataclasses.replace(recipe, **{section: changed}) if section else changed
    return recipe


def _with_contents(argv: Sequence[str]) -> list[str]:
    """``argv`` with recipe files, their keys checked, as their content: the parser would read them in the locale's
    encoding. Raises UserError for files that cannot be read or hold unknown keys.
    """
    texts: list[str] = []
    for place, argument in enumerate(argv):
        if argument.startswith("--config="):
            texts.append("--config=" + _text_of(argument.partition("=")[2]))
        elif argv[place - 1 : place] == ["--config"]:
            texts.append(_text_of(argument))
        else:
            texts.append(argument)
    return texts


def _text_of(file: str) -> str:
    content = _content_of(file)
    _check_content(content, file)
    return yaml.safe_dump(content, sort_keys=False)


def _given(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """The flags of ``argv`` without their dashes, and their values; None for a flag without one."""
    for place, argument in enumerate(argv):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            following = argv[place + 1] if place + 1 < len(argv) and not argv[place + 1].startswith("--") else None
            yield name, value if equals else following


def _check_flags(argv: Sequence[str], flags: Sequence[str]) -> None:
    """Refuse flags that do not exist, before the parser takes the beginning of a name for the whole; sections that are
    given as a whole; and what holds a key twice.
    """
    for name, value in _given(argv):
        if name and name not in flags and name not in known_keys() and name.partition(".")[0] not in _CATALOGUED:
            raise UserError(*unknown_option(name, flags))
        if value is not None and name in SECTIONS and value.lstrip()[:1] != "{":
            raise UserError(f"--{name}: is a section", f"set its keys one by one, such as --{name}.KEY VALUE")
        if value is not None and value.lstrip()[:1] in ("{", "["):
            parse_yaml(value, f"--{name}", "give YAML, such as {name: dpo, beta: 5000} or [one, other]")


def _content_of(file: str) -> dict[str, Any]:
    path = expand(file)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such recipe file"
        raise UserError(f"{file}: {what}", "recipes lie under configs/")
    content = read_yaml(path, "give a recipe in YAML; examples lie under configs/")
    if not isinstance(content, dict):
        raise UserError(f"{file}: a recipe is a mapping of keys, found {type(content).__name__}", "see configs/")
    return content


def _check_content(content: Mapping[str, Any], where: str) -> None:
    for key, value in content.items():
        if key not in _TOP:
            raise UserError(f"{where}: unknown key {key!r}", nearest(str(key), known_keys()))
        if key in (*SECTIONS, *_CATALOGUED) and not isinstance(value, dict):
            problem = f"{where}: {key}: got {'nothing' if value is None else repr(value)}"
            remedy = "leave it out, or give its keys below it" if key in SECTIONS else f"allowed: {allowed(key)}"
            raise UserError(problem, remedy)
        inner = [item.name for item in dataclasses.fields(SECTIONS[key])] if key in SECTIONS else []
        for name in value if key in SECTIONS else []:
            if name not in inner:
                raise UserError(f"{where}: unknown key '{key}.{name}'", nearest(str(name), inner))


def _coerce(kind: str, settings: dict[str, Any]) -> dict[str, object]:
    """Check ``settings`` against the signature that ``name`` stands for, and bring numbers to their declared type."""
    name = settings.get("name")
    if not isinstance(name, str) and not callable(name):
        raise UserError(f"{kind}.name is missing", f"set {kind}.name, for example in {kind}: {{name: ...}}")
    own = {key: value for key, value in settings.items() if key != "name"}
    check_settings(kind, name, own)
    function = resolve(kind, name)
    hints = _hints_of(function)
    for key in settings_of(function):
        is_number = hints.get(key) is float or (hints.get(key) == float | None and own.get(key) is not None)
        if is_number and key in own:
            own[key] = _number(f"{kind}.{key}", own[key])
    if kind == "objective" and "terms" in own:
        own["terms"] = [_coerce_term(number, dict(term)) for number, term in enumerate(own["terms"], 1)]
    return {"name": name, **own}


def _hints_of(function: Callable[..., object]) -> dict[str, object]:
    try:
        return typing.get_type_hints(function)
    except (TypeError, NameError):  # a user's own may be an object that can be called, or have types that stand nowhere
        return {}


def _coerce_term(number: int, term: dict[str, object]) -> dict[str, object]:
    """A term of a weighted sum: an objective's name and settings, and its weight."""
    weight = _number(f"objective.terms: weight of term {number}", term.pop("weight"))
    coerced = _coerce("objective", term)
    return {"name": coerced.pop("name"), "weight": weight, **coerced}


def _number(key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{key}: expected a number, got {value!r}", "give a number") from error
    if isinstance(value, bool) or not math.isfinite(number):
        raise UserError(f"{key}: got {value!r}", "allowed: a finite number")
    return number
