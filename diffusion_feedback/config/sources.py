"""The user's own code that a recipe names, and its hashes: a run does not go on under code that has changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..catalog import names, parts_of
from ..catalog.sources import is_reference, source_hash
from ..specs import naming_function

# Keys whose value is a name, with settings behind commas at most; and keys that say who judges, as KIND=SOURCE.
_NAMES = ("model.family", "optimizer.name", "rounds.rule")
_JUDGES = ("rollouts.reward", "rounds.scorer", "rounds.labels_from", "rounds.heldout_judge")


def user_sources(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the files that ``recipe`` (of ``to_dict``) names code in, by that code's names.

    Raises UserError where it is not there.
    """
    return {name: source_hash(name) for name in _named(recipe) if is_reference(name) and not is_object(name)}


def object_name(what: str, identity: object) -> str:
    """What a recipe says in the place of a name where an object was handed in: what it was, and which."""
    return f"<{what}, given in Python, {identity}>"


def is_object(name: object) -> bool:
    """Whether a recipe names an object so, which no file can hold."""
    return isinstance(name, str) and name.startswith("<") and name.endswith(">")


def _named(recipe: Mapping[str, Any]) -> Iterator[str]:
    for part in parts_of(recipe.get("objective", {})):
        yield str(part.get("name", ""))
    for key in (*_NAMES, *_JUDGES):
        section, _, name = key.partition(".")
        given = str(recipe.get(section, {}).get(name) or "")
        head = (naming_function(given, names("scorer")) if key in _JUDGES else given).split(",")[0]
        kind, is_judge, source = head.partition("=")
        if key in _NAMES:
            yield head
        elif is_judge and kind.rpartition(":")[2] == "function":
            yield source
