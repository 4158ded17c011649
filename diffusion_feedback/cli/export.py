"""``dfb export``: a result in the form of another tool, read back and compared."""

from __future__ import annotations

from collections.abc import Sequence

from ..catalog.formats import EXPORT_FORMATS
from ..workflows.settings import ModelSource
from ..workflows.sharing_settings import ExportSettings
from .flags import Flags
from .sampling import SOURCE
from .settings import add_flags


def build_parser() -> Flags:
    """All flags of the command."""
    parser = Flags("dfb export", "Write a result as another tool reads it, read it back, and print how far it is off.")
    add = parser.add_argument
    add("model", metavar="RUN", help="folder of a run, RUN@STEP, RUN@best, or a base with --lora")
    add("--output", required=True, help="folder to write")
    helps = {
        "format": "the form, see below",
        "dtype": "precision of the weights: float32 is exact; the error of another is printed",
        "device": "where it is read back: cuda, cpu, ...; the best one there is by default",
        "overwrite": "replace an export that is there",
    }
    add_flags(parser, ExportSettings, helps, format={"choices": list(EXPORT_FORMATS)})
    families = "sd, sdxl, causal_lm or reward_model (default: what the recipe or the files tell)"
    add_flags(parser, ModelSource, {**SOURCE, "family": f"model family: {families}"})
    return parser


def run(argv: Sequence[str]) -> None:
    """Export as ``argv`` says. Raises UserError for bad input, and for an export that is not what the result is."""
    given = vars(build_parser().parse_args(argv))

    from ..workflows.exporting import export

    print(export(given.pop("model"), given.pop("output"), **given))
