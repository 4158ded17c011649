"""The pointwise loss, and what is watched while training on pairs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_feedback.catalog.rows import settings_of
from diffusion_feedback.errors import UserError
from diffusion_feedback.objectives.metrics import denoising_metrics, pair_metrics, reward_scale
from diffusion_feedback.objectives.pairwise import dpo
from diffusion_feedback.objectives.pointwise import sft
from diffusion_feedback.types.training import PairLogps


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_sft_is_the_negative_log_likelihood() -> None:
    """Half the mean squared error, where logp = -1/2 error."""
    error = doubles(0.15, 0.2)
    assert sft(-0.5 * error).tolist() == [0.075, 0.1]
    assert sft(torch.tensor([1.0], dtype=torch.float16)).dtype == torch.float32
    assert settings_of(sft) == {}


def test_metrics_by_hand() -> None:
    """h_chosen = (0.1, -1, 0), h_rejected = (-0.3, 1, 0), beta = 2."""
    logps = PairLogps(doubles(-1, -3, -5), doubles(-2, -1, -5), doubles(-1.1, -2, -5), doubles(-1.7, -2, -5))
    metrics = pair_metrics(logps, beta=2.0)
    expected = {
        "rewards/chosen": [0.2, -2, 0],
        "rewards/rejected": [-0.6, 2, 0],
        "rewards/margins": [0.8, -4, 0],
        "rewards/accuracies": [1, 0, 0.5],
        "logps/chosen": [-1, -3, -5],
        "logps/rejected": [-2, -1, -5],
        "gradient_factor": [1 / (1 + math.exp(0.8)), 1 / (1 + math.exp(-4)), 0.5],
    }
    assert list(metrics) == list(expected)
    for name, values in expected.items():
        assert metrics[name].tolist() == pytest.approx(values, abs=1e-12), name


def test_reference_free_rewards_are_scaled_log_probabilities() -> None:
    metrics = pair_metrics(PairLogps(doubles(-1, -3), doubles(-2, -1)), beta=2.0)
    assert metrics["rewards/chosen"].tolist() == [-2, -6]
    assert metrics["rewards/rejected"].tolist() == [-4, -2]
    assert metrics["rewards/accuracies"].tolist() == [1, 0]


def test_half_a_reference_is_refused() -> None:
    one = torch.ones(1)
    with pytest.raises(UserError, match="reference"):
        pair_metrics(PairLogps(one, one, one, None), beta=1.0)


def test_metrics_refuse_a_bad_beta() -> None:
    with pytest.raises(UserError, match=r"objective\.beta: got -1"):
        pair_metrics(PairLogps(torch.ones(1), torch.ones(1)), beta=-1)


@given(st.lists(st.tuples(*[st.floats(-20, 20)] * 4), min_size=1, max_size=4), st.floats(0.01, 10))
def test_gradient_factor_is_what_dpo_pulls_with(rows: list[tuple[float, ...]], beta: float) -> None:
    """dL/dchosen = -beta * gradient_factor, and loss = -log(1 - gradient_factor)."""
    columns = [doubles(*column) for column in zip(*rows, strict=True)]
    columns[0].requires_grad_()
    logps = PairLogps(*columns)
    dpo(logps, beta=beta).sum().backward()
    assert columns[0].grad is not None
    factor = pair_metrics(logps, beta=beta)["gradient_factor"]
    torch.testing.assert_close(columns[0].grad, -beta * factor)


def test_metrics_are_detached_and_float32() -> None:
    parts = [torch.ones(2, dtype=torch.bfloat16, requires_grad=True) for _ in range(4)]
    both = pair_metrics(PairLogps(*parts), beta=5000.0) | denoising_metrics(PairLogps(*parts))
    free = pair_metrics(PairLogps(*parts[:2]), beta=5000.0)
    for name, values in [*both.items(), *free.items()]:
        assert not values.requires_grad, name
        assert values.dtype == torch.float32, name
        assert values.shape == (2,), name


def test_the_two_errors_apart() -> None:
    """The margin is better (z > 0) although the chosen error rose: 0.15 -> 0.16, and rejected 0.15 -> 0.18."""
    logps = PairLogps(*[-0.5 * doubles(error) for error in (0.16, 0.18, 0.15, 0.15)])
    metrics = denoising_metrics(logps)
    expected = {
        "error/chosen": 0.16,
        "error/rejected": 0.18,
        "error/chosen_change": 0.01,
        "error/rejected_change": 0.03,
    }
    assert list(metrics) == list(expected)
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value, abs=1e-12), name
    assert pair_metrics(logps, beta=5000.0)["rewards/margins"].item() > 0


def test_without_a_reference_there_is_no_change_to_tell() -> None:
    metrics = denoising_metrics(PairLogps(doubles(-0.08), doubles(-0.09)))
    assert {name: values.item() for name, values in metrics.items()} == {"error/chosen": 0.16, "error/rejected": 0.18}


def test_rewards_of_tokens_are_means() -> None:
    free = PairLogps(doubles(-6, -3), doubles(-2, -1), None, None, doubles(3, 1), doubles(2, 4))
    metrics = pair_metrics(free, beta=2.0, per_token=True)
    assert metrics["rewards/chosen"].tolist() == [-4, -6]
    assert metrics["rewards/rejected"].tolist() == [-2, -0.5]
    assert metrics["logps/chosen"].tolist() == [-6, -3]


def test_the_scale_of_rewards_is_the_first_beta() -> None:
    assert reward_scale({"beta": 3, "label_smoothing": 0.1}) == 3.0
    assert reward_scale({"delta": 1.0}) == 1.0
    assert reward_scale({"terms": [{"name": "sft", "weight": 1}, {"name": "dpo", "beta": 0.2, "weight": 1}]}) == 0.2
