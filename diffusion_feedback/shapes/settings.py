"""The settings of the demo: the only place of their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..folders import at_home
from ..values import COUNT, SEED, checked_by_type


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class DemoSettings:
    """Where the demo is written, on how many held-out prompts, and whether the embedded scorer's labels are learnt from too."""

    output_dir: Annotated[str, at_home] = "runs/demo"
    seed: Annotated[int, SEED] = 0
    num_prompts: Annotated[int, COUNT] = 336
    ai_feedback: bool = False
    overwrite: bool = False
    configs: Annotated[str, at_home] = "configs"
    prompts: Annotated[str, at_home] = "assets/prompts/heldout.txt"
