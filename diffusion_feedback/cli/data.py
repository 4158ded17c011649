"""``dfb data``: check preference pairs or texts of any form, and convert them to one file of the field's form."""

from __future__ import annotations

from collections.abc import Sequence

from ..workflows.settings import CheckSettings, ConvertSettings, DataSource
from .flags import Flags
from .settings import add_flags

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
distinguished: prompt, chosen, rejected; prompt, completion, label; prompt, completion; messages; or text.
"""
WHERE = {
    "split": "split, where the source has splits",
    "revision": "branch, tag or commit on the hub",
    "streaming": "read hub data without downloading it first",
}
CHECK = {
    "tokenizer": "texts: count in this tokenizer's tokens, and try its template",
    "max_length": "texts: longest example in tokens (default: its own)",
    "max_completion_length": "texts: longest completion in tokens",
    "chat_template": "texts: a Jinja chat template",
}
CONVERT = {
    "on_bad_row": "stop at the first bad row, or leave bad rows out and list them",
    "each_answer": "texts: a row of each answer of a conversation, the turns before it as its prompt",
    "overwrite": "replace the output if it is there already",
}


def build_parser() -> Flags:
    """All flags of both commands."""
    parser = Flags(prog="dfb data", description="Check and convert preference pairs and texts.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{check,convert}")
    says = "Say what a data set holds and what is wrong with it."
    check = commands.add_parser("check", description=says, help=says, epilog=CHECK_EPILOG)
    says = "Write pairs of any form as one parquet file with Pick-a-Pic's columns, texts as one file with TRL's."
    convert = commands.add_parser("convert", description=says, help=says, epilog=CONVERT_EPILOG)
    for command in (check, convert):
        command.add_argument("path", metavar="PATH", help="file, glob, folder or hub id")
    convert.add_argument("output", metavar="OUTPUT", help="file to write: .parquet; .jsonl too for texts")
    metavars = {"tokenizer": {"metavar": "FOLDER"}, "chat_template": {"metavar": "FILE"}}
    for command in (check, convert):
        add_flags(command, DataSource, WHERE)
    add_flags(check, CheckSettings, CHECK, **metavars)
    add_flags(convert, ConvertSettings, CONVERT)
    return parser


def run(argv: Sequence[str]) -> None:
    """Check or convert as ``argv`` says. Raises UserError for bad input, and for data that is not ready to train."""
    given = vars(build_parser().parse_args(argv))
    command, path = given.pop("command"), given.pop("path")
    if command == "check":
        from ..workflows.checking import check

        checked = check(path, **given)
        print(checked)
        if not checked.is_ready:
            raise SystemExit(2)  # everything has been said, so no message on top
        return

    from ..workflows.converting import convert

    done = convert(path, given.pop("output"), **given)
    print("\n".join([*done.notes, f"{done.output}: {done.num:,} {done.unit}s from {done.source}"]))
