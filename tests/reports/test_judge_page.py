"""The page of two language models: a lead, short names of judges, whole prompts, and ties told apart from wins and losses."""

from __future__ import annotations

import re

import pytest

from diffusion_feedback.evaluation.judged import JudgeMeasurements, Verdict
from diffusion_feedback.evaluation.judging import clustered_mean, clustered_win_rate
from diffusion_feedback.evaluation.leakage import Leakage
from diffusion_feedback.records import CompletionRecord
from diffusion_feedback.reports.html import render_report
from diffusion_feedback.reports.pages.judge import judge_report
from diffusion_feedback.reports.results import judge_names

SPEC = "function=diffusion_feedback.scorers.texts.captions:reward"


def record(number: int, completion: str) -> CompletionRecord:
    fields = {"prompt": f"line one {number}\n\n  line two", "prompt_index": number, "completion": completion}
    return CompletionRecord(**fields, seed=0, sample=0, is_finished=True, token_ids=(), settings={}, model_hash="")  # type: ignore[arg-type]


def judged(gaps: list[float], **more: object) -> JudgeMeasurements:
    """A of ``gaps`` more than B, which has 0 throughout."""
    a, b = ([record(number, f"{name} {number}") for number in range(len(gaps))] for name in ("a", "b"))
    outcomes = [0.5 if gap == 0 else float(gap > 0) for gap in gaps]
    prompts = [each.prompt for each in a]
    zeros = [0.0] * len(gaps)
    means = clustered_mean(gaps, prompts), clustered_mean(zeros, prompts)
    won = clustered_win_rate(outcomes, prompts)
    verdict = Verdict(SPEC, "captions.1", gaps, zeros, outcomes, won, means=means)
    return JudgeMeasurements(("dpo", "sft"), (a, b), [verdict], **more)  # type: ignore[arg-type]


def test_wins_losses_and_ties_stand_apart_the_clearest_first() -> None:
    report = judge_report(judged([3.0, 0.0, -1.0, 1.0, -4.0, 2.0, 0.0]))
    tables = {table.title: table for table in report.tables if table.is_text}
    shown = {title: [cells[0].text for _, cells in table.rows] for title, table in tables.items()}
    assert shown == {
        "Where dpo wins most clearly": ["a 0", "a 5", "a 3"],
        "Where dpo loses most clearly": ["a 4", "a 2"],
        "Ties": ["a 1", "a 6"],
    }
    marks = {title: {cells[0].mark for _, cells in table.rows} for title, table in tables.items()}
    assert marks == {"Where dpo wins most clearly": {"better"}, "Where dpo loses most clearly": {"worse"}, "Ties": {""}}
    assert tables["Ties"].detail.startswith("2 of 7")
    assert "Ties" not in [table.title for table in judge_report(judged([1.0, 2.0])).tables if table.rows]


def test_the_page_leads_with_what_was_compared_and_says_what_was_repeated() -> None:
    leakage = {"dpo": Leakage((0,), (SPEC,)), "sft": Leakage()}
    report = judge_report(judged([3.0, 0.0, -1.0], num_given=5, leakage=leakage))
    assert [each.title for each in report.notices if each.tone == "alarm"] == [
        "dpo was trained on these prompts",
        "captions:reward made the labels that dpo was trained on",
    ]
    assert report.summary == "Completions of dpo and sft for the same 3 prompts, judged by captions:reward."
    assert report.facts["prompts"] == "5, 3 different"
    page = render_report(report)
    assert "by captions:reward" in page
    assert SPEC not in page[: page.index("How it was made")]
    assert "line one 0\n\n  line two" in page  # whole, as it stands
    assert re.search(r"\.words :is\(th, td\) \{[^}]*white-space: pre-wrap", page)


@pytest.mark.parametrize(
    ("spec", "short"),
    [
        (SPEC, "captions:reward"),
        ("function=/home/me/mine.py:length", "mine:length"),
        ("package.module:judge", "module:judge"),
        ("reward_model=runs/reward,max_length=9", "reward_model reward"),
        ("llm=Qwen/Qwen2.5-7B-Instruct,template=q.txt", "llm Qwen2.5-7B-Instruct"),
        ("mine", "mine"),
    ],
)
def test_judges_are_called_by_what_is_particular_to_them(spec: str, short: str) -> None:
    assert judge_names([spec]) == {spec: short}
    other = spec.replace("=", "=elsewhere/") if "=" in spec and ":" not in spec else spec
    assert len(set(judge_names(list(dict.fromkeys([spec, other]))).values())) == len({spec, other})
