"""The objective of reward models: TRL's number, plain formulas, margins, centring, soft labels."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_feedback.errors import UserError
from diffusion_feedback.objectives.reward import bradley_terry
from diffusion_feedback.types.training import PairLogps


def scores(count: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    chosen, rejected, margin = (3 * torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(3))
    return chosen, rejected, margin.abs()


def by_trl(chosen: Tensor, rejected: Tensor, margin: Tensor | None, coefficient: float | None) -> float:
    """TRL's RewardTrainer on a model that gives these scores."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import RewardTrainer

    class Model(torch.nn.Module):
        def forward(self, **inputs: Any) -> SimpleNamespace:
            return SimpleNamespace(logits=torch.cat([chosen, rejected])[:, None])

    model = Model()
    trainer: Any = SimpleNamespace(
        model=model,
        args=SimpleNamespace(center_rewards_coefficient=coefficient),
        accelerator=SimpleNamespace(gather_for_metrics=lambda value: value, gather=lambda value: value),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {"attention_mask": torch.ones(2 * len(chosen), 3)} | ({} if margin is None else {"margin": margin})
    return float(RewardTrainer.compute_loss(trainer, model, inputs))


@pytest.mark.parametrize("coefficient", [None, 0.01, 0.5])
@pytest.mark.parametrize("with_margin", [False, True])
def test_it_is_trls_loss(coefficient: float | None, with_margin: bool) -> None:
    chosen, rejected, margin = scores()
    ours = bradley_terry(
        PairLogps(chosen, rejected),
        margin=margin,
        use_margin=with_margin,
        center_rewards_coefficient=coefficient or 0.0,
    )
    expected = by_trl(chosen, rejected, margin if with_margin else None, coefficient)
    assert float(ours.mean()) == pytest.approx(expected, rel=1e-12)


def test_by_hand() -> None:
    pair = PairLogps(torch.tensor([1.5]), torch.tensor([0.5]))
    certain = math.log1p(math.exp(-1.0))
    assert bradley_terry(pair).item() == pytest.approx(certain, abs=1e-7)
    with_margin = bradley_terry(pair, margin=torch.tensor([2.0]), use_margin=True)
    assert with_margin.item() == pytest.approx(math.log1p(math.exp(1.0)), abs=1e-7)
    centred = bradley_terry(pair, center_rewards_coefficient=0.1)
    assert centred.item() == pytest.approx(certain + 0.1 * 4.0, abs=1e-6)
    # Vote shares of 3 in 4: cross entropy less the label's entropy.
    soft = bradley_terry(pair, torch.tensor([0.75])).item()
    cross = 0.75 * certain + 0.25 * math.log1p(math.exp(1.0))
    assert soft == pytest.approx(cross + 0.75 * math.log(0.75) + 0.25 * math.log(0.25), abs=1e-6)


def test_a_margin_that_is_not_asked_for_does_not_count() -> None:
    chosen, rejected, margin = scores()
    pair = PairLogps(chosen, rejected)
    assert torch.equal(bradley_terry(pair, margin=margin), bradley_terry(pair))


def test_gradients_push_apart_and_towards_zero() -> None:
    chosen, rejected = torch.tensor([2.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    bradley_terry(PairLogps(chosen, rejected)).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad < 0 < rejected.grad
    chosen.grad = rejected.grad = None
    bradley_terry(PairLogps(chosen, rejected), center_rewards_coefficient=10.0).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad > 0
    assert rejected.grad > 0
    doubles = [value.double().requires_grad_() for value in scores(4)[:2]]
    assert torch.autograd.gradcheck(
        lambda w, r: bradley_terry(PairLogps(w, r), center_rewards_coefficient=0.3), doubles
    )  # type: ignore[no-untyped-call]


def test_half_precision_is_widened() -> None:
    chosen, rejected, margin = (value.bfloat16() for value in scores())
    losses = bradley_terry(PairLogps(chosen, rejected), margin=margin, use_margin=True, center_rewards_coefficient=0.1)
    assert losses.dtype == torch.float32


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_bad_coefficients(value: float) -> None:
    with pytest.raises(UserError, match="center_rewards_coefficient"):
        bradley_terry(PairLogps(torch.zeros(1), torch.zeros(1)), center_rewards_coefficient=value)


def test_a_margin_of_another_shape() -> None:
    with pytest.raises(ValueError, match="shape"):
        bradley_terry(PairLogps(torch.zeros(2), torch.zeros(2)), margin=torch.zeros(1), use_margin=True)
