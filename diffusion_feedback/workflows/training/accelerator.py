"""The accelerator of a run: processes, precision and trackers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs

from ...config.recipe import Recipe, to_dict, to_yaml
from ...errors import UserError, first_line
from ...folders import expand
from ...output_folders import flat
from ...processes import check_joined, check_plugins, leave_at_exit, num_launched
from ...reports.figures import open_picture
from ...training.run_folder import TRACKED, RunFolder
from .drawn import read_samples


@contextmanager
def own_accelerate() -> Iterator[None]:
    """Leave accelerate as it was found: it keeps one state a process, and the next run may want another precision.

    A caller's own ``Accelerator`` stays, and so does the group of processes, or a state of it that the program has made.
    """
    is_ours, was_there = not AcceleratorState._shared_state, bool(PartialState._shared_state)
    try:
        yield
    finally:
        if is_ours:
            AcceleratorState._reset_state(reset_partial_state=not was_there and num_launched() == 1)


def check_trackers(recipe: Recipe) -> None:
    """Raise UserError for a tracker that is unknown or not installed: accelerate would leave it out without a word."""
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    installed, known = {str(each) for each in get_available_trackers()}, [str(each) for each in LoggerType.list()]
    for name in recipe.training.trackers:
        if name not in known:
            raise UserError(
                f"training.report_to: unknown tracker {name!r}", f"allowed: {', '.join(known)}; [] for none"
            )
        if name not in installed and (name != "all" or not installed):
            remedy = "pip install it, or leave it out: metrics.jsonl is written in any case"
            raise UserError(f"training.report_to: {name} is not installed", remedy)


def make_accelerator(recipe: Recipe) -> Accelerator:
    """The accelerator of a run. Raises UserError for a tracker that is not installed, and processes that do not meet."""
    check_plugins("training", compiles=True)
    check_trackers(recipe)
    try:
        accelerator = Accelerator(
            mixed_precision=recipe.training.mixed_precision,
            log_with=recipe.training.trackers or None,
            project_dir=str(expand(recipe.output_dir)),
            # Losses are divided by the loop, once: ACCELERATE_GRADIENT_ACCUMULATION_STEPS would divide them again.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            # Other processes wait while one encodes or draws samples; the default of ten minutes is too short for that.
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timedelta(hours=12)),
                # Buffers are constants; sending them would need as many forward passes of every process.
                DistributedDataParallelKwargs(broadcast_buffers=False),
            ],
        )
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        if "mixed_precision=" in str(error):  # accelerate keeps one state a process
            held = AcceleratorState._shared_state["_mixed_precision"]
            problem = f"training.mixed_precision: this program holds an Accelerator of precision {held}"
            raise UserError(problem, "make none before, or one of the recipe's precision") from error
        if "mixed precision" in str(error):
            raise UserError(f"training.mixed_precision: {first_line(error)}", "set it to no, or bf16") from error
        problem = f"{num_launched()} processes could not begin together: {first_line(error)}"
        remedy = "check how they are launched (accelerate launch, torchrun): addresses, ports, devices"
        raise UserError(problem, remedy) from error
    check_joined(accelerator.num_processes)
    leave_at_exit(PartialState())
    return accelerator


def start_trackers(recipe: Recipe, accelerator: Accelerator, folder: RunFolder) -> None:
    """Start the recipe's trackers, in which the run bears the name of its folder."""
    if not recipe.training.trackers:
        return
    name = folder.path.absolute().name
    named = {"wandb": {"name": name}, "mlflow": {"run_name": name}, "swanlab": {"experiment_name": name}}
    try:
        accelerator.init_trackers(TRACKED, config=hyperparameters(recipe), init_kwargs=named)
    except Exception as error:  # trackers are many, and fail in as many ways: no account, no network, no rights
        remedy = "log in to it, or leave it out: metrics.jsonl is written in any case"
        raise UserError(f"training.report_to: could not be started: {first_line(error)}", remedy) from error


def hyperparameters(recipe: Recipe) -> dict[str, bool | float | str]:
    """The recipe as trackers take it: one value a setting by its whole key, and all of it as YAML."""
    values = {".".join(key): value for key, value in flat(to_dict(recipe)).items()}
    plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in values.items()}
    return {**plain, "recipe": to_yaml(recipe)}


def track_samples(accelerator: Accelerator, folder: RunFolder, step: int) -> None:
    """Send the images that were drawn after ``step``, and those from before training, to the trackers that take images."""
    takers = [tracker for tracker in accelerator.trackers if hasattr(tracker, "log_images")]
    drawn = read_samples(folder.path, up_to=step).get(step) if takers else None
    if drawn is None:
        return
    for name, files in (("before", drawn.before), ("after", drawn.after)):
        images = [np.asarray(open_picture(file)) for file in files if isinstance(file, Path)]
        for tracker in takers if images else []:
            # TensorBoard alone wants to know the order of the axes.
            more = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({f"samples/{name}": np.stack(images)}, step=step, **more)
