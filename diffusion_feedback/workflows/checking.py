"""What a data set of pairs or texts holds, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..data.check import CheckReport, check_pairs
from ..data.text_check import TextReport, check_texts
from ..data.texts import find_texts, holds_texts
from ..data.trajectories import open_trajectories
from ..errors import UserError
from ..text_folders import load_tokenizer
from .settings import CheckSettings, made_of_keywords
from .token_check import TokenCheck

_OF_TOKENS = ("max_length", "max_completion_length", "chat_template")


@dataclass(frozen=True, slots=True)
class Checked:
    """``report`` says what was found; ``rewards`` what ILQL would learn from, "" where there are none."""

    report: CheckReport | TextReport
    rewards: str = ""

    @property
    def is_ready(self) -> bool:
        """Whether the data can be trained on as it is."""
        return self.report.is_ready

    def to_text(self) -> str:
        """The report in plain text."""
        return "\n".join(filter(None, (self.report.to_text(), self.rewards)))


def check(path: str, **settings: object) -> Checked:
    """Read all of the data set ``path``, pairs of images or texts in any form, and say what it holds and what is wrong.

    ``settings`` are the fields of CheckSettings. Raises UserError for what cannot be read at all, and for a trajectory
    that training would refuse.
    """
    [given] = made_of_keywords(settings, CheckSettings)
    return check_data(path, given)


def check_data(path: str, settings: CheckSettings) -> Checked:
    """``check`` under ``settings``. Raises UserError as it does."""
    where = settings.where
    if not holds_texts(path, **where):
        _refuse_token_settings(settings)
        return Checked(check_pairs(path, **where))
    report = check_texts(path, tokens=_token_check(settings), **where)
    if not report.is_ready or not reward_columns(path, where):
        return Checked(report)
    trajectories = list(open_trajectories(path, split=settings.split, revision=settings.revision))
    rewards = [reward for each in trajectories for reward in each.rewards]
    summary = f"for ilql: {len(trajectories):,} trajectories, rewards from {min(rewards):g} to {max(rewards):g}"
    return Checked(report, summary)


def reward_columns(path: str, where: dict[str, Any]) -> list[str]:
    """Those columns of the texts that make them trajectories."""
    columns = {name for source in find_texts(path, **where) for name in source.columns}
    return sorted({"reward", "rewards"} & columns)


def _token_check(settings: CheckSettings) -> TokenCheck | None:
    if settings.tokenizer is None:
        _refuse_token_settings(settings)
        return None
    tokenizer = load_tokenizer(settings.tokenizer)
    return TokenCheck(
        tokenizer, settings.tokenizer, settings.max_length, settings.max_completion_length, settings.chat_template
    )


def _refuse_token_settings(settings: CheckSettings) -> None:
    for name in ("tokenizer", *_OF_TOKENS):
        if getattr(settings, name) is not None:
            what = "means nothing for images" if settings.tokenizer else "means nothing without `tokenizer`"
            raise UserError(f"`{name}`: {what}", "leave it out, or check texts with a `tokenizer`")
