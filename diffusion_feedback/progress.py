"""What a call says while it works: progress bars and notes, shown where the package's logger is at level INFO."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
LOGGER = "diffusion_feedback"
_QUIET = 30.0  # s between two lines, and before the first
_LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


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
    """tqdm over ``items``, silent where notes are; ``settings`` are tqdm's own, and ``disable=True`` hides the bar.

    Where standard error is no terminal, a line is written every half minute in place of a bar that is drawn over itself.
    """
    settings["disable"] = settings.get("disable") or not is_shown()
    if sys.stderr.isatty():
        has_size = all(os.get_terminal_size(sys.stderr.fileno()))  # some terminals do not know theirs
        return tqdm(items, **{"dynamic_ncols": has_size, **settings})
    return _Lines(items, **{**settings, "mininterval": _QUIET, "delay": _QUIET, "bar_format": _LINE})


class _Lines(tqdm):
    """A whole line now and then, and none at the end: whoever waited for the work says what came of it."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        line = str(self) if msg is None else msg
        if line:
            self.fp.write(f"{line}\n")
            self.fp.flush()

    def close(self) -> None:
        self.delay = float("inf")  # as if nothing had been shown: there is no bar to end
        super().close()
