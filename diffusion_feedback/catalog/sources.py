"""A user's own code: functions and objects named as "package.module:attribute" or "path/to/file.py:attribute".

No code runs but what was named so. A file is run once for every content that it has; what it imports is Python's affair.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import pickle
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import UserError
from ..folders import expand
from ..records import content_hash

PACKAGE = __name__.partition(".")[0]
FORM = "write package.module:attribute, or path/to/file.py:attribute"


def is_reference(name: str) -> bool:
    """Whether ``name`` names an attribute of a module or file, and is no plain name."""
    return ":" in name


def load_named(reference: str, label: str, *, also: type[object] | tuple[type[object], ...] = ()) -> Any:
    """The function that ``reference`` names: a module or file, a colon, and an attribute, which may have dots.

    Objects of the types ``also`` pass too. ``label`` begins every message. Raises UserError where there is no such file,
    module or function, and where importing fails or ends the program: with file, line and message of what went wrong.
    """
    place, colon, attribute = reference.rpartition(":")
    if not (colon and place and attribute):
        raise UserError(f"{label}: no function is named", FORM)
    module = _module(place, label)
    value: Any = module
    with _importing(label, f"{attribute!r} of {place}"):
        for part in attribute.split("."):
            value = getattr(value, part, None)
    if not (callable(value) or isinstance(value, also)):
        kind = "is not there" if value is None else f"is a {type(value).__name__}"
        known = sorted(name for name, each in vars(module).items() if inspect.isfunction(each))
        raise UserError(f"{label}: {attribute!r} {kind}", f"functions there: {', '.join(known) or 'none'}")
    return value


def source_hash(named: object) -> str:
    """A hash of the code behind ``named``: the key under which results of a user's code may be kept.

    Of a reference it is that of its file (what the file imports is not in it). Of a function or an object that can be
    called it is that of the file which defines it, and of all values that it holds: those of a partial, a closure or an
    instance; where it stands in no file, as in a notebook, that of its own text. Values that cannot be compared between
    two processes make a hash that never repeats. Raises UserError as ``load_named`` does.
    """
    if isinstance(named, str):
        file = getattr(_module(named.rpartition(":")[0], named), "__file__", None)
        return content_hash(Path(file).read_bytes() if file else named)
    if isinstance(named, functools.partial):
        keywords = [part for key, value in sorted(named.keywords.items()) for part in (key, _value(value))]
        return content_hash(source_hash(named.func), *map(_value, named.args), *keywords)
    held = [_value(cell.cell_contents) for cell in getattr(named, "__closure__", None) or ()]
    written = named
    if inspect.ismethod(named):
        held.append(_value(named.__self__))
    elif not (inspect.isroutine(named) or inspect.isclass(named)):
        written = type(named)
        held.append(_value(named))
    text = content_hash(_text(written))
    return content_hash(text, *held) if held else text


def foreign_hash(*functions: Callable[..., object]) -> str:
    """The hash of those of ``functions`` that are a user's own; empty where all are this package's."""
    own = [each for each in functions if not str(getattr(each, "__module__", "")).startswith(f"{PACKAGE}.")]
    return content_hash(*map(source_hash, own)) if own else ""


def _text(written: Any) -> bytes:
    """The file that defines ``written``, or its own text, or its compiled form."""
    try:
        file = inspect.getsourcefile(written)
        return Path(file).read_bytes() if file and Path(file).is_file() else inspect.getsource(written).encode()
    except (OSError, TypeError):  # built in, or typed where nothing keeps the text
        code = getattr(written, "__code__", None)
        return repr(written).encode() if code is None else code.co_code + repr(code.co_consts).encode()


def _value(value: object) -> bytes:
    if inspect.isroutine(value) or inspect.isclass(value) or isinstance(value, functools.partial):
        return source_hash(value).encode()
    try:
        return pickle.dumps(value)
    except Exception:  # a stranger's object may fail in any way
        return uuid.uuid4().bytes


def _module(place: str, label: str) -> ModuleType:
    if place.endswith(".py"):
        path = expand(place)
        if not path.is_file():
            raise UserError(f"{label}: {path}: no such file", FORM)
        with _importing(label, place):
            return _run_file(path.resolve(), content_hash(path.read_bytes()))
    if not all(part.isidentifier() for part in place.split(".")):
        raise UserError(f"{label}: {place!r} is no name of a module", FORM)
    with _importing(label, place):
        return importlib.import_module(place)


@functools.cache
def _run_file(path: Path, content: str) -> ModuleType:
    """The module that ``path`` makes, as it is now: it runs once, and once more when its ``content`` has changed."""
    name = f"{path.stem}_{content_hash(str(path), content)[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up the module that they stand in
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _importing(label: str, what: str) -> Iterator[None]:
    """Importing runs a stranger's code, which may fail in any way, or end the program: both are one UserError."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        place = f"{error.filename or what}, line {error.lineno}"
        raise UserError(f"{label}: {place}: {error.msg}", "correct the file") from error
    except ModuleNotFoundError as error:
        raise UserError(
            f"{label}: no module {error.name!r} can be imported", f"install it, or name its file; {FORM}"
        ) from error
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        how = "ends the program" if isinstance(error, SystemExit) else f"fails: {type(error).__name__}: {error}"
        problem = f"{label}: importing {what} {how} ({last.filename}, line {last.lineno})"
        raise UserError(problem, "correct it: importing it must do nothing but define things") from error


@contextmanager
def calling(label: str) -> Iterator[None]:
    """Turn whatever a user's function raises into a UserError with the place in its file; ``label`` begins the message."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's function may fail in any way
        place = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{label}: {type(error).__name__} in {place.filename}, line {place.lineno}: {error}"
        raise UserError(problem, "correct the function") from error
