"""Tiled log-probabilities against the full softmax: values and gradients, whatever is kept and whatever is trained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diffusion_feedback.likelihoods import heads
from diffusion_feedback.types.heads import ShapedHead

ROWS, WIDTH, VOCABULARY = 7, 6, 2500  # three tiles of at least 1024 tokens
NEVER, ALWAYS = 0, 1 << 30


def problem(dtype: torch.dtype = torch.float64, *, bias: bool = False) -> tuple[Tensor, nn.Linear, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = 2 * torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64))
        if bias:
            head.bias.copy_(torch.randn(VOCABULARY, generator=generator, dtype=torch.float64))
    # The first and last token of the vocabulary, and both sides of a tile's border.
    targets = torch.tensor([0, VOCABULARY - 1, 1023, 1024, 2047, 2048, 77])
    return hidden.to(dtype).requires_grad_(), head.to(dtype), targets


def brute(
    hidden: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    shares = torch.softmax(head(hidden) / temperature, 1)
    return shares.log()[torch.arange(len(targets)), targets], -(shares * shares.log()).sum(1)


def by_hand(head: nn.Module, *, scale: float = 1.0, cap: float | None = None) -> Callable[[Tensor], Tensor]:
    """Logits as Gemma 2 (cap), Granite and Cohere (scale) make them of their head's."""

    def logits(hidden: Tensor) -> Tensor:
        scaled = head(hidden) * scale
        return scaled if cap is None else torch.tanh(scaled / cap) * cap

    return logits


def tile_narrowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_TILE_BYTES", {"cpu": 1})


@pytest.mark.parametrize("kept_bytes", [NEVER, ALWAYS])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", ["all", "hidden", "head"])
@pytest.mark.parametrize("shape", [None, {"scale": 0.3}, {"cap": 5.0}, {"scale": 2.0, "cap": 3.0}], ids=str)
def test_values_and_gradients_are_those_of_the_full_softmax(
    monkeypatch: pytest.MonkeyPatch,
    kept_bytes: int,
    entropy: bool,
    bias: bool,
    trained: str,
    shape: dict[str, float] | None,
) -> None:
    tile_narrowly(monkeypatch)
    hidden, head, targets = problem(bias=bias)
    hidden.requires_grad_(trained != "head")
    bare = head.requires_grad_(trained != "hidden")
    head = bare if shape is None else ShapedHead(bare, **shape)
    push = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    found = heads.token_logps(hidden, head, targets, temperature=0.7, entropy=entropy, kept_bytes=kept_bytes)
    expected = brute(hidden, head if shape is None else by_hand(bare, **shape), targets, 0.7)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
    loss, brute_loss = (found[0] * push).sum(), (expected[0] * push).sum()
    if entropy:
        assert found[1] is not None
        torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-12)
        loss, brute_loss = loss + (found[1] * push**2).sum(), brute_loss + (expected[1] * push**2).sum()
    else:
        assert found[1] is None
    inputs = [tensor for tensor in (hidden, *head.parameters()) if tensor.requires_grad]
    for ours, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(brute_loss, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kept_bytes", [NEVER, ALWAYS])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_those_of_finite_differences(kept_bytes: int, frozen: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=not frozen)
    targets = torch.tensor([0, 4, 2])

    def of(hidden: Tensor, weight: Tensor) -> Tensor:
        head = nn.Linear(4, 5, bias=False, dtype=torch.float64)
        del head.weight
        head.weight = weight
        found = heads.token_logps(hidden, head, targets, entropy=not frozen, kept_bytes=kept_bytes)
        return found[0] if frozen else torch.stack([part for part in found if part is not None])

    assert torch.autograd.gradcheck(of, (hidden, weight))


def extreme(hidden: Tensor) -> Tensor:
    """Logits of several hundred, where a plain exponential overflows."""
    return (hidden.detach() * 60).requires_grad_()


@pytest.mark.parametrize("kept_bytes", [NEVER, ALWAYS])
def test_large_logits_neither_overflow_nor_vanish(monkeypatch: pytest.MonkeyPatch, kept_bytes: int) -> None:
    tile_narrowly(monkeypatch)
    hidden, head, targets = problem(torch.float32)
    hidden = extreme(hidden)
    logps, entropy = heads.token_logps(hidden, head, targets, entropy=True, kept_bytes=kept_bytes)
    wide = head(hidden).double()
    torch.testing.assert_close(
        logps.double(), torch.log_softmax(wide, 1)[torch.arange(ROWS), targets], rtol=1e-5, atol=1e-3
    )
    assert entropy is not None
    (logps.sum() + entropy.sum()).backward()
    assert hidden.grad is not None
    assert bool(hidden.grad.isfinite().all())


@pytest.mark.parametrize("kept_bytes", [NEVER, ALWAYS])
@pytest.mark.parametrize("trained", [False, True])
def test_half_precision_heads_are_summed_in_float32(
    monkeypatch: pytest.MonkeyPatch, kept_bytes: int, trained: bool
) -> None:
    """Only the inputs are rounded: values and gradients are those of the same numbers in float64."""
    tile_narrowly(monkeypatch)
    hidden, head, targets = problem(torch.bfloat16)
    head.requires_grad_(trained)
    logps, _ = heads.token_logps(hidden, head, targets, kept_bytes=kept_bytes)
    assert logps.dtype == torch.float32
    wide_head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=torch.float64)
    wide_head.load_state_dict({"weight": head.weight.double()})
    wide = hidden.detach().double().requires_grad_()
    expected, _ = brute(wide, wide_head, targets, 1.0)
    torch.testing.assert_close(logps.double(), expected, rtol=1e-5, atol=1e-4)
    logps.sum().backward()
    expected.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
    torch.testing.assert_close(hidden.grad.double(), wide.grad, rtol=2e-2, atol=2e-2)
    if trained:
        torch.testing.assert_close(head.weight.grad.double(), wide_head.weight.grad, rtol=2e-2, atol=2e-2)


def test_autocast_rounds_the_product_and_nothing_after_it() -> None:
    hidden, head, targets = problem(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps, _ = heads.token_logps(hidden, head, targets)
    assert logps.dtype == torch.float32
    rounded = hidden.detach().bfloat16().double() @ head.weight.detach().bfloat16().double().t()
    expected = torch.log_softmax(rounded, 1)[torch.arange(ROWS), targets]
    torch.testing.assert_close(logps.double(), expected, rtol=1e-5, atol=1e-4)
    logps.sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.dtype == torch.float32


class Doubled(nn.Module):
    """A head that is no bare linear layer."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        return 2 * self.inner(hidden)


@pytest.mark.parametrize("kept_bytes", [NEVER, 3 * 4 * VOCABULARY, ALWAYS])
@pytest.mark.parametrize("entropy", [False, True])
def test_any_other_head_is_called_as_a_module(kept_bytes: int, entropy: bool) -> None:
    hidden, inner, targets = problem()
    head = Doubled(inner)
    found = heads.token_logps(hidden, head, targets, temperature=2.0, entropy=entropy, kept_bytes=kept_bytes)
    expected = brute(hidden, head, targets, 2.0)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
    both = zip(found, expected, strict=True)
    terms = [(ours.sum(), theirs.sum()) for ours, theirs in both if ours is not None]
    assert len(terms) == 1 + entropy
    inputs = (hidden, inner.weight)
    ours = torch.autograd.grad(sum(term[0] for term in terms), inputs)
    theirs = torch.autograd.grad(sum(term[1] for term in terms), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def peak_elements(function: Callable[[], object]) -> int:
    """The largest tensor that an operation gives."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            given = func(*args, **(kwargs or {}))
            for tensor in given if isinstance(given, tuple | list) else [given]:
                if isinstance(tensor, Tensor) and tensor.is_contiguous():
                    Watch.largest = max(Watch.largest, tensor.numel())
            return given

    with Watch():
        function()
    return Watch.largest


@pytest.mark.parametrize(("frozen", "kept_bytes"), [(True, ALWAYS), (False, NEVER)])
def test_all_logits_never_exist_at_once(monkeypatch: pytest.MonkeyPatch, frozen: bool, kept_bytes: int) -> None:
    """A head of 40 x 16 whose logits for 90 positions are far more than its weights."""
    monkeypatch.setattr(heads, "_TILE_BYTES", {"cpu": 1})
    monkeypatch.setattr(heads, "_NARROWEST", 8)
    hidden = torch.randn(90, 16, requires_grad=True)
    head = nn.Linear(16, 40, bias=False).requires_grad_(not frozen)
    targets = torch.arange(90) % 40

    def run() -> None:
        heads.token_logps(hidden, head, targets, kept_bytes=kept_bytes)[0].sum().backward()

    assert peak_elements(run) <= 90 * 16
    assert 90 * 40 > 90 * 16


def test_no_position_at_all_gives_an_empty_sum_with_a_gradient() -> None:
    hidden, head, _ = problem()
    logps, _ = heads.token_logps(hidden[:0], head, torch.zeros(0, dtype=torch.int64))
    logps.sum().backward()
    assert hidden.grad is not None
    assert float(hidden.grad.abs().sum()) == 0
