"""Heads that value tokens on top of a language model's hidden states: saved beside it, and steering its sampling."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import UserError
from ..foreign import reading
from ..records import content_hash
from ..types.heads import ShapedHead
from ..weights import check_finite
from .output_heads import logit_shape, uncapped
from .saving import saving

FILE_NAME = "value_heads.safetensors"

ReadValues = Callable[[Tensor, nn.Module, "ValueHeads"], Any]
"""Takes hidden states (B, T, H), the output head and the value heads; what it returns, the forward pass returns."""


def _head(hidden_size: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(hidden_size, 2 * hidden_size), nn.ReLU(), nn.Linear(2 * hidden_size, outputs))


class ValueHeads(nn.Module):
    """Two Q heads over the vocabulary with their targets, and a V head, in float32, on hidden states of ``hidden_size``.

    Each is a perceptron with one hidden layer of twice the width, as in github.com/CarperAI/trlx. Targets start equal to
    their heads and are not trained: they follow by ``sync_targets``. Weights are drawn from ``seed``.
    """

    def __init__(self, hidden_size: int, vocab_size: int, *, seed: int = 0) -> None:
        super().__init__()
        self.hidden_size, self.vocab_size = hidden_size, vocab_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.q_heads = nn.ModuleList(_head(hidden_size, vocab_size) for _ in range(2))
            self.v_head = _head(hidden_size, 1)
        self.target_q_heads = copy.deepcopy(self.q_heads).requires_grad_(False)

    def q(self, hidden: Tensor) -> Tensor:
        """Hidden states (N, H) to Q values of both heads, (2, N, V)."""
        return torch.stack([self._read(head, hidden) for head in self.q_heads])

    def v(self, hidden: Tensor) -> Tensor:
        """Hidden states (N, H) to values of states, (N,)."""
        return self._read(self.v_head, hidden).squeeze(-1)

    def target_q(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., H) to the smaller of both targets' Q values, (..., V)."""
        first, second = (self._read(head, hidden) for head in self.target_q_heads)
        return torch.minimum(first, second)

    def _read(self, head: nn.Module, hidden: Tensor) -> Tensor:
        # Under autocast too: targets are differences of values, finer than half precision holds.
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = head(hidden.to(next(self.v_head.parameters()).dtype))
        return values

    @torch.no_grad()
    def sync_targets(self, alpha: float) -> None:
        """targets <- (1 - alpha) targets + alpha heads (Polyak averaging)."""
        for target, parameter in zip(self.target_q_heads.parameters(), self.q_heads.parameters(), strict=True):
            target.lerp_(parameter.detach(), alpha)


class ValueNetwork(nn.Module):
    """A language model (``causal_lm.LanguageModel``) and its value heads as one network, so that one forward pass serves both."""

    def __init__(self, language_model: nn.Module, heads: ValueHeads) -> None:
        super().__init__()
        self.language_model = language_model
        self.heads = heads

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, read: ReadValues) -> object:
        """As ``LanguageModel.forward``, but ``read`` also gets the value heads."""
        return self.language_model(
            input_ids, attention_mask, position_ids, lambda hidden, head: read(hidden, head, self.heads)
        )


def attach(language_model: nn.Module, path: str, *, seed: int) -> ValueNetwork:
    """``language_model`` with the value heads that lie in the folder ``path``, or with new ones drawn from ``seed``.

    All of the heads but the targets are trainable. Raises UserError for heads of another model, and for damaged ones.
    """
    model: Any = language_model.model
    projection: Tensor = model.get_output_embeddings().weight
    vocab_size, hidden_size = projection.shape
    heads = ValueHeads(hidden_size, vocab_size, seed=seed)
    if (Path(path) / FILE_NAME).is_file():
        load_value_heads(heads, Path(path))
    return ValueNetwork(language_model, heads.to(projection.device))


def heads_hash(heads: ValueHeads) -> str:
    """Identity of the heads' weights, targets included."""
    state = heads.state_dict()
    return content_hash(*(part for name, value in state.items() for part in (name, value.cpu().numpy().tobytes())))


def save_value_heads(heads: ValueHeads, folder: Path) -> None:
    """Write ``value_heads.safetensors``, targets included, into ``folder``, which also holds the language model."""
    state = {name: value.detach().cpu().contiguous() for name, value in heads.state_dict().items()}
    sizes = {"hidden_size": heads.hidden_size, "vocab_size": heads.vocab_size}
    with saving(folder) as beside:
        save_file(state, beside / FILE_NAME, metadata={"value_heads": json.dumps(sizes)})


def load_value_heads(heads: ValueHeads, folder: Path) -> None:
    """Read what ``save_value_heads`` wrote into ``heads``. Raises UserError where there is no such file, or it does not fit."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise UserError(f"{path}: no value heads", "give the folder of a run with objective ilql")
    with reading(path, "value heads", "copy the folder again"):
        state = load_file(path)
    wanted = {name: tuple(value.shape) for name, value in heads.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if wanted != shapes:
        differing = min(name for name in wanted.keys() | shapes.keys() if wanted.get(name) != shapes.get(name))
        problem = f"{path}: {differing} is {shapes.get(differing)}, and the model needs {wanted.get(differing)}"
        raise UserError(problem, "these heads belong to another model: use the folder that they were trained in")
    heads.load_state_dict(state)
    check_finite(heads, str(path))


class AdvantageHead(nn.Module):
    """An output head whose logits are those of the policy, moved by ``beta`` times the advantage.

    softmax over a of (log pi(a | s) + beta (Q'(s, a) - V(s))): V(s) and the normaliser of pi are the same for all a, so
    the logits of the policy plus beta Q' have the same softmax, and at beta 0 are the policy's own, bit for bit.
    ``cap`` of the policy's logits is applied here; by ``scale`` the model multiplies what comes out.
    """

    def __init__(
        self, output_head: nn.Module, heads: ValueHeads, beta: float, *, scale: float = 1.0, cap: float | None = None
    ) -> None:
        super().__init__()
        self.output_head = output_head if cap is None else ShapedHead(output_head, scale=scale, cap=cap)
        self.heads, self.beta, self.scale = heads, beta, scale
        self.factor = 1.0 if cap is None else 1 / scale

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., H) to scores (..., V)."""
        logits: Tensor = self.output_head(hidden)
        logits = logits if self.factor == 1.0 else logits * self.factor
        return logits + (self.beta / self.scale) * self.heads.target_q(hidden)


@contextmanager
def steered(network: ValueNetwork, *, beta: float) -> Iterator[nn.Module]:
    """The language model of ``network`` sampling from softmax(log pi + beta (Q' - V)) for the length of the ``with`` block.

    What it gives samples, and scores log-probabilities, as any language model does: temperature and top-k come on top.
    Raises UserError for a ``beta`` that is negative or not finite. (Decoding of arXiv:2206.11871 with the targets' smaller
    Q value, as in github.com/CarperAI/trlx.)
    """
    if not 0 <= beta < float("inf"):
        raise UserError(f"beta: got {beta!r}", "allowed: 0 (the policy itself) or more")
    model: Any = network.language_model.model
    output_head = model.get_output_embeddings()
    scale, cap = logit_shape(model)
    model.set_output_embeddings(AdvantageHead(output_head, network.heads, beta, scale=scale, cap=cap))
    try:
        with uncapped(model):  # the head itself caps, before the advantage is added
            yield network.language_model
    finally:
        model.set_output_embeddings(output_head)
