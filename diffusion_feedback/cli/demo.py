"""``dfb demo``: the whole story on the embedded model, from samples through Diffusion-DPO to a verified report."""

from __future__ import annotations

from collections.abc import Sequence

from ..shapes.settings import DemoSettings
from .flags import Flags
from .settings import add_flags

HELPS = {
    "output_dir": "folder to write",
    "seed": "seed of the training runs",
    "num_prompts": "held-out prompts",
    "ai_feedback": "tune a third model on the embedded scorer's labels in place of the annotator's",
    "overwrite": "start over, even where the folder holds a demo",
    "configs": "folder of the recipes",
    "prompts": "held-out captions of the Shapes world",
}


def build_parser() -> Flags:
    """All flags of the command."""
    parser = Flags("dfb demo", "Beat the embedded Stable Diffusion by its own Diffusion-DPO fine-tune, and prove it.")
    add_flags(parser, DemoSettings, HELPS)
    return parser


def run(argv: Sequence[str]) -> None:
    """Run the story as ``argv`` says. Raises UserError where the embedded assets are missing."""
    settings = DemoSettings(**vars(build_parser().parse_args(argv)))

    from ..shapes.demo import demo

    print(f"\n{demo(settings)}")
