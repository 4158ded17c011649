"""What ``dfb judge`` does: completions of both models, verdicts, perplexities, divergences."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch

from ..catalog import names, resolve
from ..devices import find_device
from ..documents import read_object
from ..errors import UserError
from ..evaluation.judged import Judged, Verdict
from ..evaluation.judging import (
    clustered_mean,
    clustered_win_rate,
    outcomes_of_both_orders,
    outcomes_of_scores,
    position_bias,
)
from ..folders import check_outside, hold_folder
from ..generation import COMPLETIONS, complete_prompts, load_completions
from ..records import CompletionRecord, Text, TextRecord, atomic_write
from ..reports.console import judge_summary
from ..reports.pages.judge import write_judge_pages
from ..scorers.texts.checking import quote
from ..scorers.texts.loading import parse_text_spec
from ..types import PairJudge, TextScorer
from .completing import text_prompts
from .completion_scores import completion_text, prompt_name, score_records
from .model_measures import (
    check_models,
    holds_completions,
    load_model,
    measure_distance,
    measure_fluency,
    read_texts,
    sampling_of,
)
from .settings import CompletionSampling

logger = logging.getLogger(__name__)

_RESULTS, _README = "results.json", "README.md"
_FREE = ("device", "batch_size")  # what a command that goes on may change


def judge(arguments: argparse.Namespace) -> None:
    """Do what the command's flags say, and print the figures. Raises UserError for bad input."""
    folder = Path(arguments.output_dir)
    called = _names(arguments)
    check_models(arguments)
    for spec in arguments.judge:
        parse_text_spec(spec, _kind(spec))  # before minutes of sampling, not after
    texts = read_texts(arguments)
    check_outside(folder, _inputs(arguments))
    with hold_folder(folder, "dfb judge"):
        _compare(arguments, folder, called, texts)


def _compare(arguments: argparse.Namespace, folder: Path, called: tuple[str, str], texts: Sequence[TextRecord]) -> None:
    settings = _settings(arguments)
    _claim(folder, arguments, settings)
    device = _device(arguments)
    if not all(map(holds_completions, (arguments.a, arguments.b))):
        for spec in arguments.judge:
            _load_judge(spec, arguments, device)  # one that cannot be loaded is told before minutes of sampling
    sides = (_completions(arguments, 0), _completions(arguments, 1))
    if sides[0]:
        _check_aligned(called, *sides)
    verdicts = [_verdict(spec, *sides, arguments, device) for spec in arguments.judge]
    _write_judgements(folder / "judgements.jsonl", sides, verdicts)
    fluency, notes = measure_fluency(arguments, called, texts)
    judged = Judged(
        names=called,
        completions=sides,
        verdicts=verdicts,
        fluency=fluency,
        distance=measure_distance(arguments, called, sides),
        settings=settings,
        notes=notes,
    )
    with atomic_write(folder / _RESULTS) as file:
        file.write_text(json.dumps(judged.to_json(), indent=2, allow_nan=False) + "\n", "utf-8")
    write_judge_pages(judged, folder)
    print(judge_summary(judged))
    print(f"{folder}: results.json, report.html, README.md")


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


def _settings(arguments: argparse.Namespace) -> dict[str, object]:
    """All flags but those that change no figure; of two files of completions, none that says how to draw."""
    unused = {"overwrite", "output_dir"}
    if all(map(holds_completions, (arguments.a, arguments.b))):
        unused |= {*CompletionSampling.__slots__, "prompts", "seed"}
    return {name: value for name, value in vars(arguments).items() if name not in unused}


def _inputs(arguments: argparse.Namespace) -> dict[str, str | None]:
    named = {f"--{name}": getattr(arguments, name) for name in ("prompts", "texts", "reference")}
    return {"A": arguments.a, "B": arguments.b, **named}


def _claim(folder: Path, arguments: argparse.Namespace, settings: Mapping[str, object]) -> None:
    """Make sure that nothing of others and no other comparison is in the folder."""
    own = {"a", "b", "judgements.jsonl", _RESULTS, "report.html", _README}
    others = [path for path in folder.glob("[!.]*") if path.name not in own]
    others += [path for name in "ab" for path in (folder / name).glob("[!.]*") if path.name != COMPLETIONS]
    if others:
        raise UserError(f"{folder}: is there and holds {min(others).name}", "choose another output_dir")
    if arguments.overwrite:
        for name in (_RESULTS, _README, "judgements.jsonl", "report.html", f"a/{COMPLETIONS}", f"b/{COMPLETIONS}"):
            (folder / name).unlink(missing_ok=True)
    elif (folder / _RESULTS).is_file():
        remedy = "remove the file, or --overwrite to start over"
        before = read_object(folder / _RESULTS, remedy, ["settings"])["settings"]
        if not isinstance(before, dict):
            raise UserError(f"{folder / _RESULTS}: damaged: 'settings' is no object", remedy)
        now = json.loads(json.dumps(settings))
        changed = [key for key in now if key not in _FREE and before.get(key) != now[key]]
        if changed:
            key = changed[0]
            problem = f"{folder}: holds a comparison with {key} {before.get(key)!r}, not {now[key]!r}"
            raise UserError(problem, "choose another output_dir, or --overwrite to start over")


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
    writer, prompts = load_model(path, arguments), _prompts(arguments)
    for note in writer.notes(prompts):
        logger.warning("note: %s: %s", path, note)
    return complete_prompts(
        prompts,
        Path(arguments.output_dir) / "ab"[side] / COMPLETIONS,
        sampler=writer,
        seeds=[arguments.seed],
        num_samples=arguments.num_samples,
        model_hash=writer.model.model_hash(),
        settings=writer.settings,
        batch_size=arguments.batch_size,
    )


def _prompts(arguments: argparse.Namespace) -> list[Text]:
    return text_prompts(arguments.prompts, in_turns=sampling_of(arguments).wants_turns)


def _check_aligned(called: Sequence[str], a: Sequence[CompletionRecord], b: Sequence[CompletionRecord]) -> None:
    """Raise UserError unless both are of the same prompts, seeds and samples, in the same order."""
    remedy = "complete the same prompts with the same seeds and num_samples"
    if len(a) != len(b):
        raise UserError(f"{called[0]} has {len(a)} completions, {called[1]} has {len(b)}", remedy)
    for one, other in zip(a, b, strict=True):
        if one.identity != other.identity or one.prompt != other.prompt:
            problem = " where ".join(
                f"{name} has {_draw(each)}" for name, each in zip(called, (one, other), strict=True)
            )
            raise UserError(problem, remedy)


def _draw(record: CompletionRecord) -> str:
    return f"prompt {record.prompt_index} ({quote(record.prompt)}), seed {record.seed}, sample {record.sample}"


# --- verdicts --------------------------------------------------------------------------------------------------------


def _verdict(
    spec: str,
    a: Sequence[CompletionRecord],
    b: Sequence[CompletionRecord],
    arguments: argparse.Namespace,
    device: torch.device,
) -> Verdict:
    prompts = [prompt_name(record.prompt) for record in a]
    loaded = _load_judge(spec, arguments, device)
    if _kind(spec) == "text_scorer":
        scorer = cast(TextScorer, loaded)
        # Both at once, so that equal completions get the very same score.
        scores = score_records(scorer, [*a, *b])
        first, second = scores[: len(a)], scores[len(a) :]
        outcomes = outcomes_of_scores(first, second, tie_margin=arguments.tie_margin)
        means = clustered_mean(first, prompts), clustered_mean(second, prompts)
        rate = clustered_win_rate(outcomes, prompts)
        return Verdict(spec, scorer.recipe_id, first, second, outcomes, rate, means)
    judge = cast(PairJudge, loaded)
    texts = [record.prompt for record in a], [completion_text(r) for r in a], [completion_text(r) for r in b]
    a_first, b_first = judge.judge(*texts), judge.judge(texts[0], texts[2], texts[1])
    outcomes = outcomes_of_both_orders(a_first, b_first)
    rate = clustered_win_rate(outcomes, prompts)
    bias = position_bias(a_first, b_first, prompts) if len(set(prompts)) > 1 else None
    return Verdict(spec, judge.recipe_id, a_first, b_first, outcomes, rate, bias=bias)


def _load_judge(spec: str, arguments: argparse.Namespace, device: torch.device) -> TextScorer | PairJudge:
    given = parse_text_spec(spec, _kind(spec))
    loaded: TextScorer | PairJudge = resolve(_kind(spec), given.kind)(
        given.source, device, getattr(torch, arguments.dtype), **given.settings
    )
    return loaded


def _write_judgements(
    path: Path, sides: tuple[Sequence[CompletionRecord], Sequence[CompletionRecord]], verdicts: Sequence[Verdict]
) -> None:
    """One row for each prompt and sample: both completions, and what every judge says of them."""
    rows = []
    for place, (a, b) in enumerate(zip(*sides, strict=True)):
        said = {
            verdict.spec: {"a": verdict.a[place], "b": verdict.b[place], "outcome": verdict.outcomes[place]}
            for verdict in verdicts
        }
        row = {"prompt": a.prompt, "seed": a.seed, "sample": a.sample, "a": a.completion, "b": b.completion}
        rows.append(json.dumps({**row, "judges": said}, ensure_ascii=False, default=dict) + "\n")
    with atomic_write(path) as file:
        file.write_text("".join(rows), "utf-8")
