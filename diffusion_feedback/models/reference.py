"""Ways to have the frozen reference network; each implements ``types.Reference``."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn

from . import lora


class AdaptersOff:
    """The policy itself with its adapters switched off: no second copy, and bit-identical to the base."""

    def __call__(self, policy: nn.Module) -> AbstractContextManager[nn.Module]:
        """Give ``policy`` without its adapters for the length of the ``with`` block."""
        return _adapters_off(policy)


@contextmanager
def _adapters_off(policy: nn.Module) -> Iterator[nn.Module]:
    lora.switch(policy, on=False)
    try:
        yield policy
    finally:
        lora.switch(policy, on=True)


class FrozenCopy:
    """A copy of the network, made once, for full fine-tuning."""

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)

    def __call__(self, policy: nn.Module) -> AbstractContextManager[nn.Module]:
        """Give the copy, in the same mode (train or eval) as ``policy``, so that both run the same kernels."""
        return self._give(policy)

    @contextmanager
    def _give(self, policy: nn.Module) -> Iterator[nn.Module]:
        yield self.network.train(policy.training)


class FrozenModel:
    """Another model than the policy, loaded for the purpose."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.requires_grad_(False)

    def __call__(self, policy: nn.Module) -> AbstractContextManager[nn.Module]:
        """Give the model, in the same mode (train or eval) as ``policy``."""
        return self._give(policy)

    @contextmanager
    def _give(self, policy: nn.Module) -> Iterator[nn.Module]:
        yield self.network.train(policy.training)
