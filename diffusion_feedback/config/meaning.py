"""Keys that are set though they mean nothing for a run, and values out of range: refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..errors import UserError
from .recipe import SECTIONS, Recipe


def require(condition: bool, key: str, value: object, allowed: str) -> None:
    """Raise UserError naming ``key``, ``value`` and what is ``allowed`` unless ``condition`` holds."""
    if not condition:
        raise UserError(f"{key}: got {value!r}", f"allowed: {allowed}")


def refuse(recipe: Recipe, keys: Sequence[str], what: str) -> None:
    """Raise UserError for the first of ``keys`` that is set though it means nothing for ``what``."""
    for key in keys:
        section, _, part = key.partition(".")
        value = getattr(getattr(recipe, section), part)
        if value != _default(section, part):
            raise UserError(f"{key}: got {value!r}, which means nothing for {what}", "leave it out")


def keys_of(section: str) -> list[str]:
    """All keys of a section, such as text.max_length."""
    return [f"{section}.{field.name}" for field in dataclasses.fields(SECTIONS[section])]


def _default(section: str, name: str) -> object:
    field = next(field for field in dataclasses.fields(SECTIONS[section]) if field.name == name)
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
