"""From what a user writes or hands in ("random,pairs_per_prompt=4", "rules.py:my_rule", a function) to a rule with a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import Any

from ..catalog import check_settings, names, resolve
from ..catalog.rows import name_of
from ..catalog.sources import calling
from ..documents import parse_yaml
from ..errors import UserError
from ..specs import split_spec
from .candidates import Standing
from .rules import Rule


@dataclass(frozen=True, slots=True)
class NamedRule:
    """A rule, and the text by which results name it."""

    name: str
    pick: Rule

    def __call__(self, standing: Standing) -> list[tuple[int, int]]:
        """The pairs of places that the rule picks."""
        return self.pick(standing)


def rule_of(given: str | Callable[..., object], label: str) -> NamedRule:
    """The rule that ``given`` means; ``label``, where it stands, begins the message of a UserError.

    A text is ``NAME[,key=value...]`` with a name of the catalog, "file.py:attribute" or "module:attribute". A user's own
    rule, named so or handed in, is a function from a ``Standing`` to pairs of places (0 is the best); its keyword-only
    parameters are its settings. Raises UserError for an unknown rule or setting, and for a bad value.
    """
    if not isinstance(given, str):
        return NamedRule(name_of(given), _own_rule(given, {}, name_of(given)))
    form = "write NAME,key=value,..."
    spec = split_spec("rule", given, f"{label} {given}", form)
    name = given.partition(",")[0]
    settings: dict[str, Any] = {}
    for key, value in spec.settings.items():
        try:
            settings[key] = parse_yaml(value, label)
        except UserError as error:
            raise UserError(f"{label} {given}: {value!r} is no value", form) from error
    function = resolve("rule", name)
    check_settings("rule", name, settings)
    return NamedRule(given, function(**settings) if name in names("rule") else _own_rule(function, settings, name))


def _own_rule(function: Callable[..., Any], settings: dict[str, Any], name: str) -> Rule:
    """A user's rule: what it picks is checked, and whatever it raises is one UserError."""
    label = f"rule {name}"

    def pick(standing: Standing) -> list[tuple[int, int]]:
        with calling(label):
            pairs = [(index(first), index(second)) for first, second in function(standing, **settings)]
        number = len(standing)
        for first, second in pairs:
            if first == second or not (0 <= first < number and 0 <= second < number):
                problem = f"{label}: picks ({first}, {second}) of {number} candidates of {standing.prompt!r}"
                raise UserError(problem, f"give two different places, from 0 (the best) to {number - 1}")
        return pairs

    return pick
