"""What ``dfb judge`` does: completions of both models, verdicts, perplexities, divergences."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..catalog import names
from ..errors import UserError
from ..evaluation.judging import (
    clustered_mean,
    clustered_win_rate,
    outcomes_of_both_orders,
    outcomes_of_scores,
    position_bias,
)
from ..generation import COMPLETIONS, complete_prompts, load_completions
from ..records import CompletionRecord, Text, atomic_write
from ..scorers.texts.loading import load_text_scorer, parse_text_spec
from ..types import PairJudge
from .completing import read_text_prompts
from .devices import find_device
from .judge_figures import Judged, Verdict
from .judge_measures import (
    check_models,
    holds_completions,
    load_model,
    measure_distance,
    measure_fluency,
)
from .judge_page import write_page
from .text_judging import completion_of, prompt_name, score_records


def judge(arguments: argparse.Namespace) -> None:
    """Do what the command's flags say, and print the figures. Raises UserError for bad input."""
    folder = Path(arguments.output_dir)
    called = _names(arguments)
    check_models(arguments)
    for spec in arguments.judge:
        parse_text_spec(spec, _kind(spec))  # before minutes of sampling, not after
    _claim(folder, arguments.overwrite)
    sides = (_completions(arguments, 0), _completions(arguments, 1))
    if sides[0]:
        _check_aligned(called, *sides)
    device = _device(arguments)
    verdicts = [_verdict(spec, *sides, arguments, device) for spec in arguments.judge]
    fluency, notes = measure_fluency(arguments, called)
    found = Judged(
        names=called,
        completions=sides,
        verdicts=verdicts,
        fluency=fluency,
        distance=measure_distance(arguments, called, sides),
        settings={name: value for name, value in vars(arguments).items() if value not in (None, [], False)},
        notes=notes,
    )
    _write_judgements(folder / "judgements.jsonl", found)
    with atomic_write(folder / "results.json") as file:
        file.write_text(json.dumps(results(found), indent=2) + "\n")
    write_page(found, folder / "report.html")
    print(summary(found))
    print(f"{folder}: results.json, report.html")


def results(found: Judged) -> dict[str, Any]:
    """What stands in results.json."""
    judges = [
        {
            "judge": verdict.spec,
            "recipe_id": verdict.recipe_id,
            "win_rate": dataclasses.asdict(verdict.win_rate),
            "means": [dataclasses.asdict(mean) for mean in verdict.means] if verdict.means else None,
            "position_bias": dataclasses.asdict(verdict.bias) if verdict.bias else None,
        }
        for verdict in found.verdicts
    ]
    own = {
        "fluency": {name: dataclasses.asdict(value) for name, value in found.fluency.items()},
        "divergence": {name: dataclasses.asdict(value) for name, value in found.distance.items()},
    }
    return {"a": found.names[0], "b": found.names[1], "judges": judges, **own, "settings": dict(found.settings)}


def summary(found: Judged) -> str:
    """The figures in plain text."""
    a, b = found.names
    lines = list(found.notes)
    for verdict in found.verdicts:
        rate = verdict.win_rate
        interval = f"95 % interval {rate.low:.3f} to {rate.high:.3f}"
        lines.append(f"{a} against {b} by {verdict.spec}: win rate {rate.win_rate:.3f} ({interval})")
        lines.append(f"  {rate.wins} won, {rate.ties} ties, {rate.losses} lost, p = {rate.p_value:.3g}")
        if verdict.means:
            lines.append(
                "  mean scores " + " and ".join(f"{m.value:.4f} ({m.low:.4f} to {m.high:.4f})" for m in verdict.means)
            )
        if verdict.bias:
            bias = verdict.bias
            lines.append(
                f"  prefers the one shown first in {bias.first_share.value:.1%} of its answers,"
                f" contradicts itself on {bias.disagreement.value:.1%} of the pairs (ties)"
            )
    for name, fluency in found.fluency.items():
        ppl = fluency.perplexity
        lines.append(
            f"{name}: perplexity {ppl.value:.3f} ({ppl.low:.3f} to {ppl.high:.3f}) a token,"
            f" {fluency.bits_per_byte:.4f} bits a byte"
        )
    for name, distance in found.distance.items():
        exact = f", exactly {distance.exact:.4f}" if distance.exact is not None else ""
        lines.append(
            f"{name}: KL to the reference {distance.kl.value:.4f} +- {distance.kl_error:.4f} nats{exact}"
            f" (by log-ratios {distance.log_ratio:.4f} +- {distance.log_ratio_error:.4f})"
        )
    return "\n".join(lines)


def _names(arguments: argparse.Namespace) -> tuple[str, str]:
    if arguments.names:
        first, second = arguments.names
    else:
        paths = [Path(arguments.a), Path(arguments.b)]
        paths = [path.parent if path.name == COMPLETIONS else path for path in paths]
        first, second = (path.name or str(path) for path in paths)
        if first == second:
            first, second = (str(path) for path in paths)
    if first == second:
        raise UserError(f"A and B would both be called {first!r}", "give two different ones, or --names")
    return first, second


def _kind(spec: str) -> str:
    return "pair_judge" if spec.partition("=")[0] in names("pair_judge") else "text_scorer"


def _device(arguments: argparse.Namespace) -> torch.device:
    if arguments.device:
        return find_device(arguments.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _claim(folder: Path, overwrite: bool) -> None:
    """Make sure that nothing of others is in the folder."""
    own = {"a", "b", "judgements.jsonl", "results.json", "report.html"}
    if not folder.exists():
        return
    others = (
        sorted(path.name for path in folder.glob("[!.]*") if path.name not in own) if folder.is_dir() else ["a file"]
    )
    if others:
        raise UserError(f"{folder}: is there and holds {others[0]}", "choose another output_dir")
    if overwrite:
        for name in ("a", "b"):
            shutil.rmtree(folder / name, ignore_errors=True)


# --- completions -----------------------------------------------------------------------------------------------------


def _completions(arguments: argparse.Namespace, side: int) -> list[CompletionRecord]:
    """The completions of A (0) or B (1): read, or drawn; none where nothing needs them."""
    path = (arguments.a, arguments.b)[side]
    if holds_completions(path):
        return load_completions(path)
    if not (arguments.judge or arguments.reference):
        return []
    if not arguments.prompts:
        raise UserError("--prompts: is not given", f"{path} is a model, and needs prompts to complete")
    writer = load_model(path, arguments)
    return complete_prompts(
        _prompts(arguments),
        Path(arguments.output_dir) / "ab"[side] / COMPLETIONS,
        sampler=writer,
        seeds=[arguments.seed],
        num_samples=arguments.num_samples,
        model_hash=writer.model.model_hash(),
        settings=writer.settings,
        batch_size=arguments.batch_size,
    )


def _prompts(arguments: argparse.Namespace) -> list[Text]:
    return read_text_prompts(arguments.prompts)


def _check_aligned(called: Sequence[str], a: Sequence[CompletionRecord], b: Sequence[CompletionRecord]) -> None:
    """Raise UserError unless both are of the same prompts, seeds and samples, in the same order."""
    remedy = "complete the same prompts with the same seeds and num_samples"
    if len(a) != len(b):
        raise UserError(f"{called[0]} has {len(a)} completions, {called[1]} has {len(b)}", remedy)
    for one, other in zip(a, b, strict=True):
        if one.identity != other.identity or one.prompt != other.prompt:
            place = f"prompt {one.prompt_index}, seed {one.seed}, sample {one.sample}"
            problem = f"{place}: {called[0]} has {one.prompt!r} there, {called[1]} has {other.prompt!r}"
            raise UserError(problem, remedy)


# --- verdicts --------------------------------------------------------------------------------------------------------


def _verdict(
    spec: str,
    a: Sequence[CompletionRecord],
    b: Sequence[CompletionRecord],
    arguments: argparse.Namespace,
    device: torch.device,
) -> Verdict:
    prompts = [prompt_name(record.prompt) for record in a]
    kind, dtype = _kind(spec), getattr(torch, arguments.dtype)
    if kind == "text_scorer":
        scorer = load_text_scorer(spec, device, dtype)
        # Both at once, so that equal completions get the very same score.
        scores = score_records(scorer, [*a, *b])
        first, second = scores[: len(a)], scores[len(a) :]
        outcomes = outcomes_of_scores(first, second, tie_margin=arguments.tie_margin)
        means = clustered_mean(first, prompts), clustered_mean(second, prompts)
        rate = clustered_win_rate(outcomes, prompts)
        return Verdict(spec, scorer.recipe_id, first, second, outcomes, rate, means)
    judge = _load_pair_judge(spec, device, dtype)
    texts = [record.prompt for record in a], [completion_of(r) for r in a], [completion_of(r) for r in b]
    a_first, b_first = judge.judge(*texts), judge.judge(texts[0], texts[2], texts[1])
    outcomes = outcomes_of_both_orders(a_first, b_first)
    rate = clustered_win_rate(outcomes, prompts)
    bias = position_bias(a_first, b_first, prompts) if len(set(prompts)) > 1 else None
    return Verdict(spec, judge.recipe_id, a_first, b_first, outcomes, rate, bias=bias)


def _load_pair_judge(spec: str, device: torch.device, dtype: torch.dtype) -> PairJudge:
    from ..catalog import resolve

    given = parse_text_spec(spec, "pair_judge")
    judge: PairJudge = resolve("pair_judge", given.kind)(given.source, device, dtype, **given.settings)
    return judge


def _write_judgements(path: Path, found: Judged) -> None:
    """One row for each prompt and sample: both completions, and what every judge says of them."""
    rows = []
    for place, (a, b) in enumerate(zip(*found.completions, strict=True)):
        said = {
            verdict.spec: {"a": verdict.a[place], "b": verdict.b[place], "outcome": verdict.outcomes[place]}
            for verdict in found.verdicts
        }
        row = {"prompt": a.prompt, "seed": a.seed, "sample": a.sample, "a": a.completion, "b": b.completion}
        rows.append(json.dumps({**row, "judges": said}, ensure_ascii=False, default=dict) + "\n")
    with atomic_write(path) as file:
        file.write_text("".join(rows), "utf-8")
