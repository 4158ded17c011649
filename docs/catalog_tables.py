"""Tables of every name that a recipe or a flag may use, made of the catalog's rows, the signatures and the docstrings."""

import importlib
import inspect
import re
from collections.abc import Iterator
from functools import partial

from diffusion_feedback.catalog import CATALOG, names, objectives_for, resolve
from diffusion_feedback.catalog.objectives import OBJECTIVES
from diffusion_feedback.catalog.rows import name_of, settings_of

MARK = re.compile(r"^<!-- every (\w+) -->$", re.MULTILINE)


def filled(page: str) -> str:
    """``page`` with a table in place of every comment ``<!-- every KIND -->``."""
    return MARK.sub(lambda mark: table(mark[1]), page)


def table(kind: str) -> str:
    """A table in Markdown of all names of one ``kind`` of the catalog."""
    columns = ["name", "settings", "what it is"] + (
        ["learns from", "families", "papers"] if kind == "objective" else []
    )
    lines = [columns, ["---"] * len(columns), *rows(kind)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows(kind: str) -> Iterator[list[str]]:
    """The cells of each name: it, its settings, the first sentence of its docstring, and what its row says."""
    for name in names(kind):
        function = resolve(kind, name)
        settings = (
            "" if kind in ("family", "benchmark") else ", ".join(f"`{setting}`" for setting in settings_of(function))
        )
        cells = [f"`{name}`", settings, summary(kind, name).replace("|", "\\|")]
        if kind == "objective":
            families = ", ".join(f"`{family}`" for family in names("family") if name in objectives_for(family))
            papers = dict.fromkeys(re.findall(r"arXiv:(\d{4}\.\d{5})", described(kind, name)))
            links = ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in papers)
            cells += [OBJECTIVES[name].learns_from, families, links]
        yield cells


def described(kind: str, name: str) -> str:
    """The docstring of the module where it holds this name alone, else that of the function; a list of prompts says its source."""
    function, (module, _, attribute) = resolve(kind, name), name_of(CATALOG[kind][name]).partition(":")
    if isinstance(function, partial):
        return f"{function.keywords['title']}: {function.keywords['source']}"
    is_alone = attribute in ("load", "benchmark")
    return inspect.cleandoc((importlib.import_module(module) if is_alone else function).__doc__ or "")


def summary(kind: str, name: str) -> str:
    """The first line of what describes ``name``."""
    return described(kind, name).partition("\n")[0]
