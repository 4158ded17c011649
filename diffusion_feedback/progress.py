"""What a call says while it works: progress bars and notes, shown where the package's logger is at level INFO."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
LOGGER = "diffusion_feedback"


def set_verbosity(level: int | str = logging.INFO) -> None:
    """Show what calls say: bars and notes from ``"INFO"`` on, warnings alone with ``"WARNING"`` (as without this call).

    Notes of what is left out or cut are warnings. Where Python's logging is not set up, they go to standard error.
    """
    logging.getLogger(LOGGER).setLevel(level)
    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(message)s")


def is_shown() -> bool:
    """Whether bars are shown."""
    return logging.getLogger(LOGGER).isEnabledFor(logging.INFO)


def progress(items: Iterable[Item] | None = None, **settings: object) -> tqdm[Item]:
    """tqdm over ``items``, silent where notes are; ``settings`` are tqdm's own, and ``disable=True`` hides the bar."""
    return tqdm(items, **{**settings, "disable": settings.get("disable") or not is_shown()})
