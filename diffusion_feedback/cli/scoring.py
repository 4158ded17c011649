"""The flags of commands that judge images: which images, with which prompts, and by which scorers."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..workflows.settings import ImageSettings, ScoringSettings
from .settings import NAMES, add_flags


def add_image_flags(parser: argparse.ArgumentParser, *, metavar: str, about: str) -> None:
    """The images, and the flags that say which prompts are theirs."""
    parser.add_argument("images", metavar=metavar, nargs="+", help=about)
    about = "file of the prompts of plain folders, see below (txt, json, jsonl, csv, tsv or parquet)"
    parser.add_argument("--prompts", type=Path, help=about)
    helps = {
        "prompt": "one prompt for all images",
        "split": "split, where the source has splits",
        "revision": "branch, tag or commit on the hub",
        "columns": NAMES,
    }
    add_flags(parser, ImageSettings, helps, prompt={"metavar": "TEXT"}, columns={"metavar": "OURS=THEIRS,..."})


def in_natural_order(images: list[str]) -> list[str]:
    """Files that are named one by one, in the order of counting: a shell's glob gives the order of letters."""
    from ..data.image_folders import is_image_name, natural_order

    is_list = all(is_image_name(image) and os.path.isfile(image) for image in images)
    return natural_order(Path(image).as_posix() for image in images) if is_list else images


def add_scoring_flags(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The flags that say by which scorers, where and how fast images are judged."""
    add = parser.add_argument
    add("--scorer", dest="scorers", nargs="+", action="extend", required=required, metavar="SPEC", help="see below")
    helps = {
        "device": "cuda, cpu, ...; the best one there is by default",
        "dtype": "precision of the towers",
        "batch_size": "images at once",
        "workers": "threads that decode images; each holds one, so fewer take less memory where they are huge",
        "cache_dir": "where scores are kept by content and recipe",
        "on_bad_image": "stop at an image that cannot be decoded, or leave it out and list it",
    }
    add_flags(parser, ScoringSettings, helps)
