"""What a run takes over from its checkpoint: everything, in the shapes that it had, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..foreign import reading
from ..types.training import Observer
from .checkpoints import fitting, remedy_for
from .ema import WeightAverage


def check_identity(run: Path, kept: object, identity: Mapping[str, str]) -> None:
    """Raise UserError unless what a checkpoint of ``run`` has ``kept`` is the present ``identity``."""
    before = kept if isinstance(kept, Mapping) else {}
    for name, value in identity.items():
        if before.get(name) != value:
            problem = f"{run}: `resume` with another {name}: {before.get(name)} became {value}"
            raise UserError(problem, "resume with the same model, pairs and number of processes")


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
        with reading(checkpoint / f"{name}.safetensors", "a state of this run", remedy_for(checkpoint)):
            observer.load_state_dict(tensors.get(name, {}))


def take_over_optimizer(
    checkpoint: Path, state: Mapping[str, Any], optimizer: torch.optim.Optimizer, scaler: Any
) -> None:
    """Put the state of the optimizer, and of the loss scaler where there is one, in place. Raises UserError."""
    with reading(checkpoint / "optimizer.pt", "the state of this run's optimizer", remedy_for(checkpoint)):
        optimizer.load_state_dict(state["optimizer"])
        if scaler is not None:
            scaler.load_state_dict(state["scaler"])
