"""What a data set of pairs or texts holds, and what is wrong with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.check import CheckReport, check_pairs
from ..data.columns import ColumnNames, spelt_out
from ..data.text_check import TextReport, check_texts
from ..data.texts import find_texts, holds_texts
from ..data.trajectories import open_trajectories
from ..errors import UserError
from ..folders import at_home
from ..reports.checks import check_summary
from ..text_folders import load_tokenizer
from .settings import CheckSettings, DataSource, made_of_keywords, shows
from .token_check import TokenCheck

if TYPE_CHECKING:
    from ..data.places import Dataset

_OF_TOKENS = ("tokenizer", "max_length", "max_completion_length", "chat_template")


@dataclass(frozen=True, slots=True)
class Checked:
    """``report`` says what was found; ``rewards`` what ILQL would learn from, "" where there are none."""

    report: CheckReport | TextReport
    rewards: str = ""

    @property
    def is_ready(self) -> bool:
        """Whether the data can be trained on as it is."""
        return self.report.is_ready

    def __str__(self) -> str:
        """The report in plain text."""
        return "\n".join(filter(None, (check_summary(self.report), self.rewards)))


_KINDS = (CheckSettings, DataSource)


@shows(*_KINDS)
def check(path: str | Path | Dataset, **settings: object) -> Checked:
    """Read all of the data set ``path``, pairs of images or texts in any form, and say what it holds and what is wrong.

    ``path``: a file, glob, folder or hub id, or a ``datasets.Dataset``.
    ``settings`` are the fields of CheckSettings and DataSource. Raises UserError for what cannot be read at all, and for a trajectory
    that training would refuse.
    """
    given, source = made_of_keywords(settings, *_KINDS)
    path, where = at_home(path), asdict(source)
    is_text = holds_texts(path, **where)
    if given.tokenizer is None or not is_text:
        for name in _OF_TOKENS:
            if getattr(given, name) is not None:
                what = "means nothing for images" if given.tokenizer else "means nothing without `tokenizer`"
                raise UserError(f"`{name}`: {what}", "leave it out, or check texts with a `tokenizer`")
    if not is_text:
        return Checked(check_pairs(path, **where))
    report = check_texts(path, tokens=_token_check(given), **where)
    if not report.is_ready or not reward_columns(path, where):
        return Checked(report)
    trajectories = list(open_trajectories(path, split=source.split, revision=source.revision, columns=source.columns))
    rewards = [reward for each in trajectories for reward in each.rewards]
    summary = f"for ilql: {len(trajectories):,} trajectories, rewards from {min(rewards):g} to {max(rewards):g}"
    return Checked(report, summary)


def reward_columns(path: str | Path | Dataset, where: dict[str, Any]) -> list[str]:
    """Those columns of the texts that make them trajectories."""
    own = ColumnNames(spelt_out(where["columns"]))
    place = {name: value for name, value in where.items() if name != "columns"}
    columns = {name for source in find_texts(path, names=own, **place) for name in source.columns}
    return sorted({"reward", "rewards"} & columns)


def _token_check(settings: CheckSettings) -> TokenCheck | None:
    if settings.tokenizer is None:
        return None
    limits = settings.max_length, settings.max_completion_length
    return TokenCheck(load_tokenizer(settings.tokenizer), settings.tokenizer, *limits, settings.chat_template)
