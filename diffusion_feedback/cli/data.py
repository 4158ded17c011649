"""``dfb data``: check preference pairs of any form, and convert them to one Pick-a-Pic parquet file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

CHECK_EPILOG = """examples:
  dfb data check pairs.parquet
  dfb data check "pickapic/train-*.parquet"
  dfb data check my_images --split validation
  dfb data check data-is-better-together/open-image-preferences-v1-binarized

PATH is a parquet file, a glob, a folder (parquet files; images with metadata.jsonl or metadata.csv; or chosen/ and
rejected/ with the same file names), or a hub id.
"""

CONVERT_EPILOG = """examples:
  dfb data convert my_images pairs.parquet
  dfb data convert "pickapic/train-*.parquet" clean.parquet --on_bad_row skip
  dfb data convert data-is-better-together/open-image-preferences-v1-binarized pairs.parquet --split train

The output holds the images themselves and has Pick-a-Pic's columns: caption, jpg_0, jpg_1, label_0, label_1, ...
Ties are kept, as label_0 0.5.
"""


def build_parser() -> argparse.ArgumentParser:
    """All flags of both commands."""
    parser = argparse.ArgumentParser(prog="dfb data", description="Check and convert preference pairs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{check,convert}")
    layout = argparse.RawDescriptionHelpFormatter
    says = "Say what a data set holds and what is wrong with it."
    check = commands.add_parser("check", description=says, help=says, epilog=CHECK_EPILOG, formatter_class=layout)
    says = "Write pairs of any form as one parquet file with Pick-a-Pic's columns."
    convert = commands.add_parser("convert", description=says, help=says, epilog=CONVERT_EPILOG, formatter_class=layout)
    for command in (check, convert):
        command.add_argument("path", metavar="PATH", help="file, glob, folder or hub id")
        command.add_argument("--split", default="train", help="split, where the source has splits (default train)")
        command.add_argument("--revision", help="branch, tag or commit on the hub")
        command.add_argument("--streaming", action="store_true", help="read hub data without downloading it first")
    convert.add_argument("output", metavar="OUTPUT.parquet", help="file to write")
    convert.add_argument(
        "--on_bad_row",
        "--on-bad-row",
        choices=["error", "skip"],
        default="error",
        help="stop at the first bad row, or leave bad rows out and list them (default error)",
    )
    convert.add_argument("--overwrite", action="store_true", help="replace the output if it is there already")
    return parser


def run(argv: Sequence[str]) -> None:
    """Check or convert as ``argv`` says. Raises UserError for bad input, and for data that is not ready to train."""
    arguments = build_parser().parse_args(argv)
    if arguments.command == "check":
        _check(arguments)
    else:
        _convert(arguments)


def _check(arguments: argparse.Namespace) -> None:
    from ..data.check import check_pairs

    report = check_pairs(
        arguments.path, split=arguments.split, revision=arguments.revision, streaming=arguments.streaming
    )
    print(report.to_text())
    if not report.is_ready:
        raise SystemExit(2)  # everything has been said, so no message on top


def _convert(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..data.pickapic import write_pickapic
    from ..data.readers import open_pairs
    from ..errors import UserError

    output = Path(arguments.output)
    if output.suffix != ".parquet":
        raise UserError(f"{output}: the output is a parquet file", "give a name that ends in .parquet")
    if output.exists() and not arguments.overwrite:
        raise UserError(f"{output}: exists already", "give another name, or --overwrite to replace it")
    reader = open_pairs(
        arguments.path,
        split=arguments.split,
        revision=arguments.revision,
        streaming=arguments.streaming,
        on_bad_row=arguments.on_bad_row,
        ties="soft",
    )
    number = write_pickapic(tqdm(reader, desc="convert", total=reader.num_rows, unit="pair"), output)
    for _, reason in reader.skipped:
        print(f"left out: {reason}")
    print(f"{output}: {number:,} pairs from {reader.format} ({reader.counts})")
