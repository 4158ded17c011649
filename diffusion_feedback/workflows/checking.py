"""What a data set of pairs or texts holds, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..data.check import CheckReport, check_pairs
from ..data.columns import ColumnNames, spelt_out
from ..data.findings import Votes
from ..data.overlap import Overlap, find_overlap
from ..data.text_check import TextReport, check_texts
from ..data.texts import find_texts, holds_texts
from ..data.trajectories import open_trajectories
from ..errors import UserError, plural
from ..folders import at_home
from ..reports.checks import check_summary
from ..text_folders import load_tokenizer
from .data_settings import CheckSettings, DataSource
from .settings import as_list, made_of_keywords, shows
from .token_check import TokenCheck

if TYPE_CHECKING:
    from ..data.places import Dataset

Data: TypeAlias = "str | Path | Dataset"
"""Pairs or texts: a path, glob or hub id, or a ``datasets.Dataset``."""

_RESOLUTIONS = (512, 1024)  # px; what most models are trained at
_OF_TOKENS = ("tokenizer", "max_length", "max_completion_length", "chat_template")


@dataclass(frozen=True, slots=True)
class Checked:
    """``report`` says what was found; ``rewards`` what ILQL would learn from, "" where there are none.

    ``overlaps`` say what stands in other data too.
    """

    report: CheckReport | TextReport
    rewards: str = ""
    overlaps: Sequence[Overlap] = ()

    @property
    def is_ready(self) -> bool:
        """Whether the data can be trained on as it is."""
        return self.report.is_ready

    def __str__(self) -> str:
        """The report in plain text."""
        return "\n".join(filter(None, (check_summary(self.report), self.rewards, *map(str, self.overlaps))))


@dataclass(frozen=True, slots=True)
class CheckedTogether:
    """``each`` of several data sets, and what they are as one."""

    each: Sequence[Checked]

    @property
    def is_ready(self) -> bool:
        """Whether a run can be trained on all of them together as they are."""
        return all(one.is_ready for one in self.each) and self._are_alike

    @property
    def _are_alike(self) -> bool:
        return len({type(one.report) for one in self.each}) == 1

    def __str__(self) -> str:
        """The reports in plain text, and that of all together."""
        if not self._are_alike:
            together = "Not ready together: some are of images, others of texts."
        else:
            votes = [one.report.votes for one in self.each]
            joined = Votes.joined(votes)
            shared = [(a, b, votes[a].shared_with(votes[b])) for a, b in combinations(range(len(votes)), 2)]
            names = [one.report.reader.log.name for one in self.each]
            notes = [f"{count:,} stand in {names[a]} and in {names[b]}" for a, b, count in shared if count]
            if against := len(joined.contradicting):
                notes.append(f"{against:,} have rows that contradict each other")
            more = f" ({'; '.join(notes)}; their labels are joined)" if notes else ""
            together = f"Together: {joined.num_usable:,} {'pairs' if self._are_pairs else 'examples'}{more}."
        return "\n\n".join([*map(str, self.each), together])

    @property
    def _are_pairs(self) -> bool:
        return isinstance(self.each[0].report, CheckReport)


_KINDS = (CheckSettings, DataSource)


@shows(*_KINDS)
def check_together(paths: Sequence[str | Path | Dataset], **settings: object) -> CheckedTogether:
    """``check`` of each of ``paths``, and what they are as the list that training takes.

    Raises UserError as it does, and for an empty list.
    """
    if not paths:
        raise UserError("`paths`: is empty", "give at least one data set")
    return CheckedTogether([check(path, **settings) for path in paths])


@shows(*_KINDS)
def check(path: Data, *, against: Data | Sequence[Data] = (), **settings: object) -> Checked:
    """Read all of the data set ``path``, pairs of images or texts in any form, and say what it holds and what is wrong.

    ``path``: a file, glob, folder or hub id, or a ``datasets.Dataset``; ``against`` are others, or "split=NAME" of ``path``,
    of which is said what stands in both: prompts, images, completions. ``settings`` are the fields of CheckSettings and
    DataSource. Raises UserError for what cannot be read at all, and for a trajectory that training would refuse.
    """
    given, source = made_of_keywords(settings, *_KINDS)
    path, where = at_home(path), asdict(source)
    is_text = holds_texts(path, **where)
    if given.tokenizer is None or not is_text:
        for name in _OF_TOKENS:
            if getattr(given, name) is not None:
                what = "means nothing for images" if given.tokenizer else "means nothing without `tokenizer`"
                raise UserError(f"`{name}`: {what}", "leave it out, or check texts with a `tokenizer`")
    if is_text and given.resolution is not None:
        raise UserError("`resolution`: means nothing for texts", "leave it out")
    if is_text:
        texts = check_texts(path, tokens=_token_check(given), **where)
        checked = Checked(texts, _rewards(path, source) if texts.is_ready else "")
    else:
        resolutions = _RESOLUTIONS if given.resolution is None else (given.resolution,)
        checked = Checked(check_pairs(path, resolutions=resolutions, **where))
    part = {"split": source.split, "revision": source.revision, "columns": source.columns}
    return replace(checked, overlaps=[find_overlap(path, at_home(other), **part) for other in as_list(against)])


def _rewards(path: Data, source: DataSource) -> str:
    """What ILQL would learn from; "" where there are no rewards. Raises UserError for a trajectory that it would refuse."""
    if not reward_columns(path, asdict(source)):
        return ""
    trajectories = list(open_trajectories(path, split=source.split, revision=source.revision, columns=source.columns))
    rewards = [reward for each in trajectories for reward in each.rewards]
    return f"for ilql: {plural(len(trajectories), 'trajectory', 'trajectories')}, rewards from {min(rewards):g} to {max(rewards):g}"


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
