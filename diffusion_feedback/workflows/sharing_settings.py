"""The settings of exports and of what goes to the hub, as those in ``settings``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..catalog.formats import EXPORT_FORMATS
from ..errors import UserError, nearest
from ..values import checked_by_type
from .settings import DType


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class ExportSettings:
    """The form that a result is written in, and its precision; it is read back on ``device``."""

    format: str = "diffusers"
    dtype: DType = "float32"
    device: Any = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for a form that is not known."""
        if self.format not in EXPORT_FORMATS:
            raise UserError(f"`format`: got {self.format!r}", nearest(self.format, list(EXPORT_FORMATS)))


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class PushSettings:
    """How a result goes to the hub: ``revision`` is the branch that is written, main by default.

    ``private``: a repository that is made is private. ``dry_run`` lists the files and sends nothing.
    """

    private: bool = False
    revision: str | None = None
    message: str | None = None
    dry_run: bool = False
