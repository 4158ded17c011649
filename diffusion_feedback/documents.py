"""YAML and JSON files as people write them and commands leave them: UTF-8, no key twice, nothing that explodes."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError, first_line

_FLOAT = "tag:yaml.org,2002:float"
_DEPTH, _SIZE = 100, 100_000  # nested levels, and values once all aliases are written out


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses what the plain one takes in silence: a key given twice, and aliases without an end."""

    def compose_document(self) -> yaml.Node | None:
        node: yaml.Node | None = super().compose_document()
        _check_size(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = self.construct_object(key, deep=True), key.start_mark.line + 1
            if isinstance(name, Hashable) and name in lines:
                raise yaml.MarkedYAMLError(problem=f"{name!r} stands twice, in lines {lines[name]} and {line}")
            if isinstance(name, Hashable):
                lines[name] = line
        return super().construct_mapping(node, deep)


# As YAML 1.2 has it: 1e-5 is a number, and a date is a text.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_FLOAT, "tag:yaml.org,2002:timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^(?:[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|[-+]?\d[\d_]*[eE][-+]?\d+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _check_size(node: yaml.Node | None, sizes: dict[int, int], depth: int = 0) -> int:
    """How many values ``node`` holds with all aliases written out. Raises YAMLError for too many, or a circle."""
    if node is None:
        return 0
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise yaml.YAMLError("an alias means a part that it lies in itself")
        return sizes[id(node)]
    if depth > _DEPTH:
        raise yaml.YAMLError(f"it is nested more than {_DEPTH} levels deep")
    sizes[id(node)] = 0
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    inner = parts if isinstance(node, yaml.CollectionNode) else []
    size = 1 + sum(_check_size(part, sizes, depth + 1) for part in inner)
    if size > _SIZE:
        raise yaml.YAMLError(f"its aliases stand for more than {_SIZE:,} values")
    sizes[id(node)] = size
    return size


def parse_yaml(text: str, where: str, remedy: str = "correct the file") -> object:
    """What the YAML ``text`` holds.

    Raises UserError naming ``where`` for what is no YAML, holds a key twice (with both lines), or cannot be held.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        if error.problem and "stands twice" in error.problem:
            raise UserError(f"{where}: {error.problem}", "keep one of the two: the other would be lost") from error
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{where}{place}: not valid YAML: {error.problem}", remedy) from error
    except RecursionError as error:
        raise UserError(f"{where}: not valid YAML: it is nested too deep", remedy) from error
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:
        raise UserError(f"{where}: not valid YAML: {first_line(error)}", remedy) from error


def read_yaml(path: Path, remedy: str = "correct the file") -> Any:
    """What the YAML file ``path`` holds. Raises UserError as ``parse_yaml`` does, and where it cannot be read."""
    return parse_yaml(read_text(path, remedy), str(path), remedy)


def read_text(path: Path, remedy: str) -> str:
    """The UTF-8 text of ``path``, with or without a byte order mark. Raises UserError where it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})", "save the file as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path}: cannot be read: {reason}", remedy) from error


def read_object(path: Path, remedy: str, needed: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON object in ``path``, which a command has written, with at least the keys ``needed``.

    Raises UserError ending in ``remedy`` for a file that is damaged, or is something else.
    """
    try:
        text = read_text(path, remedy)
    except UserError as error:
        raise UserError(error.problem, remedy) from error
    try:
        content = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: not JSON ({first_line(error)})", remedy) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged: holds a {type(content).__name__}, and an object is wanted", remedy)
    absent = [key for key in needed if key not in content]
    if absent:
        raise UserError(f"{path}: damaged: has no {absent[0]!r}", remedy)
    return content


def unique_keys(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """A JSON object's ``pairs`` as a mapping. Raises ValueError for a key that stands twice: one would be lost."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two values of {next(name for name in names if names.count(name) > 1)!r} in one object")
    return content
