"""What a training run will need in memory: weights and states counted, activations measured on one real micro-batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .run_parts import Session

_STATES = {
    "adamw": 8.0,
    "adamw_8bit": 2.0,
    "adafactor": 0.1,
    "rmsprop": 4.0,
}  # bytes of optimizer state a trained parameter


def weight_bytes(parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of ``parameters``."""
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _mebibytes(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"


def saved_bytes(session: Session) -> int:
    """Bytes that autograd keeps for the backward pass of one micro-batch, each storage counted once."""
    seen: dict[int, int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in session.network.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            seen[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)  # keeps the storage alive, so that no address is used twice
        return tensor

    kept: list[Tensor] = []
    batch = session.train.batch(session.order.indices(0)[: session.recipe.training.train_batch_size], 0)
    session.network.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = session.step(session.network, batch)
    assert output.loss.requires_grad
    return sum(seen.values())


def estimate(session: Session) -> list[str]:
    """Lines of the memory estimate, for one process."""
    network = session.network
    trained = sum(p.numel() for p in session.parameters())
    weights, frozen = weight_bytes(network.parameters()), session.frozen_bytes()
    average = 4 * trained if session.recipe.training.ema_decay else 0
    states = (4 + _STATES.get(session.recipe.optimizer["name"], 8.0)) * trained + average
    activations = saved_bytes(session)
    total = weights + sum(frozen.values()) + states + activations
    return [
        f"memory           about {_mebibytes(total)} in each process:",
        f"                 network {_mebibytes(weights)}",
        f"                 gradients, optimizer and average {_mebibytes(states)}",
        f"                 activations of one pass {_mebibytes(activations)} (measured)",
        *(f"                 {name} {_mebibytes(count)}" for name, count in frozen.items()),
    ]
