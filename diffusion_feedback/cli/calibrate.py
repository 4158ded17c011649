"""``dfb calibrate``: scorers against labelled pairs: accuracy, temperature fit, reliability, agreement, and a report."""

from __future__ import annotations

from collections.abc import Sequence

from ..workflows.settings import CalibrationSettings
from .flags import Flags
from .scoring import add_scoring_flags
from .settings import NAMES, add_flags

HELPS = {
    "ceiling_scorer": "the scorer that knows the truth: its accuracy is the noise ceiling of the labels",
    "per_prompt": "show the mean over prompts of each one's accuracy too, as HPSv2 reports it",
    "split": "split of PAIRS, where the source has splits",
    "tune_split": "split of --tune",
    "revision": "branch, tag or commit on the hub",
    "columns": NAMES,
    "on_bad_row": "stop at the first bad row, or leave bad rows out",
}


def build_parser() -> Flags:
    """All flags of the command."""
    parser = Flags(
        "dfb calibrate",
        "Measure how far scorers can be trusted, on pairs that people have labelled, and fit their scale.",
    )
    add = parser.add_argument
    add("pairs", metavar="PAIRS", help="labelled preference pairs: parquet, glob, folder, hub id or rankings (.json)")
    add("--output_dir", "--output-dir", required=True, help="folder to write")
    add("--tune", metavar="PAIRS", help="other labelled pairs, to fit scale and tie threshold on")
    add_flags(
        parser, CalibrationSettings, HELPS, ceiling_scorer={"metavar": "NAME"}, columns={"metavar": "OURS=THEIRS,..."}
    )
    add("--overwrite", action="store_true", help="write into a folder that holds files already")
    add_scoring_flags(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Calibrate as ``argv`` says. Raises UserError for bad input."""
    given = vars(build_parser().parse_args(argv))

    from ..workflows.calibrating import calibrate

    calibrate(**given)
