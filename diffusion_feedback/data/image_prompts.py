"""Which prompt belongs to which image of a folder: by the file that a prompt names, by id, by number, or by order."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from ..errors import UserError, plural
from ..records import PromptRecord
from .image_folders import natural_order
from .image_metadata import FILE_COLUMNS

_SAMPLE = re.compile(r"(?P<index>\d+)[-_]s?(?P<sample>\d+)")
_ID_SAMPLE = re.compile(r"(?P<id>.+)[-_]s?\d+")
_SHOWN = 3

Pairing = tuple[str, str]
"""The name of an image, and a prompt of it."""


def join_prompts(folder: Path, names: Sequence[str], prompts: Sequence[PromptRecord]) -> tuple[list[Pairing], str]:
    """The ``prompts`` of the images ``names`` of ``folder``, in the order of the names, and how they were found.

    Prompts that name files (column ``file_name``, ``image`` or ``path``) or have an ``id`` that file names begin with go
    to these. Else names of the form 00007_1 are image 1 of prompt 7, where there are several images per prompt; else one
    prompt belongs to each image, in natural order; else each subfolder has one image per prompt. Raises UserError naming
    the numbers where none of these fits, and for names whose order nobody can tell.
    """
    column = next((name for name in prompts[0].extra if name.lower() in FILE_COLUMNS), None)
    if column is not None:
        return _by_file(folder, names, prompts, column)
    column = next((name for name in prompts[0].extra if name.lower() == "id"), None)
    if column is not None and (by_id := _by_id(folder, names, prompts, column)) is not None:
        return by_id
    texts = [record.prompt for record in prompts]
    joined = _by_number(names, texts) or _by_order(folder, names, texts) or _by_subfolder(folder, names, texts)
    if joined is None:
        problem = f"{folder}: {len(names)} images, and {len(prompts)} prompts{_gap(names, len(prompts))}"
        remedy = "give one prompt for each image (`prompt` gives one to all), or images named as 00007_1.png"
        raise UserError(problem, f"{remedy}; or a table with the columns file_name and prompt")
    pairs, how = joined
    return pairs, f"{folder}: prompts joined {how}:\n{_first(pairs)}"


def _first(pairs: Sequence[Pairing]) -> str:
    """The first pairings and the last, for the eye."""
    shown = [*pairs[:_SHOWN], *pairs[_SHOWN:][-1:]]
    width = max(len(name) for name, _ in shown)
    lines = [f"  {name:<{width}} -> {prompt[:80]!r}" for name, prompt in shown]
    return "\n".join(lines if len(pairs) <= _SHOWN + 1 else [*lines[:-1], "  ...", lines[-1]])


def _by_file(
    folder: Path, names: Sequence[str], prompts: Sequence[PromptRecord], column: str
) -> tuple[list[Pairing], str]:
    texts: dict[str, list[str]] = defaultdict(list)
    for record in prompts:
        texts[PurePath(str(record.extra[column])).as_posix()].append(record.prompt)
    # A table made elsewhere may name the files without their folders.
    by_base: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_base[PurePath(name).name].append(name)
    known = set(names)
    by_name: dict[str, list[str]] = {}
    unknown = []
    for given, own in texts.items():
        likely = [given] if given in known else by_base.get(PurePath(given).name, [])
        if not likely:
            unknown.append(given)
        elif len(likely) > 1:
            raise UserError(f"{folder}: several files are named {PurePath(given).name}", "name the folder of each too")
        else:
            by_name.setdefault(likely[0], []).extend(own)
    if absent := [name for name in names if name not in by_name]:
        problem = (
            f"{folder}: no prompt names {absent[0]} in its column {column!r} ({len(absent)} of {len(names)} images)"
        )
        raise UserError(problem, "name every image once, or take the others out of the folder")
    pairs = [(name, prompt) for name in names for prompt in by_name[name]]
    left = (
        f"; {plural(len(unknown), 'prompt is', 'prompts are')} of no image here, the first: {unknown[0]}"
        if unknown
        else ""
    )
    return pairs, f"{folder}: prompts joined by the file names in column {column!r}{left}"


def _by_id(
    folder: Path, names: Sequence[str], prompts: Sequence[PromptRecord], column: str
) -> tuple[list[Pairing], str] | None:
    """``<id>.png`` or ``<id>_0.png``, as in ImageReward's benchmark; None where no name begins with an id."""
    texts = {str(record.extra[column]): record.prompt for record in prompts}
    if len(texts) < len(prompts):
        raise UserError(f"{folder}: two prompts have the same {column!r}", "give every prompt an id of its own")
    ids = [_id_of(PurePath(name).stem, texts) for name in names]
    if not any(ids):
        return None
    if absent := [name for name, own in zip(names, ids, strict=True) if own is None]:
        problem = f"{folder}: {absent[0]} begins with the {column} of no prompt ({len(absent)} of {len(names)} images)"
        raise UserError(problem, "name every image <id>_<sample>, or leave the ids out of the prompts")
    pairs = [(name, texts[str(own)]) for name, own in zip(names, ids, strict=True)]
    there = set(ids)
    left = [own for own in texts if own not in there]
    rest = f"; {plural(len(left), 'prompt has', 'prompts have')} no image, the first: {left[0]}" if left else ""
    return pairs, f"{folder}: prompts joined by their {column}{rest}:\n{_first(pairs)}"


def _id_of(stem: str, texts: Mapping[str, str]) -> str | None:
    if stem in texts:
        return stem
    match = _ID_SAMPLE.fullmatch(stem)
    return match["id"] if match is not None and match["id"] in texts else None


def _by_number(names: Sequence[str], texts: Sequence[str]) -> tuple[list[Pairing], str] | None:
    """Several images per prompt: 00007_1, 00007-s1; numbers from 0, or from 1 where 0 is not there."""
    matches = [_SAMPLE.fullmatch(PurePath(name).stem) for name in names]
    numbers = [int(match["index"]) for match in matches if match is not None]
    if len(numbers) < len(names) or len(names) == len(texts):
        return None
    start = min(numbers)
    if start > 1 or set(numbers) != set(range(start, start + len(texts))):
        return None
    pairs = [(name, texts[number - start]) for name, number in zip(names, numbers, strict=True)]
    return pairs, f"by the first number of each name, counted from {start}"


def _by_order(folder: Path, names: Sequence[str], texts: Sequence[str]) -> tuple[list[Pairing], str] | None:
    if len(names) != len(texts):
        return None
    folded = natural_order(name.casefold() for name in names)
    if (place := _first_difference([name.casefold() for name in names], folded)) is not None:
        problem = (
            f"{folder}: the order of names is not clear: {names[place]} stands elsewhere where A and a are the same"
        )
        raise UserError(
            problem, "write all names in small letters, or give a table with the columns file_name and prompt"
        )
    _check_samples(folder, names, texts)
    plain = [
        re.sub(r"\d+", lambda match: str(int(match[0])), PurePath(name).with_suffix("").as_posix()) for name in names
    ]
    for place in range(len(names) - 1):
        if plain[place] == plain[place + 1] and PurePath(names[place]).stem != PurePath(names[place + 1]).stem:
            problem = f"{folder}: {names[place]} and {names[place + 1]} have the same number: which comes first?"
            raise UserError(problem, "keep one of the two, or rename it")
    how = "in the order of the names"
    if (place := _first_difference(names, sorted(names))) is not None:
        how += f", numbers counted: {names[place]} stands before {sorted(names)[place]}, not as in a list of texts"
    return list(zip(names, texts, strict=True)), how


def _check_samples(folder: Path, names: Sequence[str], texts: Sequence[str]) -> None:
    """Raise UserError where names that look like image 1 of prompt 7 would get prompts of two images apart.

    As when images were made for the first prompts of a file only: their number may be that of all prompts by chance.
    """
    matches = [_SAMPLE.fullmatch(PurePath(name).stem) for name in names]
    numbered = [(int(match["index"]), int(match["sample"])) for match in matches if match is not None]
    numbers, samples = [number for number, _ in numbered], sorted({sample for _, sample in numbered})
    distinct = sorted(set(numbers))
    is_grid = sorted(numbered) == [(number, sample) for number in distinct for sample in samples]
    if len(numbered) < len(names) or not is_grid or not 1 < len(distinct) < len(names):
        return
    if any(each != list(range(each[0], each[0] + len(each))) or each[0] > 1 for each in (distinct, samples)):
        return
    of_number = dict(zip(numbers, texts, strict=True))
    place = next((i for i, number in enumerate(numbers) if of_number[number] != texts[i]), None)
    if place is not None:
        problem = (
            f"{folder}: {names[place]} looks like an image of prompt {numbers[place]}, and there are as many prompts"
        )
        remedy = "give the prompts of these images only, or a table with the columns file_name and prompt"
        raise UserError(f"{problem} ({len(texts)}) as images", remedy)


def _by_subfolder(folder: Path, names: Sequence[str], texts: Sequence[str]) -> tuple[list[Pairing], str] | None:
    """Folders of the same prompts, as of several models."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        first, slash, rest = name.partition("/")
        groups[first if slash else ""].append(rest)
    if "" in groups or len(groups) < 2:
        return None
    if len(groups) == len(texts) and all(len(own) == len(texts) for own in groups.values()):
        problem = f"{folder}: {len(texts)} folders of {len(texts)} images each, and as many prompts"
        remedy = "is a folder one prompt, or each holds one image per prompt? Give a table with the columns file_name and prompt"
        raise UserError(f"{problem}: what a prompt belongs to is not clear", remedy)
    pairs: list[Pairing] = []
    how = ""
    for first, own in groups.items():
        joined = _by_number(own, texts) or _by_order(folder / first, own, texts)
        if joined is None:
            return None
        pairs += [(f"{first}/{name}", prompt) for name, prompt in joined[0]]
        how = how or joined[1]
    return pairs, f"in each of {len(groups)} folders {how}"


def _first_difference(first: Sequence[str], second: Sequence[str]) -> int | None:
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b), None)


def _gap(names: Sequence[str], number: int) -> str:
    """Which numbers are missing, where the names are numbers and fewer than the prompts."""
    stems = [PurePath(name).stem for name in names]
    if not all(stem.isdecimal() for stem in stems) or len(stems) >= number:
        return ""
    there = {int(stem) for stem in stems}
    start = min(min(there), 1)
    absent = [n for n in range(start, start + number) if n not in there]
    return f"; no image has the number {absent[0]}" if absent else ""
