"""PickScore's objective against values worked out by hand and its published formula, and what follows from being a KL."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from diffusion_feedback.objectives.pairwise import label_entropy, preference_divergence
from diffusion_feedback.objectives.ranking import own_logits, pickscore, pickscore_in_batch
from diffusion_feedback.types.training import PairLogps

LN2 = 0.6931471805599453


def pair(chosen: float, rejected: float, dtype: torch.dtype = torch.float64) -> PairLogps:
    return PairLogps(torch.tensor([chosen], dtype=dtype), torch.tensor([rejected], dtype=dtype))


def label(p: float) -> Tensor:
    return torch.tensor([p], dtype=torch.float64)


@pytest.mark.parametrize(
    ("d", "p", "expected"),
    [
        (0.0, 1.0, LN2),
        (0.5, 1.0, 0.474076984180107),  # ln(1 + e^-0.5)
        (0.5, 0.0, 0.974076984180107),  # ln(1 + e^0.5)
        (0.0, 0.5, 0.0),
        (2.0, 0.5, 0.433780830483027),  # ln cosh 1
        (math.log(3), 0.75, 0.0),  # the prediction is the label
        (0.0, 0.75, 0.130812035941137),  # 0.75 ln 1.5 + 0.25 ln 0.5
    ],
)
def test_values_by_hand(d: float, p: float, expected: float) -> None:
    assert preference_divergence(pair(10 + d, 10.0), label(p)).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_it_is_the_published_loss_for_the_published_labels(p: float) -> None:
    """label_0 CE(0) + label_1 CE(1), and log(0.5) more where the labels are equal."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 10, generator=generator, dtype=torch.float64)
    stacked = torch.stack([logits[:, :5].diagonal(), logits[:, 5:].diagonal()], -1)
    zero, one = (cross_entropy(stacked, torch.full((5,), side), reduction="none") for side in (0, 1))
    published = p * zero + (1 - p) * one + (math.log(0.5) if p == 0.5 else 0.0)
    torch.testing.assert_close(pickscore(logits, torch.full((5,), p, dtype=torch.float64)), published)


def test_hard_labels_are_the_default() -> None:
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(pickscore(logits), pickscore(logits, torch.ones(4)))
    assert torch.equal(pickscore_in_batch(logits), pickscore_in_batch(logits, torch.ones(4)))


@given(st.floats(-30, 30), st.floats(0, 1))
def test_it_is_a_divergence_whose_gradient_is_prediction_minus_label(d: float, p: float) -> None:
    scores = torch.tensor([d, 0.0], dtype=torch.float64, requires_grad=True)
    loss = preference_divergence(PairLogps(scores[:1], scores[1:]), label(p))
    assert loss.item() > -1e-12
    loss.sum().backward()
    slope = 1 / (1 + math.exp(-d)) - p
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([slope, -slope], abs=1e-12)


@given(st.floats(0.01, 0.99))
def test_the_minimum_is_zero_at_the_label(p: float) -> None:
    assert preference_divergence(pair(math.log(p / (1 - p)), 0.0), label(p)).item() == pytest.approx(0, abs=1e-12)


def test_label_entropy() -> None:
    p = torch.tensor([0.0, 0.5, 0.25, 1.0], dtype=torch.float64)
    expected = [0.0, LN2, 0.25 * math.log(4) + 0.75 * math.log(4 / 3), 0.0]
    assert label_entropy(p).tolist() == pytest.approx(expected, abs=1e-15)


def test_references_are_not_looked_at() -> None:
    alone, beside = pair(1.0, 0.5), pair(1.0, 0.5)
    beside = PairLogps(beside.policy_chosen, beside.policy_rejected, label(7.0), label(-7.0))
    assert torch.equal(preference_divergence(alone), preference_divergence(beside))


def test_half_precision_is_widened() -> None:
    logits = torch.tensor([[20.03125, 20.0]], dtype=torch.float16)
    assert pickscore(logits).dtype == torch.float32
    assert pickscore(logits).item() == pytest.approx(math.log1p(math.exp(-0.03125)), rel=1e-6)


def test_only_own_images_count() -> None:
    """Column b is prompt b's chosen image, column B + b its rejected one; the others get no gradient."""
    logits = torch.arange(18.0, dtype=torch.float64).reshape(3, 6).requires_grad_()
    own = own_logits(logits)
    assert own.policy_chosen.tolist() == [0, 7, 14]
    assert own.policy_rejected.tolist() == [3, 10, 17]
    pickscore(logits).sum().backward()
    assert logits.grad is not None
    assert (logits.grad != 0).nonzero().tolist() == [[0, 0], [0, 3], [1, 1], [1, 4], [2, 2], [2, 5]]
    assert all(logits.grad[b, b] < 0 < logits.grad[b, 3 + b] for b in range(3))


def test_in_batch_negatives_by_hand() -> None:
    """Logits are logarithms of whole numbers, so every softmax is a fraction.

    Prompt 0 finds its chosen image with 1/10, its rejected one with 3/10; they find prompt 0 with 1/6 and 3/10.
    Prompt 1: 6/26 and 8/26; 6/8 and 8/12.
    """
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], dtype=torch.float64).log()
    hard = [math.log(10) / 2 + math.log(6) / 2, math.log(26 / 6) / 2 + math.log(8 / 6) / 2]
    assert pickscore_in_batch(logits).tolist() == pytest.approx(hard, abs=1e-12)
    soft = [
        (0.5 * math.log(10) + 0.5 * math.log(10 / 3) - LN2 + 0.5 * math.log(6) + 0.5 * math.log(10 / 3)) / 2,
        (0.8 * math.log(26 / 6) + 0.2 * math.log(26 / 8) - 0.500402423538188 + 0.8 * math.log(8 / 6)
         + 0.2 * math.log(12 / 8)) / 2,
    ]  # fmt: skip
    chances = torch.tensor([0.5, 0.8], dtype=torch.float64)
    assert pickscore_in_batch(logits, chances).tolist() == pytest.approx(soft, abs=1e-12)


def test_in_batch_negatives_couple_the_pairs() -> None:
    logits = torch.zeros(3, 6, dtype=torch.float64, requires_grad=True)
    pickscore_in_batch(logits)[0].backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] < 0
    assert bool((logits.grad[0, 1:] > 0).all())
    assert bool((logits.grad[1:, 0] > 0).all())


def test_in_batch_loss_of_one_pair_is_half_the_pair_loss() -> None:
    logits = torch.tensor([[0.7, -0.2]], dtype=torch.float64)
    assert pickscore_in_batch(logits).item() == pytest.approx(pickscore(logits).item() / 2, abs=1e-15)


@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 6)])
@pytest.mark.parametrize("objective", [pickscore, pickscore_in_batch])
def test_shapes_are_checked(objective: object, shape: tuple[int, ...]) -> None:
    assert callable(objective)
    with pytest.raises(ValueError, match=r"\(B, 2B\)"):
        objective(torch.zeros(shape))


def test_labels_of_another_shape() -> None:
    with pytest.raises(ValueError, match="chosen_probability"):
        pickscore(torch.zeros(2, 4), torch.ones(3))
