"""What a run that goes on may change, and what it takes over from its checkpoint: everything, in the shapes that it had."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..catalog import objective_row
from ..config.continuing import ChangedSetting, Changes, compare_recipes
from ..config.meaning import default_of
from ..config.sources import is_object
from ..errors import UserError, shown
from ..foreign import reading
from ..output_folders import flat
from ..types.training import Observer
from .checkpoints import fitting, remedy_for, state_folder
from .ema import WeightAverage

_LONGEST = 200  # characters of a setting that a message holds


def another_run(run: Path) -> str:
    """How to go on where what is requested is another run than ``run``."""
    new = f"begin another run with its weights: another output_dir, and model.init_from: {run}@STEP"
    return f"resume with the run's own recipe.yaml, or {new}"


def effective_batch(recipe: Mapping[str, object], processes: int) -> int | None:
    """Examples of one step by ``recipe``, as nested plain values; None where completions are drawn, or none are named."""
    settings = flat(recipe)
    name = settings.get(("objective", "name"))
    if name is None or (not is_object(name) and objective_row(name).learns_from == "rollouts"):
        return None
    keys = ("train_batch_size", "gradient_accumulation_steps")
    sizes = [int(settings.get(("training", key), default_of(f"training.{key}"))) for key in keys]
    return math.prod(sizes) * processes


def check_changes(
    run: Path, old: Mapping[str, object], new: Mapping[str, object], batch: tuple[int | None, int | None]
) -> Changes:
    """What the recipe ``new`` changes in ``run``, which goes by ``old``; ``batch``: examples of one step, before and now.

    Raises UserError that names everything that would make it another run.
    """
    name = flat(new).get(("objective", "name"))
    # Of an objective that is an object nobody can tell here whether examples of a pass depend on each other.
    has_coupled_passes = name is not None and (is_object(name) or objective_row(name).in_batch)
    changes = compare_recipes(old, new, has_coupled_passes=has_coupled_passes)
    before, now = batch
    refused = [*changes.refused, *([ChangedSetting("effective batch", before, now)] if before != now else [])]
    if refused:
        what = (
            f"another {each.name}: {shown(each.old, _LONGEST)} became {shown(each.new, _LONGEST)}" for each in refused
        )
        raise UserError(f"{run}: `resume` with {'; '.join(what)}", another_run(run))
    return changes


def check_identity(run: Path, kept: object, identity: Mapping[str, str]) -> None:
    """Raise UserError unless what a checkpoint of ``run`` has ``kept`` is the present ``identity``."""
    before = kept if isinstance(kept, Mapping) else {}
    changed = [
        f"another {name}: {before.get(name)} became {value}"
        for name, value in identity.items()
        if before.get(name) != value
    ]
    if changed:
        raise UserError(f"{run}: `resume` with {'; '.join(changed)}", another_run(run))


def take_over(
    checkpoint: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    weights: Mapping[str, nn.Parameter],
    average: WeightAverage | None,
    observers: Mapping[str, Observer],
) -> None:
    """Put weights, average and states of their own in place. Raises UserError for tensors that are not this run's."""
    policy = fitting("policy", tensors.get("policy", {}), weights, checkpoint)
    if average is not None:
        average.load_state_dict(fitting("average", tensors.get("average", {}), average.state_dict(), checkpoint))
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(policy[name])
    for name, observer in observers.items():
        with reading(state_folder(checkpoint) / f"{name}.safetensors", "a state of this run", remedy_for(checkpoint)):
            observer.load_state_dict(tensors.get(name, {}))


def take_over_optimizer(
    checkpoint: Path, state: Mapping[str, Any], optimizer: torch.optim.Optimizer, scaler: Any
) -> None:
    """Put the state of the optimizer, and of the loss scaler where there is one, in place. Raises UserError."""
    with reading(
        state_folder(checkpoint) / "optimizer.pt", "the state of this run's optimizer", remedy_for(checkpoint)
    ):
        optimizer.load_state_dict(state["optimizer"])
        if scaler is not None and state["scaler"] is not None:  # the precision may have changed
            scaler.load_state_dict(state["scaler"])
