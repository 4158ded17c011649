"""The settings of what a user does: the only place of their defaults. The command line makes its flags of them.

Each class checks its own values when it is made, and raises UserError naming the parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import UserError, nearest
from ..labeling.panel import LabelPolicy


def at_least(smallest: int, **values: int | None) -> None:
    """Raise UserError for the first of ``values``, by name, that is below ``smallest``; None stands for a default."""
    for name, value in values.items():
        if value is not None and value < smallest:
            raise UserError(f"`{name}`: got {value}", f"allowed: {smallest} or more")


def check_choices(settings: Any) -> None:
    """Raise UserError for the first field of ``settings`` whose value is none of those that its Literal allows."""
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise UserError(f"`{name}`: got {value!r}", nearest(str(value), list(get_args(hint))))


def made_of_keywords(keywords: Mapping[str, Any], *kinds: type[Any]) -> list[Any]:
    """Settings of each of ``kinds``, made of the ``keywords`` that a call was given; each takes those of its fields.

    Raises UserError for a keyword that none of them has, and as the settings do.
    """
    known = {field.name: kind for kind in kinds for field in fields(kind)}
    for name in keywords:
        if name not in known:
            raise UserError(f"`{name}`: is no setting", nearest(name, list(known)))
    names = [{field.name for field in fields(kind)} for kind in kinds]
    return [kind(**{n: v for n, v in keywords.items() if n in own}) for kind, own in zip(kinds, names, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """Which images of a place are meant: ``prompt`` is the one of all of them; ``split`` and ``revision`` of a data set."""

    prompt: str | None = None
    split: str = "train"
    revision: str | None = None

    def __post_init__(self) -> None:
        """Raises UserError for an empty prompt."""
        if self.prompt is not None and not self.prompt.strip():
            raise UserError("`prompt`: is empty", "give a prompt of at least one character")


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
        """Raises UserError for sizes below 1, and values that are none of those allowed."""
        check_choices(self)
        at_least(1, batch_size=self.batch_size, workers=self.workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelingSettings:
    """How scores become labels, as ``LabelPolicy`` says.

    ``calibration`` is the file of logit scales that a calibration wrote, or {recipe id: logit scale};
    ``max_pairs_per_prompt`` keeps the rule's first pairs of each prompt. ``relabel`` keeps the pairs of the input.
    """

    relabel: bool = False
    ensemble: Literal["mean", "vote", "abstain"] = "mean"
    ties: Literal["drop", "soft", "half"] = "drop"
    tie_margin: float = 0.0
    min_probability: float = 0.5
    calibration: str | Mapping[str, float] | None = None
    max_pairs_per_prompt: int | None = None

    def __post_init__(self) -> None:
        """Raises UserError for values out of range."""
        check_choices(self)
        at_least(1, max_pairs_per_prompt=self.max_pairs_per_prompt)
        self.policy  # noqa: B018 (checks itself)

    @property
    def policy(self) -> LabelPolicy:
        """The policy of a panel."""
        return LabelPolicy(self.ensemble, self.ties, self.tie_margin, self.min_probability)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    """Which labelled pairs are read.

    ``ceiling_scorer`` names the scorer that knows the truth: its accuracy is the noise ceiling of the labels.
    ``per_prompt`` shows the mean over prompts of each one's accuracy too, as HPSv2 reports it.
    """

    ceiling_scorer: str | None = None
    per_prompt: bool = False
    split: str = "train"
    tune_split: str = "train"
    revision: str | None = None
    on_bad_row: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        """Raises UserError for values that are none of those allowed."""
        check_choices(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """Which data set is checked; texts in the tokens of ``tokenizer``, at most ``max_length`` of them in an example."""

    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    tokenizer: str | None = None
    max_length: int | None = None
    max_completion_length: int | None = None
    chat_template: str | None = None

    @property
    def where(self) -> dict[str, Any]:
        """What readers take."""
        return {"split": self.split, "revision": self.revision, "streaming": self.streaming}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertSettings:
    """Which data set is converted; ``each_answer`` makes a row of each answer of a conversation, of texts."""

    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    on_bad_row: Literal["error", "skip"] = "error"
    each_answer: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for values that are none of those allowed."""
        check_choices(self)

    @property
    def where(self) -> dict[str, Any]:
        """What readers take."""
        return {"split": self.split, "revision": self.revision, "streaming": self.streaming}
