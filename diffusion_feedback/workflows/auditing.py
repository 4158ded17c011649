"""How far properties that nobody meant to judge explain the labels of a data set, before a model learns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.texts import holds_texts
from ..evaluation.audited import AuditResult
from ..evaluation.shortcuts import FEWEST_PROMPTS, MOST_NAMES, ComparedPairs, Shortcut, find_shortcuts
from ..folders import at_home
from ..reports.console import summarize
from ..reports.pages.audit import AuditExamples, write_audit
from ..text_folders import load_tokenizer
from .data_settings import AuditSettings
from .measured_pairs import Count, MeasuredPairs, measure_images, measure_texts
from .outputs import output_file
from .settings import made_of_keywords, refuse, shows

if TYPE_CHECKING:
    from ..data.places import Dataset

_KINDS = (AuditSettings,)
_SHORTCUTS_SHOWN, _PAIRS_SHOWN = 3, 4


@dataclass(frozen=True, slots=True)
class Audit:
    """``result`` says what predicts the labels; ``page`` is the file that was written, None without one."""

    result: AuditResult
    page: Path | None = None

    @property
    def shortcuts(self) -> Sequence[Shortcut]:
        """Every property, the best predictor first, all together at the end."""
        return self.result.shortcuts

    def __str__(self) -> str:
        """The audit in plain text."""
        return summarize("audit", result=self.result)


@shows(*_KINDS)
def audit(
    path: str | Path | Dataset, *, output: str | Path | None = None, overwrite: bool = False, **settings: object
) -> Audit:
    """Measure how well size, sharpness, colours, length and the like predict the labels of ``path`` by themselves.

    ``path``: pairs of images or of texts in any form: a file, glob, folder or hub id, or a ``datasets.Dataset``.
    ``output`` is a page (.html) to write, with pairs; one of before is replaced with ``overwrite`` alone. ``settings`` are
    the fields of AuditSettings. Accuracy is cross-validated over prompts, its 95 % interval resamples prompts, and over
    all properties at most 5 % of data sets without a shortcut raise an alarm (sign flips of prompts, Holm). Raises
    UserError for data that cannot be read or has no decided pair, and for an output that is there.
    """
    (given,) = made_of_keywords(settings, *_KINDS)
    path = at_home(path)
    where: dict[str, Any] = {"split": given.split, "revision": given.revision, "columns": given.columns}
    with output_file(output, [".html"], "audit", overwrite=overwrite) as page:
        if holds_texts(path, **where):
            measured = measure_texts(path, given.max_pairs, count_tokens=_counter(given.tokenizer), **where)
        else:
            refuse(settings, ["tokenizer"], "for images")
            measured = measure_images(path, given.max_pairs, **where)
        pairs = measured.compared()
        result = AuditResult(
            source=measured.source,
            medium=measured.medium,
            shortcuts=find_shortcuts(pairs),
            words=measured.words,
            num_pairs=measured.num_pairs,
            num_audited=len(measured.prompts),
            num_prompts=int(pairs.codes.max()) + 1,
            num_ties=measured.num_ties,
            num_unreadable=measured.num_unreadable,
            notes=[*measured.notes, *_rare(pairs)],
        )
        if page is not None:
            write_audit(result, _examples(result, pairs, measured), page)
    return Audit(result, page)


def _counter(tokenizer: str | None) -> Count | None:
    if tokenizer is None:
        return None
    loaded = load_tokenizer(tokenizer)
    return lambda text: len(loaded(text, add_special_tokens=False, verbose=False)["input_ids"])


def _rare(pairs: ComparedPairs) -> list[str]:
    rule = f"on fewer than {FEWEST_PROMPTS} prompts, or not among the {MOST_NAMES} commonest"
    return [f"{name}: {number:,} names count as unknown ({rule})" for name, number in pairs.rare_names.items()]


def _examples(result: AuditResult, pairs: ComparedPairs, measured: MeasuredPairs) -> list[AuditExamples]:
    """The pairs that differ most in each of the strongest properties, where the label follows it and where it does not."""
    groups = []
    for shortcut in [each for each in result.found if each.name in pairs.numbers][:_SHORTCUTS_SHOWN]:
        difference = np.nan_to_num(np.subtract(*pairs.numbers[shortcut.name].T))
        of_chosen = np.where(pairs.first_preferred, difference, -difference) * (1 if shortcut.prefers_more else -1)
        order, more = np.argsort(-of_chosen, kind="stable"), result.words[shortcut.name]
        agreeing = [number for number in order[:_PAIRS_SHOWN] if of_chosen[number] > 0]
        against = [number for number in order[::-1][:_PAIRS_SHOWN] if of_chosen[number] < 0]
        word, opposite = more[:2] if shortcut.prefers_more else more[1::-1]
        groups.append(
            AuditExamples(
                shortcut.name,
                [measured.show(number, f"the {word} one is preferred") for number in agreeing],
                [measured.show(number, f"the {opposite} one is preferred") for number in against],
            )
        )
    return groups
