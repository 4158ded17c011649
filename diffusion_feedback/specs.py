"""What a user names in one word: ``[ALIAS:]NAME[=SOURCE][,key=value,...]``, taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import UserError


@dataclass(frozen=True, slots=True)
class Spec:
    """``head`` is what stands before the "=" and the first comma; ``source`` None where there is no "="; values are text."""

    head: str
    source: str | None
    settings: Mapping[str, str]


def split_spec(text: str, label: str, form: str) -> Spec:
    """Take ``text`` apart. ``label`` begins the messages, ``form`` says how it is written.

    Raises UserError for a part that is no setting, a value that is empty, and a setting that stands twice.
    """
    first, *rest = text.split(",")
    head, has_source, source = first.partition("=")
    settings: dict[str, str] = {}
    for part in rest:
        key, _, value = part.partition("=")
        if not (key and value):
            raise UserError(f"{label}: {part!r} is no setting", form)
        if key in settings:
            raise UserError(f"{label}: {key!r} stands twice", "give each setting once")
        settings[key] = value
    return Spec(head, source if has_source else None, settings)
