"""Judges of completions, by name or as objects: their scores, and their verdicts on two models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import cast

import torch

from ..devices import best_device
from ..evaluation.judged import Verdict
from ..evaluation.judging import (
    clustered_mean,
    clustered_win_rate,
    outcomes_of_both_orders,
    outcomes_of_scores,
    position_bias,
)
from ..records import CompletionRecord, Text
from ..scorers.texts.function import from_function
from ..scorers.texts.loading import load_text_judge, parse_text_spec
from ..types.texts import PairJudge, TextScorer
from .settings import JudgeSettings

# A spec, a scorer or judge that is loaded, or a function of prompts and completions.
Judge = str | TextScorer | PairJudge | Callable[..., object]


def name_of_judge(judge: Judge) -> str:
    """What ``judge`` is called in results: its spec, its own name, or that of its class or function."""
    if isinstance(judge, str):
        return judge
    own = getattr(judge, "name", None) or getattr(judge, "__qualname__", None)
    return str(own or type(judge).__qualname__)


def load_judge(judge: Judge, settings: JudgeSettings) -> TextScorer | PairJudge:
    """``judge`` itself where it is loaded, a scorer that calls it where it is a function, else what its spec names.

    Raises UserError where that cannot be loaded.
    """
    if not isinstance(judge, str):
        return judge if isinstance(judge, TextScorer | PairJudge) else cast(TextScorer, from_function(judge))
    spec, device = parse_text_spec(judge, "pair_judge"), best_device(settings.device)
    return load_text_judge(spec, device, getattr(torch, settings.dtype or "float32"))


def verdict_of(
    name: str,
    judge: TextScorer | PairJudge,
    a: Sequence[CompletionRecord],
    b: Sequence[CompletionRecord],
    tie_margin: float,
) -> Verdict:
    """What ``judge``, called ``name``, says of ``a`` against ``b``, one by one; a judge of pairs judges in both orders."""
    prompts = [prompt_name(record.prompt) for record in a]
    if isinstance(judge, TextScorer):
        # Both at once, so that equal completions get the very same score.
        scores = score_records(judge, [*a, *b])
        first, second = scores[: len(a)], scores[len(a) :]
        outcomes = outcomes_of_scores(first, second, tie_margin=tie_margin)
        means = clustered_mean(first, prompts), clustered_mean(second, prompts)
        return Verdict(
            name, judge.recipe_id, first, second, outcomes, clustered_win_rate(outcomes, prompts), means=means
        )
    texts = [record.prompt for record in a], [completion_text(r) for r in a], [completion_text(r) for r in b]
    a_first, b_first = judge.judge(*texts), judge.judge(texts[0], texts[2], texts[1])
    outcomes = outcomes_of_both_orders(a_first, b_first)
    bias = position_bias(a_first, b_first, prompts) if len(set(prompts)) > 1 else None
    return Verdict(name, judge.recipe_id, a_first, b_first, outcomes, clustered_win_rate(outcomes, prompts), bias=bias)


def score_records(scorer: TextScorer, records: Sequence[CompletionRecord]) -> list[float]:
    """The score of each completion; equal ones of one prompt are scored once, so that rounding does not part them."""
    keys = [(prompt_name(record.prompt), record.completion, record.is_finished) for record in records]
    distinct = dict(zip(keys, records, strict=True))
    scores = scorer.score(
        [record.prompt for record in distinct.values()],
        [completion_text(record) for record in distinct.values()],
        [record.is_finished for record in distinct.values()],
    )
    by_key = dict(zip(distinct, scores, strict=True))
    return [by_key[key] for key in keys]


def prompt_name(prompt: Text) -> str:
    """A prompt as one text, by which a table of scores knows it."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, default=dict, sort_keys=True)


def completion_text(record: CompletionRecord) -> Text:
    """The completion as its prompt stands: a text, or the assistant's turn."""
    if isinstance(record.prompt, str):
        return record.completion
    return ({"role": "assistant", "content": record.completion},)
