"""The README.md of a folder that a command leaves behind: what came out, and what each file holds."""

from __future__ import annotations

from collections.abc import Mapping


def folder_page(title: str, figures: str, files: Mapping[str, str]) -> str:
    """Markdown with ``figures`` as they were printed, and a table of ``files``: names to what they hold."""
    rows = "\n".join(f"| `{name}` | {what} |" for name, what in files.items())
    return f"# {title}\n\n```\n{figures}\n```\n\n| file | what it holds |\n|---|---|\n{rows}\n"
