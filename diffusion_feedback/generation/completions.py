"""Prompts and a language model to a file of completions: resumable, and whole whenever it is killed.

``completions.jsonl`` holds one ``CompletionRecord`` a line, by prompt, seed and sample.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError
from ..folders import make_folder, sweep_beside
from ..progress import progress
from ..records import CompletionRecord, Text, content_hash
from .rows import append_rows, check_origin, read_records, write_rows

COMPLETIONS = "completions.jsonl"


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model drew: the ``text`` of ``token_ids`` without special tokens; ``is_finished`` where it ended by itself."""

    text: str
    token_ids: tuple[int, ...]
    is_finished: bool


CompletionSampler = Callable[[Sequence[Text], Sequence[int]], Sequence[Completion]]
"""(prompts, seeds) of equal length to one completion each, which depends on its own prompt and seed alone."""


def draw_seed(prompt: Text, seed: int, sample: int) -> int:
    """The seed of one draw: a function of the prompt's content, the run's ``seed`` and the number of the ``sample``."""
    content = json.dumps(prompt, ensure_ascii=False, sort_keys=True)
    return int(content_hash(f"{content}/{seed}/{sample}")[:15], 16)


def complete_prompts(
    prompts: Sequence[Text],
    path: Path,
    *,
    sampler: CompletionSampler,
    seeds: Sequence[int] = (0,),
    num_samples: int = 1,
    model_hash: str,
    settings: Mapping[str, object],
    batch_size: int,
    overwrite: bool = False,
) -> list[CompletionRecord]:
    """Draw ``num_samples`` completions of each of ``prompts`` under each of ``seeds`` into ``path``; return them in order.

    Each draw is a function of the prompt's content, seed and sample number, so it depends neither on its batch nor on
    what was interrupted, and two models draw from the same numbers. Whole batches that are there are kept: the same call
    goes on after a kill and ends in the same bytes. Equal prompts share their draws. ``settings`` must be JSON. Raises
    UserError where ``path`` holds completions of another run, unless ``overwrite``.
    """
    settings = json.loads(json.dumps(dict(settings)))  # as they come back from the disk: tuples are lists
    wanted = [
        CompletionRecord(index, sample, seed, prompt, "", (), False, settings, model_hash)
        for index, prompt in enumerate(prompts)
        for seed in sorted(seeds)
        for sample in range(num_samples)
    ]
    make_folder(path.parent)
    if overwrite:
        path.unlink(missing_ok=True)
    completions = _resume(path, wanted, batch_size)
    with progress(total=len(wanted), initial=len(completions), unit="text", desc="complete", delay=1.0) as bar:
        # Batches are cut from the whole request, so that an interrupted run hands the sampler the same ones.
        for start in range(len(completions), len(wanted), batch_size):
            batch = wanted[start : start + batch_size]
            own_seeds = [draw_seed(record.prompt, record.seed, record.sample) for record in batch]
            drawn = sampler([record.prompt for record in batch], own_seeds)
            records = [
                replace(record, completion=one.text, token_ids=one.token_ids, is_finished=one.is_finished)
                for record, one in zip(batch, drawn, strict=True)
            ]
            append_rows(path, records)
            completions += records
            bar.update(len(records))
    sweep_beside(path)
    return completions


def load_completions(path: Path | str) -> list[CompletionRecord]:
    """The completions of a file, or of the ``completions.jsonl`` of a folder, in its order.

    Raises UserError for a file that is not there, is empty, or has a line that is no such record.
    """
    path = Path(path)
    path = path / COMPLETIONS if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no such file", "give completions that a model has drawn")
    records, is_cut = _read(path)
    if is_cut or not records:
        what = "its last line was cut off" if is_cut else "holds no completions"
        raise UserError(f"{path}: {what}", "run the generation again")
    return records


def _read(path: Path) -> tuple[list[CompletionRecord], bool]:
    return read_records(
        path, CompletionRecord, "completion", "correct or remove the line, or draw the completions again"
    )


def _resume(path: Path, wanted: Sequence[CompletionRecord], batch_size: int) -> list[CompletionRecord]:
    """The completions of whole batches that are there; the file is cut down to these."""
    if not path.exists():
        return []
    records, is_cut = _read(path)
    remedy = "use another folder, or `overwrite` to replace its completions"
    for record, own in zip(records, wanted, strict=False):
        check_origin(path, "completions", record, own, remedy)
        if record.identity != own.identity:
            place = "prompt {}, seed {}, sample {}"
            problem = f"{path}: holds {place.format(*record.identity)} where this run has {place.format(*own.identity)}"
            raise UserError(problem, remedy)
        if record.prompt != own.prompt:
            problem = f"{path}: prompt {own.prompt_index} was {record.prompt!r}, this run has {own.prompt!r}"
            raise UserError(problem, remedy)
    if len(records) > len(wanted):
        problem = f"{path}: holds {len(records)} completions, this run requests {len(wanted)}"
        raise UserError(problem, remedy)
    # The rest of a batch alone would be another batch, in which numbers round differently.
    whole = len(records) if len(records) == len(wanted) else len(records) // batch_size * batch_size
    if is_cut or whole < len(records):
        write_rows(path, records[:whole])
    return records[:whole]
