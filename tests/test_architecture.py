"""The house stands as drawn: floors, doors, no circles, light rooms stay light, files and functions stay short."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from diffusion_feedback.catalog import CATALOG, names, resolve

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "diffusion_feedback"

# A room imports only from floors below its own, so rooms of one floor do not know each other.
FLOORS = (
    {"errors", "__init__"},
    {"documents"},
    {
        "records", "types", "noise", "specs", "pixels", "folders", "foreign", "installation", "quiet", "devices", "processes",
        "progress", "weights",
    },
    {"catalog", "values", "runs"},
    {"prompts", "text_folders", "output_folders"},
    {
        "objectives", "likelihoods", "models", "scorers", "data", "config",
        "generation", "labeling", "evaluation", "annotation",
    },
    {"training", "reports"},
    {"workflows"},
    {"shapes"},
    {"cli"},
    {"__main__"},
)  # fmt: skip
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# Models, scorers and data are handed in to the loop: it must not choose them.
NOT_FOR_TRAINING = {"models", "scorers", "data", "generation", "labeling", "annotation", "reports"}

DOORS = {
    "diffusers": {"models"},
    "peft": {"models", "text_folders"},
    "transformers": {"models", "scorers", "text_folders", "quiet"},
    "open_clip": {"scorers"},
    "datasets": {"data"},
    "accelerate": {"training", "workflows", "processes"},
    "argparse": {"cli", "config"},
    "jsonargparse": {"config"},
    "fastapi": {"annotation"},
    "uvicorn": {"annotation"},
    "sqlalchemy": {"annotation"},
}

LIGHT_ROOMS = {
    "annotation",
    "reports",
    "records",
    "catalog",
    "errors",
    "config",
    "foreign",
    "runs",
    "installation",
    "documents",
}
# The parser of recipes makes flags; a page's style sheet has variables that begin with dashes.
READS_FLAGS = {
    "diffusion_feedback.config.parsing",
    "diffusion_feedback.config.wording",
    "diffusion_feedback.reports.html",
}
MAX_COMMAND_LINES = 1500
MAX_FILE_LINES = 399
MAX_FUNCTION_LINES = 60


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# What is written with the package, beside it.
BESIDE = ("benchmarks", "examples", "experiments", "tools")
MODULES = {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
SOURCES = [*MODULES.values(), *(path for room in BESIDE for path in sorted((ROOT / room).rglob("*.py")))]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def room(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def nodes(part: ast.AST, *, at_once: bool) -> Iterator[ast.AST]:
    """``part`` and all in it, or with ``at_once`` without the bodies of functions."""
    yield part
    for child in ast.iter_child_nodes(part):
        if not (at_once and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from nodes(child, at_once=at_once)


def imports(module: str, *, at_once: bool = False) -> Iterator[str]:
    """Absolute names of all that ``module`` imports anywhere, inside functions too; ``from . import x`` gives x.

    With ``at_once`` what it imports as it is imported itself.
    """
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in nodes(tree(path), at_once=at_once):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if inner in MODULES else source


def loaded_packages(module: str) -> set[str]:
    """The packages that ``module`` imports where it runs, and not for type checkers alone."""
    nodes = list(ast.walk(tree(MODULES[module])))
    blocks = [node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    unloaded = {id(inner) for block in blocks for statement in block.body for inner in ast.walk(statement)}
    names = [
        alias.name
        for node in nodes
        if isinstance(node, ast.Import) and id(node) not in unloaded
        for alias in node.names
    ]
    names += [
        node.module or ""
        for node in nodes
        if isinstance(node, ast.ImportFrom) and not node.level and id(node) not in unloaded
    ]
    return {name.split(".")[0] for name in names}


def own_imports(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] == PACKAGE} - {module}


def test_every_room_stands_on_a_floor() -> None:
    assert {room(module) for module in MODULES} <= set(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    here = room(module)
    others = {room(name) for name in own_imports(module)} - {here}
    wrong = {other for other in others if FLOOR[other] >= FLOOR[here]}
    assert not wrong, f"{module} (floor {FLOOR[here]}) imports {sorted(wrong)}"
    if here == "training":
        assert not others & NOT_FOR_TRAINING, f"{module} must be handed {sorted(others & NOT_FOR_TRAINING)}"


def test_no_circles() -> None:
    try:
        TopologicalSorter({module: own_imports(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


def named_in_the_catalog() -> set[str]:
    """The modules that the catalog's strings name."""
    entries = [entry for kind in CATALOG.values() for entry in kind.values()]
    paths = [getattr(entry, "path", getattr(entry, "load", entry)) for entry in entries]
    return {str(path).partition(":")[0] for path in paths}


def test_the_catalog_names_no_commands_and_no_workflows() -> None:
    assert named_in_the_catalog() <= set(MODULES)
    assert not {room(module) for module in named_in_the_catalog()} & {"cli", "workflows"}


def test_no_circles_through_the_catalog() -> None:
    """Its strings are imports too: what it names does not import it at once."""
    edges = {
        module: {name for name in imports(module, at_once=True) if name in MODULES} - {module} for module in MODULES
    }
    edges[f"{PACKAGE}.catalog"] |= named_in_the_catalog()
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


def test_commands_do_not_import_each_other() -> None:
    inner = {module: own_imports(module) for module in MODULES if room(module) == "cli"}
    commands = {f"{PACKAGE}.cli.{name}" for name in commands_of_the_door()}
    assert {module: found & commands for module, found in inner.items() if found & commands} == {}


def commands_of_the_door() -> list[str]:
    from diffusion_feedback.cli.main import COMMANDS

    return list(COMMANDS)


@pytest.mark.parametrize("name", commands_of_the_door())
def test_every_command_has_its_module(name: str) -> None:
    assert callable(importlib.import_module(f"{PACKAGE}.cli.{name}").run)


def test_the_command_line_is_thin() -> None:
    files = [path for module, path in MODULES.items() if room(module) == "cli"]
    assert sum(len(path.read_text().splitlines()) for path in files) <= MAX_COMMAND_LINES


def test_what_is_below_the_command_line_names_parameters_not_flags() -> None:
    """Texts for users say `name`, which the command line turns into --name, and name no command."""
    found = []
    for module, path in MODULES.items():
        if room(module) == "cli" or module in READS_FLAGS:
            continue
        body = tree(path)
        docstrings = {id(node.value) for node in ast.walk(body) if isinstance(node, ast.Expr)}
        for node in ast.walk(body):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                text = re.sub(r"accelerate launch [^`]*|--dynamo_backend|pip install [^`]*", "", node.value)
                if re.search(r"(^|[\s(`'\"])--[a-z]|\bdfb [a-z]", text):
                    found.append(f"{module}:{node.lineno}: {text}")
    assert found == []


@pytest.mark.parametrize("dependency", DOORS)
def test_one_door_for_each_dependency(dependency: str) -> None:
    """An import for type checkers alone, which names what a function gives, goes through no door."""
    users = {room(module) for module in MODULES if dependency in loaded_packages(module)}
    assert users <= DOORS[dependency]


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [
        line for name in ("8bit", "tracking") for line in project["optional-dependencies"][name]
    ]
    declared = {re.split(r"[\[<>=~! ]", line)[0].lower().replace("-", "_") for line in lines}
    called = {"PIL": "pillow", "yaml": "pyyaml", "open_clip": "open_clip_torch"}
    found = {name.split(".")[0] for module in MODULES for name in imports(module)}
    outside = found - set(sys.stdlib_module_names) - {PACKAGE}
    assert {called.get(name, name) for name in outside} <= declared


def test_light_rooms_do_not_load_torch() -> None:
    light = [module for module in MODULES if room(module) in LIGHT_ROOMS or module == PACKAGE]
    for module in ("errors", "records", "catalog", "config"):
        assert f"{PACKAGE}.{module}" in light
    code = f"import sys, {', '.join(light)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "torch" not in loaded.split()


@pytest.mark.slow
def test_modules_load_without_side_effects() -> None:
    """Importing everything prints nothing and warns of nothing of ours."""
    code = f"import {', '.join(module for module in MODULES if room(module) != '__main__')}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == ""
    assert PACKAGE not in done.stderr


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in CATALOG for name in names(kind)])
def test_every_name_in_the_catalog_resolves(kind: str, name: str) -> None:
    assert callable(resolve(kind, name))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lines = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: count for name, count in lines.items() if count > MAX_FUNCTION_LINES} == {}


def test_no_drawer_for_odds_and_ends() -> None:
    assert [path for path in SOURCES if path.stem in ("utils", "util", "helpers", "misc", "common")] == []


def test_families_are_not_told_apart_by_name() -> None:
    """``if family == ...`` belongs to the catalog: a family is one file and one line there."""
    found = []
    for module, path in MODULES.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Compare | ast.Match):
                asked = [node.left, *node.comparators] if isinstance(node, ast.Compare) else [node.subject]
                if any(getattr(part, "id", getattr(part, "attr", "")) == "family" for part in asked):
                    found.append(f"{module}:{node.lineno}")
    assert found == []


def test_no_module_level_state() -> None:
    found = [str(path) for path in MODULES.values() for node in ast.walk(tree(path)) if isinstance(node, ast.Global)]
    assert found == []


def test_nothing_inherits_from_our_classes_but_protocols() -> None:
    """Errors may be refined; all else is put together, not inherited."""
    classes = [node for path in MODULES.values() for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
    bases = {node.name: {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases} for node in classes}
    implementations = {name for name, own in bases.items() if "Protocol" not in own} - {"UserError"}
    assert {name: own & implementations for name, own in bases.items() if own & implementations} == {}


MOST_ANY = 115
"""``Any`` in a signature is for objects of others' libraries alone; this number only ever falls."""


def annotations(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.expr]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    yield from (each.annotation for each in every if each is not None and each.annotation is not None)
    if function.returns is not None:
        yield function.returns


def test_signatures_say_what_they_take() -> None:
    counts = Counter(
        room(module)
        for module, path in MODULES.items()
        for function in ast.walk(tree(path))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for annotation in annotations(function)
        for node in ast.walk(annotation)
        if isinstance(node, ast.Name) and node.id == "Any"
    )
    print(f"Any in signatures: {counts.total()}, {dict(counts.most_common())}")
    assert counts.total() <= MOST_ANY
