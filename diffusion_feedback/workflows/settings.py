"""The settings of what a user does: the only place of their defaults. The command line makes its flags of them.

Each class checks its own values when it is made, and raises UserError naming the parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import UserError


def at_least(smallest: int, **values: int | None) -> None:
    """Raise UserError for the first of ``values``, by name, that is below ``smallest``; None stands for a default."""
    for name, value in values.items():
        if value is not None and value < smallest:
            raise UserError(f"`{name}`: got {value}", f"allowed: {smallest} or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringSettings:
    """Where, how exactly and how fast images are scored; ``cache_dir`` None keeps no scores."""

    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = 16
    workers: int = 4
    cache_dir: str | None = "~/.cache/diffusion-feedback"
    on_bad_image: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        """Raises UserError for sizes below 1."""
        at_least(1, batch_size=self.batch_size, workers=self.workers)
