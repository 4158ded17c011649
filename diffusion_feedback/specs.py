"""What a user names in one word: ``[ALIAS:]NAME[=SOURCE][,key=value,...]``, taken apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from .errors import UserError


@dataclass(frozen=True, slots=True)
class Spec:
    """What stands behind ``name`` in the catalog's ``kind``, with which settings, and its name in results.

    ``name`` is what stands before the "=" and the first comma; ``source`` is None where there is no "=", and the values of
    settings are text. An ``alias`` stands apart from the name for scorers alone.
    """

    kind: str
    name: str
    source: str | None
    settings: Mapping[str, str]
    alias: str | None = None


def naming_function(text: str, known: Collection[str]) -> str:
    """``text`` with "function=" before what names a user's own code by itself, as "file.py:attribute" or "module:attribute".

    An alias stays in front: "mine:file.py:attribute". What ends in a name that is ``known`` has an alias alone.
    """
    place, _, name = text.partition(",")[0].rpartition(":")
    alias, colon, module = place.rpartition(":")
    if not (place and name) or "=" in place + name or name in known:
        return text
    is_code = module.endswith(".py") or "." in module or (module.isidentifier() and find_spec(module) is not None)
    return f"{alias}{colon}function={text[len(alias + colon) :]}" if is_code else text


def split_spec(kind: str, text: str, label: str, form: str) -> Spec:
    """Take ``text`` apart. ``label`` begins the messages, ``form`` says how it is written.

    Raises UserError for a part that is no setting, a value that is empty, and a setting that stands twice.
    """
    first, *rest = text.split(",")
    name, has_source, source = first.partition("=")
    settings: dict[str, str] = {}
    for part in rest:
        key, _, value = part.partition("=")
        if not (key and value):
            raise UserError(f"{label}: {part!r} is no setting", form)
        if key in settings:
            raise UserError(f"{label}: {key!r} stands twice", "give each setting once")
        settings[key] = value
    return Spec(kind, name, source if has_source else None, settings)
