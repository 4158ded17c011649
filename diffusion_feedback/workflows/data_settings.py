"""The settings of what a user does with data sets before anything is trained: as those of ``settings``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from ..folders import at_home
from ..values import COUNT, checked_by_type


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class DataSource:
    """Which part of a data set is read, besides its path or hub id, and whether without downloading it first.

    ``columns`` names the columns of a table that has names of its own: {"image_a": "left_path", "vote": "winner"}, ours to
    theirs, or "image_a=left_path,vote=winner".
    """

    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    columns: str | Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class CheckSettings:
    """How texts are counted: in the tokens of ``tokenizer``, at most ``max_length`` of them in an example.

    ``resolution``, px, is that of training on images; None says what the usual ones would take away.
    """

    resolution: Annotated[int | None, COUNT] = None
    tokenizer: Annotated[str | None, at_home] = None
    max_length: int | None = None
    max_completion_length: int | None = None
    chat_template: Annotated[str | None, at_home] = None


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class AuditSettings:
    """Which pairs are audited: at most ``max_pairs``, a fixed random sample; ``tokenizer`` counts the tokens of texts.

    ``columns`` as for DataSource.
    """

    split: str = "train"
    revision: str | None = None
    columns: str | Mapping[str, str] | None = None
    max_pairs: Annotated[int, COUNT] = 5000
    tokenizer: Annotated[str | None, at_home] = None


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class ViewSettings:
    """Which pairs are shown, and in which order.

    ``only`` those decided, tied, contested (votes disagree), cropped (an image is not square) or enlarged (an image's
    shorter side is below ``resolution``, px), and with ``search`` in the prompt. ``page`` counts from 1, ``count`` pairs
    each. For ``sort`` sharpness at most ``max_pairs`` are measured, a fixed random sample. ``columns`` as for DataSource.
    """

    split: str = "train"
    revision: str | None = None
    columns: str | Mapping[str, str] | None = None
    sort: Literal["random", "size", "crop", "sharpness", "contradiction", "prompt"] = "random"
    only: Literal["all", "decided", "tied", "contested", "cropped", "enlarged"] = "all"
    search: str | None = None
    count: Annotated[int, COUNT] = 40
    page: Annotated[int, COUNT] = 1
    resolution: Annotated[int, COUNT] = 512
    max_pairs: Annotated[int, COUNT] = 2000

    @property
    def first(self) -> int:
        """Place of the first pair that is shown, from 0."""
        return (self.page - 1) * self.count


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class ConvertSettings:
    """How a data set is converted; ``each_answer`` makes a row of each answer of a conversation, of texts."""

    on_bad_row: Literal["error", "skip"] = "error"
    each_answer: bool = False
    overwrite: bool = False
