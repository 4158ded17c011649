"""Where models run: the device that a user names, or the best there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def find_device(name: str) -> torch.device:
    """The device ``name`` ("cpu", "cuda", "cuda:1", ...). Raises UserError for one that cannot hold a tensor here."""
    import torch

    from .errors import UserError, first_line

    try:
        device = torch.device(name)
        # By a value read back: some devices exist in name only, and hold none.
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        known = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise UserError(
            f"`device` {name}: cannot be used ({first_line(error)})", f"here: {', '.join(known)}"
        ) from error
    return device


def best_device(name: str | None = None) -> torch.device:
    """The device ``name``; a GPU where there is one, else the CPU, where none is named. Raises UserError as ``find_device``."""
    import torch

    return find_device(name) if name else torch.device("cuda" if torch.cuda.is_available() else "cpu")
