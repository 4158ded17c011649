"""``dfb report``: several benchmark runs, or several training runs, on one page, side by side and against a baseline."""

from __future__ import annotations

from collections.abc import Sequence

from ..workflows.settings import ReportSettings
from .flags import Flags
from .settings import add_flags


def build_parser() -> Flags:
    """All flags of the command."""
    parser = Flags("dfb report", "Join benchmark runs, or training runs, into one HTML page.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder that dfb benchmark wrote, or dfb train")
    parser.add_argument("--output", required=True, metavar="REPORT.html", help="file to write")
    helps = {
        "baseline": "run that the others are compared with (default: the first)",
        "names": "a name for each run, the baseline first (default: their folders)",
        "title": "heading of the page",
        "tie_margin": "scores this close count as a tie (benchmarks)",
        "overwrite": "replace the output if it is there already",
    }
    add_flags(parser, ReportSettings, helps, baseline={"metavar": "RUN"}, names={"metavar": "NAME", "action": "store"})
    return parser


def run(argv: Sequence[str]) -> None:
    """Write a page as ``argv`` says. Raises UserError for bad input."""
    given = vars(build_parser().parse_args(argv))

    from ..workflows.reporting import report

    page = report(**given)
    for notice in page.notices:
        print(f"{'ALARM: ' if notice.tone == 'alarm' else ''}{notice.title}\n  {notice.text}")
