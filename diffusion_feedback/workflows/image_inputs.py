"""Which images a command is given, with which prompts: the flags that say so, and what is told about what was found."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data.image_sets import ImageSet
    from ..records import ScoreRecord

_MOST_FOLDERS = 30  # a table of more says nothing on a screen

IMAGES_HELP = """images:
  a folder that dfb generate wrote, or any with metadata.jsonl, .csv or .parquet (columns file_name and prompt; an image
  may stand in several rows, or have a list of prompts); a folder of such folders; a plain folder with a .txt beside each
  image, or with --prompts or --prompt; GenEval's folders (00000/metadata.jsonl, 00000/samples/), T2I-CompBench's
  (PROMPT_000000.png); single images; globs; preference pairs. PNG, JPEG, WebP, AVIF, GIF, BMP and TIFF, subfolders too.
  --prompts joins by the column file_name or id where the file has one (ImageReward's benchmark: ID_0.png); names as
  00007_1.png by their first number, where there are several images a prompt; else one prompt an image, names in natural
  order (2.png before 10.png). The first pairings are printed: look at them.
"""


def add_image_flags(parser: argparse.ArgumentParser, *, metavar: str, about: str) -> None:
    """The images, and the flags that say which prompts are theirs."""
    add = parser.add_argument
    add("images", metavar=metavar, nargs="+", help=about)
    add("--prompts", help="file of the prompts of plain folders, see below (txt, json, jsonl, csv, tsv or parquet)")
    add("--prompt", metavar="TEXT", help="one prompt for all images")
    add("--split", default="train", help="split, where the source has splits (default train)")
    add("--revision", help="branch, tag or commit on the hub")


def read_image_set(arguments: argparse.Namespace) -> ImageSet:
    """The images that ``arguments`` name; the main process tells how they were found. Raises UserError for bad input."""
    from ..data.image_sets import open_image_set
    from ..data.texts import says_texts
    from ..errors import UserError
    from ..prompts import read_prompts
    from .scoring import process_state

    if arguments.prompts and arguments.prompt is not None:
        raise UserError("--prompts and --prompt: both are given", "give one of the two")
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise UserError("--prompt: is empty", "give a prompt of at least one character")
    for path in arguments.images:
        if says_texts(path):
            remedy = "give images; completions are compared by dfb judge, and scored and paired by dfb rounds"
            raise UserError(f"{path}: holds texts, and this command is for images", remedy)
    prompts = read_prompts(arguments.prompts) if arguments.prompts else None
    found = open_image_set(
        arguments.images,
        prompts=prompts,
        prompt=arguments.prompt,
        split=arguments.split,
        revision=arguments.revision,
    )
    if process_state().is_main_process:
        for note in found.notes:
            print(f"note: {note}")
    return found


def folder_means(records: Sequence[ScoreRecord], found: ImageSet) -> str:
    """A table of the mean of each folder under each scorer; empty where there is one folder, or too many."""
    from statistics import fmean

    from ..data.image_folders import natural_order

    group_of = {(item.name, item.prompt): group for item, group in zip(found.items, found.groups, strict=True)}
    values: dict[str, dict[str, list[float]]] = {}
    for record in records:
        group = group_of[record.sample, record.prompt]
        values.setdefault(group, {}).setdefault(record.scorer, []).append(record.score)
    if len(values) < 2:
        return ""
    if len(values) > _MOST_FOLDERS:
        return f"note: {len(values)} folders, too many for a table of their means"
    scorers = list(dict.fromkeys(record.scorer for record in records))
    width = max(6, *(len(group) for group in values))
    lines = [f"{'folder':<{width}} {'images':>7} " + " ".join(f"{name:>14}" for name in scorers)]
    for group in natural_order(values):
        number = max(map(len, values[group].values()))
        means = " ".join(f"{fmean(values[group][name]):>14.4f}" for name in scorers)
        lines.append(f"{PurePath(group)!s:<{width}} {number:>7} {means}")
    return "\n".join(lines)
