"""``dfb data``: check, view and audit preference pairs or texts, and convert them to one file of the field's form."""

from __future__ import annotations

from collections.abc import Sequence

from ..workflows.data_settings import AuditSettings, CheckSettings, ConvertSettings, DataSource, ViewSettings
from .flags import Flags
from .settings import NAMES, add_flags

WHERE = {
    "split": "split, where the source has splits",
    "revision": "branch, tag or commit on the hub",
    "streaming": "read hub data without downloading it first",
    "columns": NAMES,
}
CHECK = {
    "resolution": "images: resolution of the training, px (default: says it for 512 and 1024)",
    "tokenizer": "texts: count in this tokenizer's tokens, and try its template",
    "max_length": "texts: longest example in tokens (default: its own)",
    "max_completion_length": "texts: longest completion in tokens",
    "chat_template": "texts: a Jinja chat template",
}
VIEW = {
    "sort": "which pairs come first: small, much cropped, blurred, contested ones, or by prompt",
    "only": "leave all other pairs out",
    "search": "only pairs with this in the prompt",
    "count": "pairs on the page",
    "page": "which page of them",
    "resolution": "an image with a shorter side below it counts as enlarged, px",
    "max_pairs": "pairs to measure for --sort sharpness",
    "split": WHERE["split"],
    "revision": WHERE["revision"],
    "columns": NAMES,
}
AUDIT = {
    "split": WHERE["split"],
    "revision": WHERE["revision"],
    "columns": NAMES,
    "max_pairs": "pairs to read, a random sample that is always the same",
    "tokenizer": "texts: count the tokens of this tokenizer too",
}
CONVERT = {
    "on_bad_row": "stop at the first bad row, or leave bad rows out and list them",
    "each_answer": "texts: a row of each answer of a conversation, the turns before it as its prompt",
    "overwrite": "replace the output if it is there already",
}


def build_parser() -> Flags:
    """All flags of the four commands."""
    parser = Flags(prog="dfb data", description="Check, view, audit and convert preference pairs and texts.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{check,view,audit,convert}")
    says = "Say what a data set holds and what is wrong with it."
    check = commands.add_parser("check", description=says, help=says)
    says = "Write a page of pairs side by side, with labels and captions."
    view = commands.add_parser("view", description=says, help=says)
    says = "Say how well size, sharpness, colours, length and the like predict the labels by themselves."
    audit = commands.add_parser("audit", description=says, help=says)
    says = "Write pairs of any form as one parquet file with Pick-a-Pic's columns, texts as one file with TRL's."
    convert = commands.add_parser("convert", description=says, help=says)
    for command in (view, audit, convert):
        command.add_argument("path", metavar="PATH", help="file, glob, folder or hub id")
    check.add_argument(
        "path", metavar="PATH", nargs="+", help="file, glob, folder or hub id; several: each and together"
    )
    convert.add_argument("output", metavar="OUTPUT", help="file to write: .parquet; .jsonl too for texts")
    metavars = {"tokenizer": {"metavar": "FOLDER"}, "chat_template": {"metavar": "FILE"}}
    own = {"metavar": "OURS=THEIRS,..."}
    for command in (check, convert):
        add_flags(command, DataSource, WHERE, columns=own)
    add_flags(check, CheckSettings, CHECK, **metavars)
    says = "other data, or split=NAME: what prompts, images and completions stand in both"
    check.add_argument("--against", nargs="+", action="extend", default=[], metavar="DATA", help=says)
    add_flags(audit, AuditSettings, AUDIT, tokenizer=metavars["tokenizer"], columns=own)
    view.add_argument("--output", required=True, metavar="SHEET.html", help="page to write")
    add_flags(view, ViewSettings, VIEW, search={"metavar": "WORDS"}, columns=own)
    view.add_argument("--overwrite", action="store_true", help="replace the page if it is there already")
    audit.add_argument("--output", metavar="PAGE.html", help="page to write, with pairs")
    audit.add_argument("--overwrite", action="store_true", help="replace the page if it is there already")
    add_flags(convert, ConvertSettings, CONVERT)
    return parser


def run(argv: Sequence[str]) -> None:
    """Check, view, audit or convert as ``argv`` says. Raises UserError for bad input, and for data that is not ready to train."""
    given = vars(build_parser().parse_args(argv))
    command, path = given.pop("command"), given.pop("path")
    if command == "check":
        from ..workflows.checking import check, check_together

        checked = check(path[0], **given) if len(path) == 1 else check_together(path, **given)
        print(checked)
        if not checked.is_ready:
            raise SystemExit(2)  # everything has been said, so no message on top
        return

    if command == "audit":
        from ..workflows.auditing import audit

        print(audit(path, **given))
        return
    if command == "view":
        from ..workflows.viewing import view

        print(view(path, **given))
        return

    from ..workflows.converting import convert

    done = convert(path, given.pop("output"), **given)
    print("\n".join([*done.notes, f"{done.output}: {done.num:,} {done.unit}s from {done.source}"]))
