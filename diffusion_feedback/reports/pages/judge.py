"""The page of ``dfb judge``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from ...evaluation.judged import Judged, Verdict
from ...evaluation.statistics import Interval
from ..content import Metric, Rate, RateGroup, Report
from ..html import fixed, percent, significant, write_report
from ..parts import Cell, Notice, Table

_SHOWN = 12  # completions of each: gains, losses
_BIASED = 0.1  # a judge whose share of first places is further from a half than this is called biased


def write_page(found: Judged, path: Path) -> None:
    """Write report.html."""
    write_report(judge_report(found), path)


def judge_report(found: Judged) -> Report:
    """A against B: win rates by every judge, scores, perplexities, divergences, and completions side by side."""
    a, b = found.names
    prompts = len({repr(record.prompt) for record in found.completions[0]})
    rates = [_rate(verdict, a, prompts) for verdict in found.verdicts]
    tables = [
        *([_bias_table(found.verdicts)] if any(verdict.bias for verdict in found.verdicts) else []),
        *([_fluency_table(found)] if found.fluency else []),
        *([_distance_table(found)] if found.distance else []),
        *([_cases(found, found.verdicts[0])] if found.verdicts else []),
    ]
    return Report(
        title=f"{a} against {b}",
        before_name=b,
        after_name=a,
        medium="a completion",
        headline=rates[0] if rates else None,
        facts={"prompts": str(prompts), "completions of each": str(len(found.completions[0]))} if prompts else {},
        metrics=[metric for verdict in found.verdicts for metric in _metrics(verdict)],
        rate_groups=[RateGroup("By judge", [_named(v, r) for v, r in zip(found.verdicts, rates, strict=True)])]
        if len(rates) > 1
        else [],
        tables=tables,
        notices=_notices(found),
        recipe=yaml.safe_dump(dict(found.settings), sort_keys=True, allow_unicode=True),
        notes=_notes(found),
    )


def _rate(verdict: Verdict, name: str, num_prompts: int) -> Rate:
    won = verdict.win_rate
    # The page calls it a sign test, which it is where every prompt was judged once.
    p_value = won.p_value if won.num == num_prompts else None
    return Rate(name, won.win_rate, won.low, won.high, won.num, won.tie_share, p_value, f"by {verdict.spec}")


def _named(verdict: Verdict, rate: Rate) -> Rate:
    return Rate(verdict.spec, rate.win_rate, rate.low, rate.high, rate.num, rate.tie_share, rate.p_value)


def _metrics(verdict: Verdict) -> list[Metric]:
    if verdict.means is None:
        return []
    return [Metric(f"score by {verdict.spec}", verdict.means[1].value, verdict.means[0].value)]


def _interval(value: Interval, digits: int = 3) -> Cell:
    return Cell(fixed(value.value, digits), f"{fixed(value.low, digits)} to {fixed(value.high, digits)}")


def _share(value: Interval) -> Cell:
    return Cell(percent(value.value), f"{percent(value.low)} to {percent(value.high)}")


def _bias_table(verdicts: Sequence[Verdict]) -> Table:
    rows = [
        (Cell(verdict.spec), [_share(verdict.bias.first_share), _share(verdict.bias.disagreement)])
        for verdict in verdicts
        if verdict.bias is not None
    ]
    detail = "Every pair was shown in both orders. A pair on which the two answers contradict each other is a tie."
    return Table("Does the judge favour a place?", ["prefers the first", "contradicts itself"], rows, detail, "judge")


def _fluency_table(found: Judged) -> Table:
    rows = [
        (Cell(name), [_interval(own.perplexity), Cell(fixed(own.bits_per_byte, 4)), Cell(f"{own.tokens:,}")])
        for name, own in found.fluency.items()
    ]
    columns = ["perplexity a token", "bits a byte", "tokens"]
    return Table("Held-out texts", columns, rows, "Lower is better; 95 % intervals are over texts.", "model")


def _distance_table(found: Judged) -> Table:
    has_exact = any(own.exact is not None for own in found.distance.values())
    rows = []
    for name, own in found.distance.items():
        kl = Cell(fixed(own.kl.value, 4), f"standard error {significant(own.kl_error)}")
        ratio = Cell(fixed(own.log_ratio, 4), f"standard error {significant(own.log_ratio_error)}")
        exact = Cell("" if own.exact is None else fixed(own.exact, 4))
        rows.append((Cell(name), [kl, ratio, *([exact] if has_exact else [])]))
    columns = ["KL along the completions", "mean log-ratio", *(["exact KL"] if has_exact else [])]
    detail = f"From {found.settings.get('reference')}, nats a completion, on completions of each model's own."
    return Table("Divergence from the reference", columns, rows, detail, "model")


def _cases(found: Judged, verdict: Verdict) -> Table:
    """The clearest wins and losses, half and half, by what the first judge says."""
    gaps = [x - y for x, y in zip(verdict.a, verdict.b, strict=True)]
    order = sorted(range(len(gaps)), key=lambda place: (-gaps[place], place))
    half = min(_SHOWN // 2, (len(order) + 1) // 2)
    shown = list(dict.fromkeys([*order[:half], *order[-half:]]))
    rows = []
    for place in shown:
        one, other = (side[place] for side in found.completions)
        prompt = one.prompt if isinstance(one.prompt, str) else "\n".join(str(turn["content"]) for turn in one.prompt)
        cells = [Cell(one.completion, fixed(verdict.a[place], 3)), Cell(other.completion, fixed(verdict.b[place], 3))]
        rows.append((Cell(prompt), cells))
    what = "the preference for it when shown first" if verdict.means is None else "its score"
    detail = f"The clearest wins, then the clearest losses by {verdict.spec}; below each completion {what}."
    return Table("Completions", list(found.names), rows, detail, "prompt", is_text=True)


def _notices(found: Judged) -> list[Notice]:
    notices = []
    for verdict in found.verdicts:
        bias = verdict.bias
        if bias is not None and (bias.first_share.low > 0.5 + _BIASED or bias.first_share.high < 0.5 - _BIASED):
            side = "first" if bias.first_share.value > 0.5 else "second"
            text = (
                f"It prefers the completion shown {side} so often that its verdicts say little: "
                f"{percent(bias.disagreement.value)} of the pairs are ties because its answers contradict each other."
            )
            notices.append(Notice(f"{verdict.spec} favours a place", text, "caution"))
    return [*notices, *(Notice("Note", note, "calm") for note in found.notes)]


def _notes(found: Judged) -> list[tuple[str, str]]:
    notes = []
    if found.fluency:
        text = "exp of the mean negative log-likelihood a token of the completions; bits a byte do not depend on the tokenizer."
        notes.append(("Perplexity", text))
    if found.distance:
        text = (
            "How far a model has moved from the reference, in nats a completion. Along the completions the divergence of "
            "the next token is exact and only the way is drawn; the mean log-ratio is the plain estimate."
        )
        notes.append(("KL", text))
    return notes
