"""The flags of commands that judge images: which images, with which prompts, and by which scorers."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..catalog import names
from ..workflows.settings import ImageSettings, ScoringSettings
from .settings import add_flags

SCORERS_HELP = f"""scorers:
  {", ".join(names("scorer"))}; written [ALIAS:]NAME[=WEIGHTS][,key=value,...]
  WEIGHTS is a folder, a file or a hub id, the published weights when not given; examples:
    pickscore                            PickScore v1 from the hub
    pickscore=assets/shapes-scorer       any CLIPModel folder in PickScore's form
    hpsv2=HPS_v2_compressed.pt,version=v2.0
    clip_score=FOLDER,form=hessel        forms of clip_score: percent, hessel, diffusion_dpo
    mine:pickscore=runs/scorer           named "mine", beside another pickscore
    file.py:brightness                   your own f(images, prompts) or f(image, prompt); module:attribute too
  Images are judged upright (EXIF), transparency laid on white, 16-bit grey scaled to 8 bits, palettes made RGB before they are
  scaled; prompts beyond a scorer's token limit are cut, and reported. docs/scorers.md says what each scorer computes.
"""

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
    parser.add_argument("images", metavar=metavar, nargs="+", help=about)
    about = "file of the prompts of plain folders, see below (txt, json, jsonl, csv, tsv or parquet)"
    parser.add_argument("--prompts", type=Path, help=about)
    helps = {
        "prompt": "one prompt for all images",
        "split": "split, where the source has splits",
        "revision": "branch, tag or commit on the hub",
    }
    add_flags(parser, ImageSettings, helps, prompt={"metavar": "TEXT"})


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
