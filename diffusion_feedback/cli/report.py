"""``dfb report``: several benchmark runs on one page, side by side and against a baseline."""

from __future__ import annotations

from collections.abc import Sequence

from ..workflows.settings import ReportSettings
from .flags import Flags
from .settings import add_flags

EPILOG = """examples:
  dfb report runs/bench-base runs/bench-dpo --output report.html
  dfb report runs/bench-dpo runs/bench-sft --baseline runs/bench-base --output report.html
  dfb report runs/bench-base runs/bench-a runs/bench-b --names base "lr 1e-5" "lr 1e-4" --output report.html

Each RUN is a folder that dfb benchmark wrote, all of one benchmark on one list of prompts. The page shows means by style,
win rates against the baseline with intervals, images before and after (the best, typical and the worst), settings side by
side, and an alarm where one scorer rises while another falls. It is one file without scripts, to be sent or archived.
"""


def build_parser() -> Flags:
    """All flags of the command."""
    parser = Flags("dfb report", "Join benchmark runs into one HTML page.", EPILOG)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder that dfb benchmark wrote")
    parser.add_argument("--output", required=True, metavar="REPORT.html", help="file to write")
    helps = {
        "baseline": "run that the others are compared with (default: the first)",
        "names": "a name for each run, the baseline first (default: their folders)",
        "title": "heading of the page",
        "tie_margin": "scores this close count as a tie",
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
