"""``dfb push``: a run, a step of one, or an export to the hub."""

from __future__ import annotations

from collections.abc import Sequence

from ..workflows.sharing_settings import PushSettings
from .flags import Flags
from .settings import add_flags


def build_parser() -> Flags:
    """All flags of the command."""
    parser = Flags("dfb push", "Bring the weights of a result, with its card, recipe and samples, to the hub.")
    add = parser.add_argument
    add("model", metavar="RUN", help="folder of a run or an export, RUN@STEP, RUN@best")
    add("repo", metavar="OWNER/NAME", help="repository on the hub; it is made where it is not there")
    helps = {
        "private": "a repository that is made is private",
        "revision": "branch to write, made where it is not there (default main)",
        "message": "message of the commit",
        "dry_run": "list the files and their bytes, and send nothing",
    }
    add_flags(parser, PushSettings, helps)
    return parser


def run(argv: Sequence[str]) -> None:
    """Push as ``argv`` says. Raises UserError for bad input, and where the hub cannot be reached or refuses."""
    given = vars(build_parser().parse_args(argv))

    from ..workflows.pushing import push

    print(push(given.pop("model"), given.pop("repo"), **given))
