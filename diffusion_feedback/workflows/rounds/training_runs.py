"""One training run among several of one process."""

from __future__ import annotations

from pathlib import Path

from accelerate import PartialState
from accelerate.state import AcceleratorState

from ...config.recipe import Recipe
from ...training.run_folder import RunFolder
from ..training.run import run_training


def train_to_end(recipe: Recipe, state: PartialState) -> None:
    """Train ``recipe`` to its end, from where it stands. Trackers end with it; the group of processes goes on."""
    folder = RunFolder(Path(recipe.output_dir))
    state.wait_for_everyone()
    if folder.is_complete():
        return
    # accelerate keeps one state a process, of one precision: the next run may have another.
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = run_training(recipe, resume=(folder.path / "recipe.yaml").exists())
    for tracker in accelerator.trackers if accelerator is not None else ():
        tracker.finish()
    AcceleratorState._reset_state(reset_partial_state=False)
