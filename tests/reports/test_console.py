"""Summaries as commands print them, letter by letter: made-up results against the files of ``summaries``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reports.test_calibration import sample

from diffusion_feedback.catalog import resolve
from diffusion_feedback.evaluation.benchmarks.benchmark import prompts_hash
from diffusion_feedback.evaluation.benchmarks.published import STYLES
from diffusion_feedback.evaluation.benchmarks.run import BenchmarkRun, compare_runs, make_run
from diffusion_feedback.evaluation.calibration import LabelledPairs
from diffusion_feedback.evaluation.comparison import Comparison
from diffusion_feedback.evaluation.judged import Distance, Fluency, JudgeMeasurements, Verdict
from diffusion_feedback.evaluation.judging import PositionBias
from diffusion_feedback.evaluation.rounds import RoundMetrics
from diffusion_feedback.evaluation.statistics import Interval, win_rate_of_counts
from diffusion_feedback.labeling.pairs import PairCounts
from diffusion_feedback.labeling.panel import Judge, LabelPolicy, Panel
from diffusion_feedback.labeling.relabel import RelabelCounts
from diffusion_feedback.records import PromptRecord, ScoreRecord
from diffusion_feedback.reports.console import (
    benchmark_summary,
    calibration_summary,
    folder_means,
    judge_summary,
    pairs_summary,
    relabelled_summary,
    rounds_summary,
    scores_summary,
)
from diffusion_feedback.shapes.result import Demo, VerifiedImages

RECIPES = {"hpsv2": "hpsv2.1/letterbox-224/fp32/0123", "pickscore": "pickscore.1/crop-224/fp32/ba98"}


def run(
    name: str,
    prompts: list[PromptRecord],
    scores: Mapping[str, list[float]],
    benchmark: str = "hpsv2",
    **settings: object,
) -> BenchmarkRun:
    """A run whose image of a prompt is missing where its score is nan."""
    images = [() if math.isnan(value) else (f"{place}.png",) for place, value in enumerate(next(iter(scores.values())))]
    records = [
        ScoreRecord(f"{place}.png", "key", prompt.prompt, scorer, RECIPES[scorer], value, value, 100.0)
        for scorer, values in scores.items()
        for place, (prompt, value) in enumerate(zip(prompts, values, strict=True))
        if not math.isnan(value)
    ]
    own = {"prompts_hash": prompts_hash(prompts), "short": [], "allow_missing": True, **settings}
    return make_run(Path(name), resolve("benchmark", benchmark)(), own, prompts, images, records)


def styled(number: int) -> list[PromptRecord]:
    return [PromptRecord(f"{style} {place}", {"style": style}) for style in STYLES for place in range(number)]


def two_runs() -> str:
    """Every line: spread, gaps, published means, a comparison with ties and an alarm."""
    prompts, source = styled(100), np.random.default_rng(0)
    scores = {name: source.normal(0.27, 0.01, 400) for name in RECIPES}
    after = {"hpsv2": scores["hpsv2"] + 0.003, "pickscore": scores["pickscore"] - 0.003}
    after["hpsv2"][:3] = scores["hpsv2"][:3]
    scores["hpsv2"][7] = scores["pickscore"][7] = math.nan
    before, later = (
        run(name, prompts, {k: v.tolist() for k, v in each.items()})
        for name, each in (("base", scores), ("runs/tuned", after))
    )
    return benchmark_summary(later, compare_runs(before, later)) + "\n---\n" + benchmark_summary(before, None)


def parts_of_a_benchmark() -> str:
    """One whole style, which compares with that style of others; a part of one; a single prompt."""
    photo = [PromptRecord(f"photo {place}", {"style": "photo"}) for place in range(800)]
    scores = [0.28 + 0.00001 * place for place in range(800)]
    short = {"short": ["anime: 0 of 800 prompts"]}
    runs = [run("photo", photo, {"hpsv2": scores}, **short), run("part", photo[:8], {"hpsv2": scores[:8]}, **short)]
    runs.append(run("one", [PromptRecord("a cat", {})], {"pickscore": [21.0]}, "pickapic"))
    return "\n---\n".join(benchmark_summary(each, None) for each in runs)


def calibrations() -> str:
    few = replace(sample("pickscore"), num_left_out=3, ceiling=None)
    ranked = LabelledPairs(
        np.tile([1.0, 0.0, 0.5], 700), [f"p{n % 350}" for n in range(2100)], [n % 700 for n in range(2100)]
    )
    return (
        calibration_summary(replace(few, pairs=ranked, per_prompt=True)) + "\n---\n" + calibration_summary(sample("a"))
    )


def judgements() -> str:
    rate, mean = win_rate_of_counts(12, 3, 5), Interval(0.51234, 0.4, 0.6, 20)
    bias = PositionBias(Interval(0.7, 0.6, 0.8, 40), Interval(0.25, 0.1, 0.4, 20), 20)
    verdicts = [
        Verdict("reward_model=r", "r/1", [], [], [], rate, means=(mean, Interval(0.5, -math.inf, math.inf, 1))),
        Verdict("llm=m", "m/1", [], [], [], win_rate_of_counts(0, 0, 2), bias=bias),
    ]
    distance = {"a <b>": Distance(mean, 0.01, 0.52, 0.02, None), "c": Distance(mean, math.nan, 0.52, math.nan, 0.5)}
    judged = JudgeMeasurements(
        ("a <b>", "c"), ((), ()), verdicts, {"c": Fluency(Interval(9.87, 8, 11, 5), 1.23456, 99)}, distance
    )
    return (
        judge_summary(replace(judged, notes=["c: 2 texts were cut"]))
        + "\n---\n"
        + judge_summary(replace(judged, verdicts=[], distance={}))
    )


def score_tables() -> str:
    def record(place: int, scorer: str, folder: str = "f") -> ScoreRecord:
        return ScoreRecord(f"{folder}/{place}", "key", "p", scorer, RECIPES[scorer], 20 + place / 3, 0.2, 100.0)

    records = [record(place, scorer, f"f{place % 3}") for scorer in RECIPES for place in range(10)]
    many = [record(place, "pickscore", f"f{place}") for place in range(31)]
    means = [
        folder_means(each, {(row.sample, row.prompt): f"out/{row.sample.partition('/')[0]}" for row in each})
        for each in (records, many, records[:1])
    ]
    return "\n---\n".join([scores_summary(records), scores_summary(records[-1:]), *means])


def label_counts() -> str:
    policy = LabelPolicy("abstain", "drop", 0.1, 0.75)
    pair = (Judge("shapes", "r", None), Judge("pickscore", "r", 100.0))
    panel, alone = Panel(pair, policy), Panel(pair[:1], LabelPolicy("mean", "half", 0, 0.5))
    full = PairCounts(1200, 4800, 2, 3, 1197, 5, 9, 9, 4, 7, 1172, 0.87654)
    bare = PairCounts(2, 4, 0, 0, 2, 0, 1, 0, 0, 0, 2, None)
    new = RelabelCounts(1500, 900, 1200, 30, 40, 11, 6, 2, 40, 3, 1455, 0.81)
    none = RelabelCounts(3, 0, 0, 3, 0, 0, 0, 0, 0, 0, 3, None)
    old = [relabelled_summary(new, panel, 4, 5), relabelled_summary(none, alone, 0, 0)]
    return "\n---\n".join([pairs_summary(full, panel), pairs_summary(bare, alone), *old])


def round_metrics() -> str:
    kl, won = Interval(0.1234, 0.1, 0.2, 9), win_rate_of_counts(5, 1, 3)
    first = RoundMetrics(0, Path(), [], [], [], Interval(1.5, 1, 2, 9), None, None, None, None, None)
    return rounds_summary(
        [first, replace(first, number=1, kl=kl, kl_exact=kl, against_previous=won, against_initial=won)]
    )


def demos() -> str:
    images = {
        name: VerifiedImages([], [value], [value + 0.1], [value + 0.2])
        for name, value in (("base", 0.1), ("dpo", 0.5), ("ai", 0.4), ("sft", 0.3))
    }
    won = {name: Comparison([], win_rate_of_counts(wins, 2, 3)) for name, wins in (("dpo", 9), ("ai", 8), ("sft", 3))}
    three = Demo(Path("out"), {}, images, won, 12.6)
    two = replace(three, comparisons={name: won[name] for name in ("dpo", "sft")})
    return f"{three}\n---\n{two}"


@pytest.mark.parametrize(
    "shown",
    [two_runs, parts_of_a_benchmark, calibrations, judgements, score_tables, label_counts, round_metrics, demos],
)
def test_what_is_printed(shown: Callable[[], str]) -> None:
    expected = Path(__file__).with_name("summaries") / f"{shown.__name__}.txt"
    assert shown() + "\n" == expected.read_text("utf-8")
