"""``dfb calibrate``: scorers against labelled pairs: accuracy, temperature fit, reliability, agreement, and a report."""

from __future__ import annotations

from collections.abc import Sequence

from ..workflows.settings import CalibrationSettings
from .flags import Flags
from .scoring import SCORERS_HELP, add_scoring_flags
from .settings import add_flags

EPILOG = f"""examples:
  dfb calibrate assets/pairs/validation-00000.parquet --scorer pickscore=assets/shapes-scorer shapes \\
      --ceiling_scorer shapes --output_dir out/calibration
  dfb calibrate test.parquet --tune validation.parquet --scorer pickscore hpsv2 imagereward --output_dir out/calibration
  dfb calibrate HPDv2/test.json --per_prompt --scorer hpsv2=HPS_v2.1_compressed.pt --output_dir out/hpdv2
  dfb label out/base --scorer shapes --calibration out/calibration/calibration.json --ties soft --output pairs.parquet

{SCORERS_HELP}
The folder: calibration.json (read by dfb label --calibration), report.html, README.md.
  accuracy     share of pairs on which the scorer prefers what people prefer; labelled ties left out, equal scores one half
  per prompt   (--per_prompt) mean over prompts of each one's accuracy: what HPSv2 reports, 83.3 and 84.1 on HPDv2's test set
  with ties    PickScore's protocol: a tie is predicted where |p_1 - p_0| <= t; one half where exactly one side is a tie
  logit scale  the s for which sigmoid(s * (raw_0 - raw_1)) has the least cross entropy against the labels
t and s are never judged on the pairs that they were fitted on: they come from --tune, else each half of the prompts is
judged by what the other half gave. Intervals (95 %) resample prompts. Labels are read from label_0: 0.5 is a tie, other
shares are votes.
"""
HELPS = {
    "ceiling_scorer": "the scorer that knows the truth: its accuracy is the noise ceiling of the labels",
    "per_prompt": "show the mean over prompts of each one's accuracy too, as HPSv2 reports it",
    "split": "split of PAIRS, where the source has splits",
    "tune_split": "split of --tune",
    "revision": "branch, tag or commit on the hub",
    "on_bad_row": "stop at the first bad row, or leave bad rows out",
}


def build_parser() -> Flags:
    """All flags of the command."""
    parser = Flags(
        "dfb calibrate",
        "Measure how far scorers can be trusted, on pairs that people have labelled, and fit their scale.",
        EPILOG,
    )
    add = parser.add_argument
    add("pairs", metavar="PAIRS", help="labelled preference pairs: parquet, glob, folder, hub id or rankings (.json)")
    add("--output_dir", "--output-dir", required=True, help="folder to write")
    add("--tune", metavar="PAIRS", help="other labelled pairs, to fit scale and tie threshold on")
    add_flags(parser, CalibrationSettings, HELPS, ceiling_scorer={"metavar": "NAME"})
    add("--overwrite", action="store_true", help="write into a folder that holds files already")
    add_scoring_flags(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Calibrate as ``argv`` says. Raises UserError for bad input."""
    given = vars(build_parser().parse_args(argv))

    from ..workflows.calibrating import calibrate

    calibrate(**given)
