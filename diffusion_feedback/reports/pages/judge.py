"""The page of two models judged against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import yaml

from ...errors import plural
from ...evaluation.judged import JudgeMeasurements, Verdict
from ...records import Text
from ..content import Cell, Group, Mark, Metric, Notice, Rate, Report, Table
from ..html import fixed, significant
from ..results import (
    completions_table,
    explanations,
    interval_cell,
    judge_name,
    judge_names,
    leakage_notices,
    notice,
    share_cell,
)

_SHOWN = 6  # completions of each: wins, losses
_SHOWN_TIES = 3
_BIASED = 0.1  # a judge whose share of first places is further from a half than this is called biased


def judge_report(judged: JudgeMeasurements) -> Report:
    """A against B: win rates by every judge, scores, perplexities, divergences, and completions side by side."""
    a, b = judged.names
    verdicts = judged.verdicts
    num_prompts, num = len(judged.prompts), len(judged.completions[0])
    repeated = judged.num_given is not None and judged.num_given > num_prompts
    facts = {"prompts": f"{judged.num_given}, {num_prompts} different" if repeated else str(num_prompts)}
    facts["completions of each"] = str(num)
    shown = judge_names([verdict.spec for verdict in verdicts])
    by_judge = [Rate(shown[verdict.spec], verdict.win_rate, num_prompts=num_prompts) for verdict in verdicts]
    return Report(
        title=f"{a} against {b}",
        summary=_lead(judged, list(shown.values())),
        before_name=b,
        after_name=a,
        medium="a completion",
        headline=Rate(a, verdicts[0].win_rate, f"by {by_judge[0].label}", num_prompts) if verdicts else None,
        facts=facts if num_prompts else {},
        metrics=[
            Metric(f"score by {shown[verdict.spec]}", verdict.means[1].value, verdict.means[0].value)
            for verdict in verdicts
            if verdict.means is not None
        ],
        rate_groups=[Group("By judge", by_judge)] if len(by_judge) > 1 else [],
        tables=[
            _bias_table(verdicts, shown),
            _fluency_table(judged),
            _distance_table(judged),
            *(table for verdict in verdicts[:1] for table in _completions_tables(judged, verdict)),
        ],
        notices=_notices(judged),
        recipe=yaml.safe_dump(dict(judged.settings), sort_keys=True, allow_unicode=True),
        notes=explanations("judge", {"Perplexity": judged.fluency, "KL": judged.distance}),
    )


def _lead(judged: JudgeMeasurements, judges: Sequence[str]) -> str:
    """What was compared, on what and by whom."""
    a, b = judged.names
    if not judged.prompts:
        return f"{a} and {b}, measured on texts."
    num, num_prompts = len(judged.completions[0]), len(judged.prompts)
    each = f", {plural(num, 'completion')} of each" if num > num_prompts else ""
    by = f", judged by {' and '.join(judges)}" if judges else ""
    return f"Completions of {a} and {b} for the same {plural(num_prompts, 'prompt')}{each}{by}."


def _bias_table(verdicts: Sequence[Verdict], shown: Mapping[str, str]) -> Table:
    rows = [
        (Cell(shown[verdict.spec]), [share_cell(verdict.bias.first_share), share_cell(verdict.bias.disagreement)])
        for verdict in verdicts
        if verdict.bias is not None
    ]
    detail = "Every pair was shown in both orders. A pair on which the two answers contradict each other is a tie."
    return Table("Does the judge favour a place?", ["prefers the first", "contradicts itself"], rows, detail, "judge")


def _fluency_table(judged: JudgeMeasurements) -> Table:
    rows = [
        (Cell(name), [interval_cell(own.perplexity), Cell(fixed(own.bits_per_byte, 4)), Cell(f"{own.tokens:,}")])
        for name, own in judged.fluency.items()
    ]
    columns = ["perplexity per token", "bits per byte", "tokens"]
    return Table("Held-out texts", columns, rows, "Lower is better; 95 % intervals are over texts.", "model")


def _distance_table(judged: JudgeMeasurements) -> Table:
    has_exact = any(own.exact is not None for own in judged.distance.values())
    rows = []
    for name, own in judged.distance.items():
        kl = Cell(fixed(own.kl.value, 4), f"standard error {significant(own.kl_error)}")
        ratio = Cell(fixed(own.log_ratio, 4), f"standard error {significant(own.log_ratio_error)}")
        exact = Cell("" if own.exact is None else fixed(own.exact, 4))
        rows.append((Cell(name), [kl, ratio, *([exact] if has_exact else [])]))
    columns = ["KL along the completions", "mean log-ratio", *(["exact KL"] if has_exact else [])]
    detail = f"From {judged.settings.get('reference')}, nats per completion, on completions of each model's own."
    return Table("Divergence from the reference", columns, rows, detail, "model")


def _completions_tables(judged: JudgeMeasurements, verdict: Verdict) -> list[Table]:
    """The clearest wins and losses of A by what the first judge says, and some ties, each of another prompt."""
    a, _ = judged.names
    gaps = [x - y for x, y in zip(verdict.a, verdict.b, strict=True)]
    falling = sorted(range(len(gaps)), key=lambda place: (-gaps[place], place))
    what = "the preference for it when shown first" if verdict.means is None else "its score"
    groups: dict[str, tuple[float, Sequence[int], int, Mark]] = {
        f"Where {a} wins most clearly": (1.0, falling, _SHOWN, "better"),
        f"Where {a} loses most clearly": (0.0, falling[::-1], _SHOWN, "worse"),
        "Ties": (0.5, range(len(gaps)), _SHOWN_TIES, ""),
    }
    tables = []
    for title, (outcome, order, count, mark) in groups.items():
        places = [place for place in order if verdict.outcomes[place] == outcome]
        rows = [_row(judged, verdict, place) for place in _one_a_prompt(judged, places)[:count]]
        detail = f"{len(places)} of {len(gaps)}; below each completion {what}."
        tables.append(completions_table(judged.names, rows, detail, title, mark))
    return tables


def _one_a_prompt(judged: JudgeMeasurements, places: Sequence[int]) -> list[int]:
    first: dict[str, int] = {}
    for place in places:
        first.setdefault(repr(judged.completions[0][place].prompt), place)
    return list(first.values())


def _row(judged: JudgeMeasurements, verdict: Verdict, place: int) -> tuple[Text, list[tuple[str, float]]]:
    a, b = (side[place] for side in judged.completions)
    return a.prompt, [(a.completion, verdict.a[place]), (b.completion, verdict.b[place])]


def _notices(judged: JudgeMeasurements) -> list[Notice]:
    biased = [
        notice("favours_a_place", judge=judge_name(verdict.spec), bias=verdict.bias)
        for verdict in judged.verdicts
        if verdict.bias is not None
        and (verdict.bias.first_share.low > 0.5 + _BIASED or verdict.bias.first_share.high < 0.5 - _BIASED)
    ]
    shown = judge_names([verdict.spec for verdict in judged.verdicts])
    leaked = [
        each
        for name, own in judged.leakage.items()
        for each in leakage_notices(name, replace(own, judges=_named(own.judges, shown)), judged.prompts)
    ]
    return [*leaked, *biased, *(Notice("Note", note) for note in judged.notes)]


def _named(judges: Sequence[str] | None, shown: Mapping[str, str]) -> tuple[str, ...] | None:
    return None if judges is None else tuple(shown.get(spec, spec) for spec in judges)
