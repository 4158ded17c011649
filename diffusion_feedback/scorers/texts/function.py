"""A Python function as a judge: rules, verifiers, other people's models."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ...errors import UserError
from ...records import content_hash
from .checking import check_equal_length, finite

_FORM = "write function=module:attribute, or function=path/to/file.py:attribute"


@dataclass(frozen=True, slots=True)
class FunctionScorer:
    """Scores by ``function(prompts, completions)``, called with all of them at once."""

    name: str
    recipe_id: str
    function: Callable[..., Any]

    def score(
        self, prompts: Sequence[Any], completions: Sequence[Any], finished: Sequence[bool] | None = None
    ) -> list[float]:
        """One number for each completion, which is not told whether it was ``finished``.

        Raises UserError where the function gives another count or no finite number.
        """
        check_equal_length(prompts, completions)
        if not completions:
            return []
        # By name where it can be: reward functions of TRL take completions first, and what else they do not use.
        try:
            values = self.function(prompts=list(prompts), completions=list(completions))
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # a stranger's function may fail in any way
            place = traceback.extract_tb(error.__traceback__)[-1]
            problem = f"function {self.name}: {type(error).__name__} in {place.filename}, line {place.lineno}: {error}"
            raise UserError(problem, "correct the function") from error
        return finite(values, prompts, completions, f"function {self.name}")


def load(source: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> FunctionScorer:
    """The function that ``source`` names, as ``module:attribute`` or ``path/to/file.py:attribute``.

    It takes lists of ``prompts`` and ``completions`` (texts, or lists of messages) and returns one finite number for
    each; larger is better. The hash of the file it stands in is part of the recipe id, what that file imports is not.
    ``device`` and ``dtype`` mean nothing to it. Raises UserError where there is no such function.
    """
    place, colon, attribute = source.rpartition(":")
    if not (colon and place and attribute):
        raise UserError(f"function={source}: no function is named", _FORM)
    module = _from_file(Path(place), source) if place.endswith(".py") else _from_name(place, source)
    found: Any = module
    with _running(source, f"{attribute!r} of {place}"):
        for part in attribute.split("."):
            found = getattr(found, part, None)
    if not callable(found):
        kind = "is not there" if found is None else f"is a {type(found).__name__}"
        known = sorted(name for name, value in vars(module).items() if inspect.isfunction(value))
        raise UserError(f"function={source}: {attribute!r} {kind}", f"functions there: {', '.join(known) or 'none'}")
    text = Path(module.__file__).read_bytes() if module.__file__ else b""
    recipe = f"function.1/{module.__name__}:{attribute}/{content_hash(text)[:12]}"
    return FunctionScorer(source, recipe, _by_name(found, source))


def _from_name(name: str, source: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"function={source}: {name!r} is no name of a module", _FORM)
    with _running(source, name):
        return importlib.import_module(name)


def _from_file(path: Path, source: str) -> ModuleType:
    if not path.is_file():
        raise UserError(f"function={source}: {path}: no such file", _FORM)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _running(source, str(path)):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _running(source: str, what: str) -> Iterator[None]:
    """Importing runs a stranger's code, which may fail in any way, or end the program: both are one UserError."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        place = f"{error.filename or what}, line {error.lineno}"
        raise UserError(f"function={source}: {place}: {error.msg}", "correct the file") from error
    except ModuleNotFoundError as error:
        problem = f"function={source}: no module {error.name!r} can be imported"
        raise UserError(problem, f"install it, or name its file; {_FORM}") from error
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        how = "ends the program" if isinstance(error, SystemExit) else f"fails: {type(error).__name__}: {error}"
        problem = f"function={source}: importing {what} {how} ({last.filename}, line {last.lineno})"
        raise UserError(problem, "correct it: importing a judge must do nothing but define it") from error


def _by_name(function: Callable[..., Any], source: str) -> Callable[..., Any]:
    """``function`` so that it can be called with ``prompts`` and ``completions`` by name."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in ones tell nothing of themselves
        return lambda prompts, completions: function(prompts, completions)
    try:
        signature.bind(prompts=[], completions=[])
    except TypeError:
        try:
            signature.bind([], [])
        except TypeError as error:
            problem = f"function={source}: takes {signature}, and is called with prompts and completions ({error})"
            raise UserError(problem, "give a function of two lists") from error
        return lambda prompts, completions: function(prompts, completions)
    return function
