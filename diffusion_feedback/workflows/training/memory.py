"""What a training run will need in memory: weights and states counted, activations measured on one real micro-batch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...catalog import state_bytes
from .session import Session


def weight_bytes(parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of ``parameters``."""
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def gibibytes(count: float) -> str:
    """``count`` bytes in the unit of cards."""
    return f"{count / 2**30:,.1f} GiB"


def _mebibytes(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"


class PeakMemory(TorchDispatchMode):
    """Within this, ``bytes`` is the most that tensors made inside have held at once; on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        for leaf in tree_leaves((args, kwargs)):
            self._note(leaf, counts=False)  # weights and inputs, which were there before
        outputs = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(outputs):
            self._note(leaf, counts=True)
        return outputs

    def _note(self, leaf: object, *, counts: bool) -> None:
        if not isinstance(leaf, Tensor):
            return
        storage = leaf.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if counts else 0  # tensors without numbers have no address
        if (size == 0 and counts) or key in self._known:
            return
        self._known.add(key)
        self._live += size
        self.bytes = max(self.bytes, self._live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size


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
    data, size = session.data, session.setup.recipe.training.train_batch_size
    batch = data.train.batch(data.order.indices(0)[:size], 0)
    session.network.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = session.step(session.network, batch)
    assert output.loss.requires_grad
    return sum(seen.values())


def estimate(session: Session) -> list[str]:
    """Lines of the memory estimate, for one process."""
    network, recipe = session.network, session.setup.recipe
    trained = sum(p.numel() for p in session.parameters())
    weights, frozen = weight_bytes(network.parameters()), session.frozen_bytes
    average = 4 * trained if recipe.training.ema_decay else 0
    states = (4 + state_bytes(recipe.optimizer["name"])) * trained + average
    activations = saved_bytes(session)
    samples = session.sampling_bytes()
    # Samples are drawn between steps, when no activations are held.
    total = weights + sum(frozen.values()) + states + max(activations, samples)
    drawn = (
        f"                 one batch of validation samples {_mebibytes(samples)} (measured; no pass is held meanwhile)"
    )
    return [
        f"memory           about {_mebibytes(total)} in each process:",
        f"                 network {_mebibytes(weights)}",
        f"                 gradients, optimizer and average {_mebibytes(states)}",
        f"                 activations of one pass {_mebibytes(activations)} (measured)",
        *([drawn] if samples else []),
        *(f"                 {name} {_mebibytes(count)}" for name, count in frozen.items()),
    ]
