"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of ``parameters`` in float32: average <- d * average + (1 - d) * weights after every step.

    ``d`` grows as min(decay, (1 + n) / (10 + n)) with the number n of updates, so that the start is forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.updates = 0
        self.average = {name: parameter.detach().float().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = [parameter.detach().float() for parameter in self.parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the place of the weights for the length of the ``with`` block."""
        kept = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        try:
            self._copy(self.average)
            yield
        finally:
            try:
                self._copy(kept)
            except BaseException:  # a signal that came meanwhile: a mixture of both must not be left
                self._copy(kept)
                raise

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The average, and the number of updates under the name "updates"."""
        return {**self.average, "updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state_dict`` gave."""
        self.updates = int(state["updates"])
        self.average = {name: state[name].to(value.device) for name, value in self.average.items()}
