"""Ways to have the frozen reference network; each is called as ``types.training.Reference``."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from . import lora


class AdaptersOff:
    """The policy itself with its adapters switched off: no second copy, and bit-identical to the base."""

    @contextmanager
    def __call__(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Give ``policy`` without its adapters for the length of the ``with`` block."""
        lora.switch(policy, on=False)
        try:
            yield policy
        finally:
            lora.switch(policy, on=True)


class FrozenModel:
    """Another model than the policy, loaded or copied for the purpose."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.requires_grad_(False)

    @classmethod
    def copy_of(cls, network: nn.Module) -> FrozenModel:
        """A copy of ``network``, made once, for full fine-tuning."""
        return cls(copy.deepcopy(network))

    @contextmanager
    def __call__(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Give the model, in the same mode (train or eval) as ``policy``, so that both run the same kernels."""
        yield self.network.train(policy.training)
