"""The page of two models judged against each other."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from ...evaluation.judged import JudgeMeasurements, Verdict
from ..content import Cell, Group, Metric, Notice, Rate, Report, Table
from ..html import fixed, significant
from ..results import completions_table, explanations, interval_cell, leakage_notices, notice, share_cell

_SHOWN = 12  # completions of each: gains, losses
_BIASED = 0.1  # a judge whose share of first places is further from a half than this is called biased


def judge_report(judged: JudgeMeasurements) -> Report:
    """A against B: win rates by every judge, scores, perplexities, divergences, and completions side by side."""
    a, b = judged.names
    verdicts = judged.verdicts
    num_prompts = len({repr(record.prompt) for record in judged.completions[0]})
    facts = {"prompts": str(num_prompts), "completions of each": str(len(judged.completions[0]))}
    by_judge = [Rate(verdict.spec, verdict.win_rate, num_prompts=num_prompts) for verdict in verdicts]
    return Report(
        title=f"{a} against {b}",
        before_name=b,
        after_name=a,
        medium="a completion",
        headline=Rate(a, verdicts[0].win_rate, f"by {verdicts[0].spec}", num_prompts) if verdicts else None,
        facts=facts if num_prompts else {},
        metrics=[
            Metric(f"score by {verdict.spec}", verdict.means[1].value, verdict.means[0].value)
            for verdict in verdicts
            if verdict.means is not None
        ],
        rate_groups=[Group("By judge", by_judge)] if len(by_judge) > 1 else [],
        tables=[
            _bias_table(verdicts),
            _fluency_table(judged),
            _distance_table(judged),
            *(_completions_table(judged, verdict) for verdict in verdicts[:1]),
        ],
        notices=_notices(judged),
        recipe=yaml.safe_dump(dict(judged.settings), sort_keys=True, allow_unicode=True),
        notes=explanations("judge", {"Perplexity": judged.fluency, "KL": judged.distance}),
    )


def _bias_table(verdicts: Sequence[Verdict]) -> Table:
    rows = [
        (Cell(verdict.spec), [share_cell(verdict.bias.first_share), share_cell(verdict.bias.disagreement)])
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
    columns = ["perplexity a token", "bits a byte", "tokens"]
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
    detail = f"From {judged.settings.get('reference')}, nats a completion, on completions of each model's own."
    return Table("Divergence from the reference", columns, rows, detail, "model")


def _completions_table(judged: JudgeMeasurements, verdict: Verdict) -> Table:
    """The clearest wins and losses, half and half, by what the first judge says."""
    gaps = [x - y for x, y in zip(verdict.a, verdict.b, strict=True)]
    order = sorted(range(len(gaps)), key=lambda place: (-gaps[place], place))
    half = min(_SHOWN // 2, (len(order) + 1) // 2)
    a, b = judged.completions
    rows = [
        (a[i].prompt, [(a[i].completion, verdict.a[i]), (b[i].completion, verdict.b[i])])
        for i in dict.fromkeys([*order[:half], *order[-half:]])
    ]
    what = "the preference for it when shown first" if verdict.means is None else "its score"
    detail = f"The clearest wins, then the clearest losses by {verdict.spec}; below each completion {what}."
    return completions_table(judged.names, rows, detail)


def _notices(judged: JudgeMeasurements) -> list[Notice]:
    biased = [
        notice("favours_a_place", judge=verdict.spec, bias=verdict.bias)
        for verdict in judged.verdicts
        if verdict.bias is not None
        and (verdict.bias.first_share.low > 0.5 + _BIASED or verdict.bias.first_share.high < 0.5 - _BIASED)
    ]
    leaked = [each for name, own in judged.leakage.items() for each in leakage_notices(name, own, judged.prompts)]
    return [*leaked, *biased, *(Notice("Note", note) for note in judged.notes)]
