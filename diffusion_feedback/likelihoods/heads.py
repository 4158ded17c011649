"""Log-probabilities of given tokens under an output head, without holding all logits.

The head's product with N positions, N x V, is the largest tensor of a small language model's step. It is made in tiles of
the vocabulary here, whose running maximum and sum of exponentials give the exact log-sum-exp (Milakov and Gimelshein,
arXiv:1805.02867). What is kept for the backward pass follows from what has to be trained:

- a frozen head: nothing; the gradient of each position is gathered along with the sum, as it does not depend on others;
- a trained head, logits within a budget: the logits, so that the product is made once;
- a trained head, beyond it: nothing; each tile is made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..types.heads import ShapedHead

# Logits up to this many bytes are kept for the backward pass.
KEPT_BYTES = 1 << 28
# A tile should stay in the cache of a CPU core; on an accelerator, launches cost more than memory.
_TILE_BYTES = {"cpu": 1 << 23}
_NARROWEST = 1024


def token_logps(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    kept_bytes: int = KEPT_BYTES,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (N,) of ``targets`` (N,) under softmax(head(hidden) / temperature), and entropies (N,), nats.

    ``hidden`` (N, H); float64 stays, all else is summed in float32. ``entropy``: also give the distributions' entropies,
    else None. Both are differentiable, once. ``kept_bytes``: see above.
    """
    bare = head.head if isinstance(head, ShapedHead) else head
    # A head of another kind (with adapters, or whose weights are elsewhere) is called as a module: only a bare one can be
    # cut into tiles.
    if type(bare) is not nn.Linear or bare.weight.ndim != 2:
        return _of_any_head(hidden, head, targets, temperature=temperature, entropy=entropy, kept_bytes=kept_bytes)
    weight: Tensor = bare.weight
    bias: Tensor | None = bare.bias
    if not torch.is_grad_enabled():  # else logits would be kept for a backward pass that never comes
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    if torch.is_autocast_enabled(hidden.device.type):
        half = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(half), weight.to(half)
    divisor, cap = _shape_of(head, temperature)
    if divisor != 1.0:
        hidden = hidden / divisor
        bias = bias / divisor if bias is not None else None
    hidden = hidden.to(weight.dtype)
    logps, entropies = _TiledLogps.apply(hidden, weight, bias, targets, entropy, kept_bytes, cap)
    return logps, entropies if entropy else None


def _shape_of(head: nn.Module, temperature: float) -> tuple[float, float | None]:
    """What hidden states are divided by before the product, and the cap of what comes out, None for none.

    The logits are then z = h w + b, or cap tanh(z), and in them are the head's scale and cap and the temperature.
    """
    if not isinstance(head, ShapedHead):
        return temperature, None
    if head.cap is None:
        return temperature / head.scale, None
    return head.cap / head.scale, head.cap / temperature


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _tiles(rows: int, vocabulary: int, device: torch.device, kept_bytes: int) -> Iterator[slice]:
    width = max(_NARROWEST, _TILE_BYTES.get(device.type, kept_bytes) // (4 * max(rows, 1)))
    return (slice(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, summed and given in float32 at least.

    A product of two halves would be rounded before tiles are added up, which biases the sum.
    """
    wide = _wide(left.dtype)
    if left.dtype == wide:
        return left @ right
    is_cuda = left.device.type == "cuda"
    return torch.mm(left, right, out_dtype=wide) if is_cuda else left.to(wide) @ right.to(wide)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, tile: slice, cap: float | None) -> Tensor:
    logits = _product(hidden, weight[tile].t())
    if bias is not None:
        logits.add_(bias[tile])
    return logits if cap is None else logits.tanh_().mul_(cap)


def _bend(logits: Tensor, cap: float) -> Tensor:
    """d (cap tanh z) / dz, from cap tanh z."""
    return cap - logits.square() / cap


class _TiledLogps(torch.autograd.Function):
    """(hidden (N, H), weight (V, H), bias (V,) | None, targets (N,)) to log-probabilities and entropies, each (N,)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        entropy: bool,
        kept_bytes: int,
        cap: float | None,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
            rows, vocabulary = len(hidden), len(weight)
            wide = _wide(hidden.dtype)
            is_direct = needs_hidden and not (needs_weight or needs_bias or entropy)
            is_kept = ctx.needs_input_grad[0] or needs_weight or needs_bias
            is_kept = is_kept and not is_direct and rows * vocabulary * wide.itemsize <= kept_bytes
            top = hidden.new_full((rows, 1), -torch.inf, dtype=wide)
            total, dot = (torch.zeros_like(top) for _ in range(2))
            pull = hidden.new_zeros(hidden.shape, dtype=wide) if is_direct else None
            chosen_logits = torch.zeros_like(top)
            kept: list[Tensor] = []
            for tile in _tiles(rows, vocabulary, hidden.device, kept_bytes):
                logits = _logits(hidden, weight, bias, tile, cap)
                bend = _bend(logits, cap) if cap is not None and pull is not None else None
                if is_kept:
                    kept.append(logits)
                is_here = (targets >= tile.start) & (targets < tile.stop)
                local = (targets - tile.start).clamp(0, logits.shape[1] - 1)[:, None]
                chosen_logits += torch.where(is_here[:, None], logits.gather(1, local), 0)
                new_top = torch.maximum(top, logits.amax(1, keepdim=True))
                shrink = (top - new_top).exp()
                shifted = logits - new_top if is_kept else logits.sub_(new_top)
                if entropy:
                    # sum of e^(z - top) (z - top): old parts shrink, and are measured from the new top.
                    dot = shrink * (dot + torch.where(total > 0, (top - new_top) * total, 0))
                    share = shifted.exp()
                    dot += (share * shifted).sum(1, keepdim=True)
                else:
                    share = shifted.exp_()
                total = total * shrink + share.sum(1, keepdim=True)
                if pull is not None:
                    slope = share if bend is None else share * bend
                    pull.mul_(shrink).add_(_product(slope.to(weight.dtype), weight[tile]))
                top = new_top
            normaliser = top + total.log()
            entropies = total.log() - dot / total if entropy else torch.zeros_like(total)
            if pull is not None:
                own = weight[targets].to(wide)
                pull = (own if cap is None else own * _bend(chosen_logits, cap)) - pull / total
            ctx.save_for_backward(hidden, weight, bias, targets, normaliser, entropies, pull, *kept)
            ctx.entropy, ctx.kept_bytes, ctx.cap = entropy, kept_bytes, cap
            return (chosen_logits - normaliser).squeeze(1), entropies.squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, push: Tensor, entropy_push: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser, entropies, pull, *kept = ctx.saved_tensors
        none = (None, None, None, None)
        if pull is not None:
            return (pull * push[:, None]).to(hidden.dtype), None, None, *none
        with torch.autocast(hidden.device.type, enabled=False):
            needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
            wide = normaliser.dtype
            to_hidden = hidden.new_zeros(hidden.shape, dtype=wide) if needs_hidden else None
            to_weight = torch.empty_like(weight) if needs_weight else None
            to_bias = torch.empty_like(bias) if needs_bias else None
            for number, tile in enumerate(_tiles(len(hidden), len(weight), hidden.device, ctx.kept_bytes)):
                logits = kept[number] if kept else _logits(hidden, weight, bias, tile, ctx.cap)
                slope = (logits - normaliser).exp_()
                if ctx.entropy:
                    # dH/dz = -p (log p + H)
                    turn = (logits - normaliser).add_(entropies).mul_(slope).mul_(entropy_push[:, None])
                    slope = slope.mul_(-push[:, None]).sub_(turn)
                else:
                    slope.mul_(-push[:, None])
                is_here = (targets >= tile.start) & (targets < tile.stop)
                local = (targets - tile.start).clamp(0, slope.shape[1] - 1)[:, None]
                slope.scatter_add_(1, local, torch.where(is_here, push, 0)[:, None])
                if ctx.cap is not None:
                    slope.mul_(_bend(logits, ctx.cap))
                if to_bias is not None:
                    to_bias[tile] = slope.sum(0)
                slope = slope.to(weight.dtype)
                if to_hidden is not None:
                    to_hidden += _product(slope, weight[tile])
                if to_weight is not None:
                    torch.mm(slope.t(), hidden, out=to_weight[tile])
            return None if to_hidden is None else to_hidden.to(hidden.dtype), to_weight, to_bias, *none


def _of_any_head(
    hidden: Tensor, head: nn.Module, targets: Tensor, *, temperature: float, entropy: bool, kept_bytes: int
) -> tuple[Tensor, Tensor | None]:
    """The same by calling the head on rows, as many at once as the budget holds; beyond it, each call is made again
    in the backward pass.
    """

    def of_rows(some: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(some)
        logits = logits.to(_wide(logits.dtype)) / temperature
        shares = torch.log_softmax(logits, 1)
        spread = -(shares.exp() * shares).sum(1) if entropy else torch.zeros_like(shares[:, 0])
        return shares.gather(1, ids[:, None]).squeeze(1), spread

    vocabulary = getattr(head, "out_features", None) or head(hidden[:1]).shape[1]
    rows = max(1, kept_bytes // (4 * vocabulary))
    if len(hidden) <= rows:
        logps, entropies = of_rows(hidden, targets)
    else:
        parts = [
            checkpoint(of_rows, some, ids, use_reentrant=False)
            for some, ids in zip(hidden.split(rows), targets.split(rows), strict=True)
        ]
        logps, entropies = (torch.cat(column) for column in zip(*parts, strict=True))
    return logps, entropies if entropy else None
