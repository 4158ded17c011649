"""Keys that are set though they mean nothing for a run, and values that no run can have: refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ..errors import UserError
from ..values import Range
from .recipe import SECTIONS, Recipe
from .wording import allowed, is_optional, key_notes

# Texts that may be empty where their default is: nothing is named then.
_EMPTY = "rollouts.reward", "rounds.scorer", "rounds.heldout_prompts", "validation.prompts"


def require(condition: bool, key: str, value: object, allowed: str) -> None:
    """Raise UserError naming ``key``, ``value`` and what is ``allowed`` unless ``condition`` holds."""
    if not condition:
        raise UserError(f"{key}: got {value!r}", f"allowed: {allowed}")


def refuse_keys(recipe: Recipe, keys: Iterable[str], what: str) -> None:
    """Raise UserError for the first of ``keys`` that is set though it means nothing for ``what``."""
    for key in keys:
        section, _, part = key.partition(".")
        value = getattr(getattr(recipe, section), part)
        if value != default_of(key):
            raise UserError(f"{key}: got {value!r}, which means nothing for {what}", "leave it out")


def keys_of(section: str) -> list[str]:
    """All keys of a section, such as text.max_length."""
    return [f"{section}.{field.name}" for field in dataclasses.fields(SECTIONS[section])]


def keys_for(*purposes: object) -> list[str]:
    """The keys that are said to be for any of ``purposes``."""
    return [key for key, said in key_notes().items() if not set(purposes).isdisjoint(said)]


def default_of(key: str) -> object:
    """The value of ``key`` where it is not given."""
    field = _field(key)
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def is_required(key: str) -> bool:
    """Whether ``key`` must be given."""
    return _field(key).default is dataclasses.MISSING and _field(key).default_factory is dataclasses.MISSING


def _field(key: str) -> dataclasses.Field[object]:
    section, _, name = key.rpartition(".")
    return next(field for field in dataclasses.fields(SECTIONS[section] if section else Recipe) if field.name == name)


def check_values(recipe: Recipe) -> None:
    """Refuse numbers out of range and texts that name nothing. Raises UserError naming the key."""
    for key, said in key_notes().items():
        section, _, name = key.rpartition(".")
        value = getattr(getattr(recipe, section) if section else recipe, name)
        if value is None and not is_optional(key):  # the parser lets a key without a value pass
            raise UserError(f"{key}: got nothing", f"allowed: {allowed(key)}; or leave the key out")
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                _check_text(key, text)
        for note in said:
            if isinstance(note, Range):
                note.check(key, value)


def _check_text(key: str, value: str) -> None:
    if not value.strip() and not (value == "" and key in _EMPTY):
        raise UserError(f"{key}: got {value!r}", "name something, or leave the key out")
    if "\0" in value:
        raise UserError(f"{key}: got {value!r}, with a NUL character", "take it out")
