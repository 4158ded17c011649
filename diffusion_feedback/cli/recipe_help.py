"""The help of commands that take a recipe: the keys that one changes, the keys of a section, or all of them."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from ..catalog import names
from ..config.meaning import default_of, is_required, keys_for, keys_of
from ..config.recipe import ESSENTIAL, SECTIONS, Recipe
from ..config.wording import allowed, choices_of, key_notes
from ..errors import UserError, nearest
from ..values import Range

WIDTH = 100  # characters of a line
_SPECS = ("objective", "optimizer")  # whose keys depend on the name that is given
_COLUMN = 42  # where the texts of the short help begin

_SHORT = """\
usage: {prog} --config RECIPE.yaml [--SECTION.KEY VALUE ...]

{about}

{options}

the keys that one changes; a key of one section alone may be written without it, as --learning_rate:
{keys}

sections: {sections}
{examples}
"""

_ALL = """\
usage: {prog} --config RECIPE.yaml [--SECTION.KEY VALUE ...]

{about}

options:
{options}

{keys}

{examples}
"""


def answer_help(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Print what ``--help [SECTION|all]`` wants where it stands in ``argv``, and raise SystemExit; else do nothing.

    Raises UserError for a topic that is neither.
    """
    topics = [argv[place + 1 : place + 2] for place, each in enumerate(argv) if each in ("-h", "--help")]
    if topics:
        print(_help_of(parser, "".join(topics[0])), end="")
        raise SystemExit(0)


def _help_of(parser: argparse.ArgumentParser, topic: str) -> str:
    if topic in SECTIONS:
        return _section(topic) + "\n"
    if topic in _SPECS:
        known = ", ".join(names(topic))
        return "\n".join([_explained(topic), *_wrapped(f"      Names: {known}", "      ")]) + "\n"
    if topic not in ("", "all"):
        raise UserError(f"--help: got {topic!r}", nearest(topic, ["all", *SECTIONS, *_SPECS]))
    about, examples = str(parser.description), str(parser.epilog or "")
    keys = (*(key.partition(".")[0] for key in key_notes()), "help")
    actions = [action for action in parser._actions if action.dest.partition(".")[0] not in keys]
    options = {f"--{action.dest}": str(action.help) for action in actions if action.option_strings}
    options["--help [SECTION|all]"] = "this page; the keys of a section; all keys"
    own = "\n".join(f"  {flag:<{_COLUMN - 3}} {said}" for flag, said in options.items())
    if topic == "all":
        top = "\n".join(_explained(key) for key in key_notes() if key not in SECTIONS and "." not in key)
        every = "\n\n".join([top, *map(_section, SECTIONS)])
        return _ALL.format(prog=parser.prog, about=about, options=own, keys=every, examples=examples).rstrip() + "\n"
    hidden = "" if parser.prog.endswith("rounds") else "rounds."
    essential = [key for key in keys_for(ESSENTIAL) if not (hidden and key.startswith(hidden))]
    said = "\n".join(f"  --{key:<{_COLUMN - 5}} {_first_sentence(key)}" for key in essential)
    first, sections = "\n".join(examples.splitlines()[:3]), ", ".join([*SECTIONS, *_SPECS])
    shown = _SHORT.format(prog=parser.prog, about=about, options=own, keys=said, sections=sections, examples=first)
    return shown.rstrip() + "\n"


def _section(name: str) -> str:
    heading = f"--{name} '{{KEY: VALUE, ...}}', or each key alone. {_texts(Recipe)[name]}"
    return "\n".join([heading, *(_explained(key) for key in keys_of(name))])


def _explained(key: str) -> str:
    """A key, what it may be, its default, and what it is for."""
    ranges = [str(note).removesuffix(", and finite") for note in key_notes()[key] if isinstance(note, Range)]
    kind = "; ".join([allowed(key).replace("null, or ", "").replace(", or null", ""), *ranges])
    head = f"  --{key}: {kind}{_default(key)}"
    return "\n".join(_wrapped(head, "      ") + _wrapped(f"      {text_of(key)}", "      "))


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _default(key: str) -> str:
    if is_required(key):
        return "; required"
    value = default_of(key)
    return "" if value is None or value in ("", []) else f" (default {_written(value)})"


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_written(each)}' for key, each in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_written, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def text_of(key: str) -> str:
    """What a key is for, as the docstring of its section says."""
    section, _, name = key.rpartition(".")
    return _texts(SECTIONS[section] if section else Recipe)[name]


def _first_sentence(key: str) -> str:
    """The first part of what is said of a key, its names where they find room in the line, and its default."""
    default = _default(key).replace("default ", "").replace("; required", "")
    first = re.split(r"[;.](?: |$)", text_of(key))[0]
    names = f": {allowed(key)}" if choices_of(key) else ""
    room = WIDTH + 8 - _COLUMN - len(default)
    first += names * (len(first + names) <= room)
    return textwrap.shorten(first, room, placeholder=" ...") + default


def _texts(kind: type[object]) -> dict[str, str]:
    """What the Args of a docstring say of each field."""
    said = (kind.__doc__ or "").partition("Args:\n")[2]
    return dict(_fields(textwrap.dedent(said)))


def _fields(said: str) -> Iterator[tuple[str, str]]:
    for field in re.split(r"\n(?=\S)", said.strip()):
        name, _, text = field.partition(": ")
        yield name, " ".join(text.split())
