"""``dfb report``: several benchmark runs on one page, side by side and against a baseline."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..folders import hold_file
from .flags import Flags

if TYPE_CHECKING:
    from ..evaluation.benchmarks.run import BenchmarkRun

EPILOG = """examples:
  dfb report runs/bench-base runs/bench-dpo --output report.html
  dfb report runs/bench-dpo runs/bench-sft --baseline runs/bench-base --output report.html
  dfb report runs/bench-base runs/bench-a runs/bench-b --names base "lr 1e-5" "lr 1e-4" --output report.html

Each RUN is a folder that dfb benchmark wrote, all of one benchmark on one list of prompts. The page shows means by style,
win rates against the baseline with intervals, images before and after (the best, typical and the worst), settings side by
side, and an alarm where one scorer rises while another falls. It is one file without scripts, to be sent or archived.
"""


def build_parser() -> argparse.ArgumentParser:
    """All flags of the command."""
    parser = Flags(
        prog="dfb report",
        description="Join benchmark runs into one HTML page.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder that dfb benchmark wrote")
    add("--output", required=True, metavar="REPORT.html", help="file to write")
    add("--baseline", metavar="RUN", help="run that the others are compared with (default: the first)")
    add("--names", nargs="+", metavar="NAME", help="a name for each run, the baseline first (default: their folders)")
    add("--title", default="", help="heading of the page")
    add("--tie_margin", "--tie-margin", type=float, default=0.0, help="scores this close count as a tie (default 0)")
    add("--overwrite", action="store_true", help="replace the output if it is there already")
    return parser


def run(argv: Sequence[str]) -> None:
    """Write a page as ``argv`` says. Raises UserError for bad input."""
    arguments = build_parser().parse_args(argv)

    from ..errors import UserError
    from ..evaluation.benchmarks.run import check_same_prompts, compare_runs
    from ..reports.html import write_report
    from ..reports.pages.benchmark import benchmark_report

    output = Path(arguments.output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{output}: the output is a page", "give a name that ends in .html")
    if output.exists() and not arguments.overwrite:
        raise UserError(f"{output}: exists already", "give another name, or --overwrite to replace it")
    if not arguments.tie_margin >= 0:
        raise UserError(f"--tie_margin: got {arguments.tie_margin}", "allowed: 0 or more, in the unit of the scores")
    baseline, *others = _load(arguments)
    for other in others:
        check_same_prompts(baseline, other)
    comparisons = [compare_runs(baseline, other, tie_margin=arguments.tie_margin) for other in others]
    report = benchmark_report(others or [baseline], comparisons, arguments.title)
    with hold_file(output, "dfb report"):
        write_report(report, output)
    for notice in report.notices:
        print(f"{'ALARM: ' if notice.tone == 'alarm' else ''}{notice.title}\n  {notice.text}")
    print(f"{output}: {len(others) + 1} runs of {baseline.benchmark.title}, baseline {baseline.name}")


def _load(arguments: argparse.Namespace) -> list[BenchmarkRun]:
    """The runs, the baseline first, each under a name of its own."""
    from ..errors import UserError
    from ..workflows.benchmark_folder import load_run

    given = [Path(folder) for folder in arguments.runs]
    if arguments.baseline:
        first = Path(arguments.baseline)
        given = [first, *(folder for folder in given if folder.resolve() != first.resolve())]
    resolved = [folder.resolve() for folder in given]
    if len(set(resolved)) < len(resolved):
        raise UserError("a run is given twice", "name each folder once")
    names = [folder.name for folder in resolved]
    # Folders such as a/bench and b/bench are told apart by more of their paths.
    names = [
        name if names.count(name) == 1 else "/".join(path.parts[-2:])
        for name, path in zip(names, resolved, strict=True)
    ]
    if arguments.names:
        if len(arguments.names) != len(given):
            raise UserError(
                f"--names: {len(arguments.names)} names, {len(given)} runs", "name each run, the baseline first"
            )
        names = arguments.names
    if len(set(names)) < len(names):
        raise UserError(f"two runs would have one name: {', '.join(names)}", "give --names")
    return [load_run(folder, name=name) for folder, name in zip(given, names, strict=True)]
