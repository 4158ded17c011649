"""Templates of pages, cards and summaries: HTML escapes what is put into it, plain text does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import jinja2

from ..errors import plural

TEMPLATES = files(__package__).joinpath("templates")


def load_template(name: str, filters: Mapping[str, Callable[..., Any]] | None = None) -> jinja2.Template:
    """The template ``name``, which knows these ``filters``; what is not defined is an error."""
    is_html = name.endswith(".html.j2")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: TEMPLATES.joinpath(name).read_text("utf-8")),
        autoescape=is_html,
        keep_trailing_newline=not is_html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plural": plural, **(filters or {})}
    return environment.get_template(name)
