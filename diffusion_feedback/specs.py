"""What a user names in one word: ``[ALIAS:]NAME[=SOURCE][,key=value,...]``, taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
