"""The settings of the demo: the only place of their defaults."""

from __future__ import annotations

from dataclasses import dataclass

from ..workflows.settings import at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """Where the demo is written, on how many held-out prompts, and whether the embedded scorer's labels are learnt from too."""

    output_dir: str = "runs/demo"
    seed: int = 0
    num_prompts: int = 336
    ai_feedback: bool = False
    overwrite: bool = False
    configs: str = "configs"
    prompts: str = "assets/prompts/heldout.txt"

    def __post_init__(self) -> None:
        """Raises UserError for no prompts and for a negative seed."""
        at_least(1, num_prompts=self.num_prompts)
        at_least(0, seed=self.seed)
