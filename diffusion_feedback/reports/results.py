"""Results as parts of a page: notices, notes, groups of cases, and cells of tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath

import yaml

from ..evaluation.comparison import CaseRow, pick_cases
from ..evaluation.leakage import Leakage, prompt_text
from ..evaluation.statistics import Interval, WinRate
from ..records import PromptRecord, Text
from .content import Case, Cell, Group, Mark, Notice, Table, Tone
from .html import fixed, percent
from .rendering import TEMPLATES, load_template


def notice(kind: str, tone: Tone = "caution", **values: object) -> Notice:
    """The notice whose words stand in ``notices/KIND.txt.j2``, the title in the first line; they show ``values``."""
    words = load_template(f"notices/{kind}.txt.j2", {"percent": percent}).render(values)
    title, text = words.rstrip("\n").split("\n", 1)
    return Notice(title, text, tone)


def leakage_notices(name: str, leakage: Leakage, prompts: Sequence[PromptRecord | Text]) -> list[Notice]:
    """Alarms where the model ``name`` was trained on what it is measured on, or a judge made the labels that it learnt from."""
    notices = []
    if leakage.prompts:
        texts = [prompt.prompt if isinstance(prompt, PromptRecord) else prompt_text(prompt) for prompt in prompts]
        first = texts[leakage.prompts[0]]
        notices.append(notice("trained_on", "alarm", name=name, num=len(leakage.prompts), of=len(texts), first=first))
    if leakage.judges:
        notices.append(notice("labelled", "alarm", name=name, judges=leakage.judges))
    return notices


def leakage_words(leakage: Leakage) -> dict[str, str]:
    """What is known of it in a few words, by what it is."""
    places, judges = leakage.prompts, leakage.judges
    return {
        "prompts trained on": "unknown" if places is None else str(len(places)) if places else "none",
        "scorers that made training labels": "unknown" if judges is None else ", ".join(judges) or "none recorded",
    }


def explanations(page: str, needed: Mapping[str, object]) -> list[tuple[str, str]]:
    """What "How to read this" says on a ``page``, (title, text); without what ``needed`` has under a false value."""
    texts = yaml.safe_load(TEMPLATES.joinpath("notes.yaml").read_text("utf-8"))[page]
    return [(title, text) for title, text in texts.items() if needed.get(title, True)]


def case_groups(
    rows: Sequence[CaseRow], count: int, case_of: Callable[[CaseRow], Case], detail: str = "", after_name: str = ""
) -> list[Group[Case]]:
    """The ``count`` largest gains, largest losses (the worst first) and typical cases of ``rows``, shown by ``case_of``.

    A gain is above 0 and a loss below it; what else was picked is typical.
    """
    best, median, worst = pick_cases(rows, count)
    named = {
        "Largest gains": [row for row in best if row.delta > 0],
        "Largest losses": [row for row in worst if row.delta < 0],
        "Typical cases": [row for row in best if row.delta <= 0] + [*median] + [row for row in worst if row.delta >= 0],
    }
    return [Group(title, list(map(case_of, chosen)), detail, after_name) for title, chosen in named.items() if chosen]


def judge_names(specs: Sequence[str]) -> dict[str, str]:
    """Judges by their specs, called by what is particular to each; whole where two would be called alike.

    "function=package.module:reward" is module:reward, "llm=Qwen/Qwen2.5-7B-Instruct,template=x.txt" llm Qwen2.5-7B-Instruct.
    """
    shorts = {spec: judge_name(spec) for spec in specs}
    return {spec: short if list(shorts.values()).count(short) == 1 else spec for spec, short in shorts.items()}


def judge_name(spec: str) -> str:
    """What is particular to the judge of a spec: see ``judge_names``."""
    kind, separator, rest = spec.partition("=")
    source = PurePath((rest if separator else spec).split(",")[0]).name
    module, colon, attribute = source.partition(":")
    if colon:
        source = f"{module.removesuffix('.py').rpartition('.')[2]}:{attribute}"
    return f"{kind} {source}" if separator and kind != "function" else source


def interval_cell(estimate: Interval | None, digits: int = 3) -> Cell:
    """An estimate above its interval; empty for None."""
    if estimate is None:
        return Cell("")
    bounds = f"{fixed(estimate.low, digits)} to {fixed(estimate.high, digits)}"
    return Cell(fixed(estimate.value, digits), bounds)


def share_cell(share: Interval | WinRate | None, *lines: str, mark: Mark = "") -> Cell:
    """A share in [0, 1] as per cent, above its interval and ``lines``; empty for None."""
    if share is None:
        return Cell("")
    value = share.win_rate if isinstance(share, WinRate) else share.value
    return Cell(percent(value), "\n".join([f"{percent(share.low)} to {percent(share.high)}", *lines]), mark)


def completions_table(
    names: Sequence[str],
    rows: Iterable[tuple[Text, Sequence[tuple[str, float]]]],
    detail: str,
    title: str = "Completions",
    mark: Mark = "",
) -> Table:
    """Completions of the models ``names`` side by side, a row per prompt, each above its score; ``mark`` colours the first."""
    cells = []
    for prompt, row in rows:
        own = [Cell(text, fixed(score, 3), "" if place else mark) for place, (text, score) in enumerate(row)]
        cells.append((Cell(prompt_text(prompt)), own))
    return Table(title, names, cells, detail, "prompt", is_text=True)
