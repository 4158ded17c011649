"""A policy with a value head on its trunk: one forward pass gives both, and only the policy is saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..text_folders import text_config_of
from .causal_lm import Read


class ValueHead(nn.Module):
    """Hidden states (..., H) to values (...), float32: two layers, the last of which starts at zero, so all values do.

    In float32 under autocast too: returns are sums over many tokens, finer than half precision holds.
    """

    def __init__(self, hidden_size: int, *, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner = nn.Linear(hidden_size, 2 * hidden_size)
        self.outer = nn.Linear(2 * hidden_size, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values of the states that ``hidden`` stands for."""
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.outer(torch.relu(self.inner(hidden.float()))).squeeze(-1)
        return values


class ActorCritic(nn.Module):
    """``policy`` (a ``causal_lm.LanguageModel``) and ``value_head`` behind one forward pass.

    The head reads the hidden states that the output head reads, so values cost no pass of their own, and under adapters
    there is one base for policy, reference and values. Its gradient reaches the trunk, scaled by PPO's ``vf_coef``.
    """

    def __init__(self, policy: nn.Module, *, seed: int = 0) -> None:
        super().__init__()
        self.policy = policy
        model: Any = policy.model
        embedding = model.get_input_embeddings().weight
        self.value_head = ValueHead(text_config_of(model.config).hidden_size, seed=seed).to(embedding.device)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, read: Read
    ) -> tuple[object, Tensor]:
        """What ``read`` makes of the hidden states, and values (B, T): column t is of the state after token t."""
        values: list[Tensor] = []

        def read_both(hidden: Tensor, head: nn.Module) -> object:
            values.append(self.value_head(hidden))
            return read(hidden, head)

        result = self.policy(input_ids, attention_mask, position_ids, read_both)
        return result, values[0]
