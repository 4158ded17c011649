"""``dfb data``: check preference pairs or texts of any form, and convert them to one file of the field's form."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..folders import hold_file
from .flags import Flags

CHECK_EPILOG = """examples:
  dfb data check pairs.parquet
  dfb data check "pickapic/train-*.parquet"
  dfb data check my_images --split validation
  dfb data check data-is-better-together/open-image-preferences-v1-binarized
  dfb data check answers.jsonl
  dfb data check HuggingFaceH4/ultrafeedback_binarized --split train_prefs
  dfb data check answers.jsonl --tokenizer my_model --max_length 1024

PATH is a parquet file, a glob, a folder (parquet files; images with metadata.jsonl, .csv or .parquet; chosen/ and
rejected/ with the same file names; or what save_to_disk wrote), rankings in .json as HPDv2, HPDv3 and ImageReward have
them, or a hub id. Texts stand in parquet, JSON Lines, JSON, CSV or TSV files or a folder of save_to_disk, known by their
columns: prompt, chosen, rejected; chosen, rejected; prompt, completion, label; prompt, completion; messages;
conversations; text; question (instruction, query, input) with chosen and rejected or with an answer (output, response);
and those of UltraFeedback, SHP, Anthropic HH, OpenRLHF and LLaMA-Factory. system, history, tools and
chat_template_kwargs may stand beside them. Columns that are not read are listed, those that would change a prompt refused.
"""

CONVERT_EPILOG = """examples:
  dfb data convert my_images pairs.parquet
  dfb data convert "pickapic/train-*.parquet" clean.parquet --on_bad_row skip
  dfb data convert data-is-better-together/open-image-preferences-v1-binarized pairs.parquet --split train
  dfb data convert hh-rlhf/train.jsonl.gz pairs.jsonl --on_bad_row skip
  dfb data convert chats.jsonl answers.jsonl --each_answer

Pairs of images: the output holds the images themselves and has Pick-a-Pic's columns: caption, jpg_0, jpg_1, label_0,
label_1, ... Ties are kept, as label_0 0.5. Texts: the output, .jsonl or .parquet, has TRL's columns, with the prompt
told apart: prompt, chosen, rejected; prompt, completion, label; prompt, completion; messages; or text.
"""


def build_parser() -> argparse.ArgumentParser:
    """All flags of both commands."""
    parser = Flags(prog="dfb data", description="Check and convert preference pairs and texts.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{check,convert}")
    says = "Say what a data set holds and what is wrong with it."
    check = commands.add_parser("check", description=says, help=says, epilog=CHECK_EPILOG)
    says = "Write pairs of any form as one parquet file with Pick-a-Pic's columns, texts as one file with TRL's."
    convert = commands.add_parser("convert", description=says, help=says, epilog=CONVERT_EPILOG)
    for command in (check, convert):
        command.add_argument("path", metavar="PATH", help="file, glob, folder or hub id")
        command.add_argument("--split", default="train", help="split, where the source has splits (default train)")
        command.add_argument("--revision", help="branch, tag or commit on the hub")
        command.add_argument("--streaming", action="store_true", help="read hub data without downloading it first")
    check.add_argument(
        "--tokenizer", metavar="FOLDER", help="texts: count in this tokenizer's tokens, and try its template"
    )
    check.add_argument(
        "--max_length", "--max-length", type=int, help="texts: longest example in tokens (default: its own)"
    )
    check.add_argument(
        "--max_completion_length", "--max-completion-length", type=int, help="texts: longest completion in tokens"
    )
    check.add_argument("--chat_template", "--chat-template", metavar="FILE", help="texts: a Jinja chat template")
    convert.add_argument("output", metavar="OUTPUT", help="file to write: .parquet; .jsonl too for texts")
    convert.add_argument(
        "--on_bad_row",
        "--on-bad-row",
        choices=["error", "skip"],
        default="error",
        help="stop at the first bad row, or leave bad rows out and list them (default error)",
    )
    convert.add_argument(
        "--each_answer",
        "--each-answer",
        action="store_true",
        help="texts: a row of each answer of a conversation, the turns before it as its prompt",
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


def _holds_texts(arguments: argparse.Namespace) -> bool:
    from ..data.texts import holds_texts

    return holds_texts(
        arguments.path, split=arguments.split, revision=arguments.revision, streaming=arguments.streaming
    )


def _reward_columns(arguments: argparse.Namespace) -> list[str]:
    """Those columns of the texts that make them trajectories."""
    from ..data.texts import find_texts

    where = {"split": arguments.split, "revision": arguments.revision, "streaming": arguments.streaming}
    columns = {name for source in find_texts(arguments.path, **where) for name in source.columns}
    return sorted({"reward", "rewards"} & columns)


def _describe_rewards(arguments: argparse.Namespace) -> str:
    """What ``ilql`` would learn from. Raises UserError for the first trajectory that it would refuse."""
    from ..data.trajectories import open_trajectories

    found = list(open_trajectories(arguments.path, split=arguments.split, revision=arguments.revision))
    rewards = [reward for each in found for reward in each.rewards]
    return f"for ilql: {len(found):,} trajectories, rewards from {min(rewards):g} to {max(rewards):g}"


def _check(arguments: argparse.Namespace) -> None:
    from ..data.check import check_pairs
    from ..data.text_check import check_texts

    where = {"split": arguments.split, "revision": arguments.revision, "streaming": arguments.streaming}
    is_text = _holds_texts(arguments)
    if is_text:
        report: Any = check_texts(arguments.path, tokens=_token_check(arguments), **where)
    else:
        _refuse_token_flags(arguments)
        report = check_pairs(arguments.path, **where)
    print(report.to_text())
    if report.is_ready and is_text and _reward_columns(arguments):
        print(_describe_rewards(arguments))
    if not report.is_ready:
        raise SystemExit(2)  # everything has been said, so no message on top


def _token_check(arguments: argparse.Namespace) -> Any:
    if arguments.tokenizer is None:
        _refuse_token_flags(arguments)
        return None
    from ..text_folders import load_tokenizer
    from ..workflows.token_check import TokenCheck

    tokenizer = load_tokenizer(arguments.tokenizer)
    return TokenCheck(
        tokenizer, arguments.tokenizer, arguments.max_length, arguments.max_completion_length, arguments.chat_template
    )


def _refuse_token_flags(arguments: argparse.Namespace) -> None:
    from ..errors import UserError

    for flag in ("tokenizer", "max_length", "max_completion_length", "chat_template"):
        if getattr(arguments, flag) is not None:
            what = "means nothing for images" if arguments.tokenizer else "means nothing without --tokenizer"
            raise UserError(f"--{flag}: {what}", "leave it out, or check texts with --tokenizer FOLDER")


def _convert(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..data.pickapic import write_pickapic
    from ..data.places import check_not_inside
    from ..data.readers import open_pairs
    from ..data.text_output import each_answer, write_texts
    from ..data.texts import open_texts
    from ..errors import UserError

    output = Path(arguments.output)
    is_text = _holds_texts(arguments)
    where = {"split": arguments.split, "revision": arguments.revision, "streaming": arguments.streaming}
    reader: Any
    if is_text:
        reader = open_texts(arguments.path, on_bad_row=arguments.on_bad_row, **where)
    else:
        reader = open_pairs(arguments.path, on_bad_row=arguments.on_bad_row, ties="soft", **where)
    if output.suffix != ".parquet" and not (is_text and output.suffix == ".jsonl"):
        what = "a .jsonl or .parquet file" if is_text else "a parquet file"
        raise UserError(f"{output}: the output is {what}", "give a name that ends in .parquet")
    _check_not_input(output, reader)
    check_not_inside(output, [arguments.path])
    if is_text and (rewards := _reward_columns(arguments)):
        problem = f"{arguments.path}: has {' and '.join(rewards)}, for which the forms that are written have no place"
        raise UserError(problem, "train on it as it is: trajectories need no conversion")
    if output.exists() and not arguments.overwrite:
        raise UserError(f"{output}: exists already", "give another name, or --overwrite to replace it")
    if arguments.each_answer and not is_text:
        raise UserError("--each_answer: means nothing for images", "leave it out")
    unit = "example" if is_text else "pair"
    write: Any = write_texts if is_text else write_pickapic
    rows: Any = tqdm(reader, desc="convert", total=reader.num_rows, unit=unit)
    with hold_file(output, "dfb data convert"):
        number = write(each_answer(rows) if arguments.each_answer else rows, output)
    for _, reason in reader.skipped:
        print(f"left out: {reason}")
    for note in reader.notes() if is_text else reader.notes:
        print(f"note: {note}" if not is_text else note)
    print(f"{output}: {number:,} {unit}s from {reader.format} ({reader.counts})")


def _check_not_input(output: Path, reader: Any) -> None:
    """Raise UserError where ``output`` is one of the files that are read: what is left out of it would be lost."""
    from ..errors import UserError

    sources = reader.sources if hasattr(reader, "sources") else [reader.source]
    files = [file for source in sources for file in getattr(source, "files", None) or [getattr(source, "file", None)]]
    if output.exists() and any(file is not None and file.exists() and file.samefile(output) for file in files):
        raise UserError(f"{output}: is one of the inputs", "give another name: what is left out would be lost")
