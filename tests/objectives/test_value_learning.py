"""The losses of ILQL against plain loops, and the properties that they are chosen for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from diffusion_feedback.catalog import objectives_for
from diffusion_feedback.catalog.objectives import OBJECTIVES
from diffusion_feedback.errors import UserError
from diffusion_feedback.objectives.value_learning import (
    ActionValues,
    awac_losses,
    cql_losses,
    ilql,
    next_values,
    q_losses,
    v_losses,
)

ROWS = [0, 0, 0, 1, 2, 2]
SETTINGS = {"gamma": 0.9, "tau": 0.8, "cql_scale": 0.3, "awac_scale": 0.7, "beta": 1.5}


def tables(seed: int = 0, actions: int = 6, vocabulary: int = 5) -> dict[str, Any]:
    """Random Q tables (2, N, V), policy logits, values and rewards, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "q": draw(2, actions, vocabulary),
        "target": draw(2, actions, vocabulary),
        "logits": draw(actions, vocabulary),
        "v": draw(actions),
        "rewards": draw(actions),
        "actions": torch.randint(vocabulary, (actions,), generator=generator),
    }


def values_of(found: dict[str, Any]) -> ActionValues:
    chosen = found["actions"]
    index = torch.arange(len(chosen))
    return ActionValues(
        logps=found["logits"].log_softmax(1)[index, chosen],
        q=found["q"][:, index, chosen],
        q_logsumexp=found["q"].logsumexp(2),
        v=found["v"],
        next_v=next_values(found["v"], torch.tensor(ROWS)),
        target_q=found["target"].amin(0)[index, chosen],
        rewards=found["rewards"],
    )


def by_loops(found: dict[str, Any], settings: dict[str, float]) -> list[float]:
    """The loss of every action, one number at a time."""
    losses = []
    q, target, v = found["q"].tolist(), found["target"].tolist(), found["v"].tolist()
    for n, a in enumerate(found["actions"].tolist()):
        last = n + 1 == len(ROWS) or ROWS[n + 1] != ROWS[n]
        goal = found["rewards"].tolist()[n] + settings["gamma"] * (0.0 if last else v[n + 1])
        worst = min(target[0][n][a], target[1][n][a])
        loss = 0.0
        for head in range(2):
            loss += (q[head][n][a] - goal) ** 2
            normaliser = math.log(sum(math.exp(each) for each in q[head][n]))
            loss += settings["cql_scale"] * (normaliser - q[head][n][a])
        gap = worst - v[n]
        loss += (settings["tau"] if gap >= 0 else 1 - settings["tau"]) * gap**2
        logits = found["logits"].tolist()[n]
        logp = logits[a] - math.log(sum(math.exp(each) for each in logits))
        loss += settings["awac_scale"] * math.exp(settings["beta"] * gap) * -logp
        losses.append(loss)
    return losses


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_formula(seed: int) -> None:
    found = tables(seed)
    losses = ilql(values_of(found), **SETTINGS)
    assert losses.dtype == torch.float64
    torch.testing.assert_close(losses, torch.tensor(by_loops(found, SETTINGS), dtype=torch.float64), rtol=1e-12, atol=0)


def test_the_next_value_stays_in_its_trajectory() -> None:
    v = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert next_values(v, torch.tensor(ROWS)).tolist() == [2, 3, 0, 0, 6, 0]
    assert next_values(v[:1], torch.tensor([0])).tolist() == [0]


@pytest.mark.parametrize("tau", [0.5, 0.7, 0.9, 0.99])
def test_v_is_the_expectile(tau: float) -> None:
    """The v that minimises the loss balances tau times the excess above it with 1 - tau times the excess below."""
    q = torch.tensor([-1.0, 0.0, 0.5, 2.0, 7.0], dtype=torch.float64)
    low, high = -1.0, 7.0
    zero = torch.zeros(5, dtype=torch.float64)
    for _ in range(60):  # bisect on the sign of the gradient of the loss
        middle = (low + high) / 2
        v = torch.full((5,), middle, dtype=torch.float64, requires_grad=True)
        v_losses(ActionValues(zero, zero, zero, v, zero, q, zero), tau=tau).sum().backward()
        assert v.grad is not None
        low, high = (low, middle) if float(v.grad.sum()) > 0 else (middle, high)
    above = sum(max(each - low, 0.0) for each in q.tolist())
    below = sum(max(low - each, 0.0) for each in q.tolist())
    assert tau * above == pytest.approx((1 - tau) * below, rel=1e-9)
    if tau == 0.5:
        assert low == pytest.approx(float(q.mean()), rel=1e-9)
    if tau == 0.99:
        assert low > 6


def test_gradients_reach_what_they_should() -> None:
    """Q learns from rewards and V, V from the targets, the policy from its own term; nothing flows the other way."""
    fields = ("logps", "q", "q_logsumexp", "v", "next_v", "target_q", "rewards")
    values = values_of(tables())
    leaves = {name: getattr(values, name).clone().requires_grad_() for name in fields}

    def reached(losses: torch.Tensor) -> set[str]:
        grads = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        return {name for name, grad in zip(fields, grads, strict=True) if grad is not None and bool(grad.any())}

    leafy = ActionValues(**leaves)
    assert reached(q_losses(leafy, gamma=0.9)) == {"q"}
    assert reached(v_losses(leafy, tau=0.7)) == {"v"}
    assert reached(cql_losses(leafy)) == {"q", "q_logsumexp"}
    assert reached(awac_losses(leafy, beta=1.0)) == {"logps"}


def test_beta_zero_is_behaviour_cloning() -> None:
    values = values_of(tables())
    torch.testing.assert_close(awac_losses(values, beta=0.0), -values.logps, rtol=0, atol=0)


def test_large_advantages_weigh_a_hundred_at_most() -> None:
    values = replace(values_of(tables()), target_q=torch.full((6,), 1e6, dtype=torch.float64))
    torch.testing.assert_close(awac_losses(values, beta=1.0), -100 * values.logps, rtol=1e-12, atol=0)


def test_half_precision_is_widened() -> None:
    values = values_of(tables())
    fields = ("logps", "q", "q_logsumexp", "v", "next_v", "target_q", "rewards")
    half = ActionValues(**{name: getattr(values, name).bfloat16() for name in fields})
    single = ActionValues(**{name: getattr(values, name).bfloat16().float() for name in fields})
    assert ilql(half).dtype == torch.float32
    assert torch.equal(ilql(half), ilql(single))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("gamma", 1.1), ("gamma", -0.1), ("tau", 0), ("tau", 1), ("cql_scale", -1), ("awac_scale", math.inf),
        ("beta", -1), ("beta", math.nan), ("target_alpha", 0), ("target_alpha", 1.5), ("target_sync_steps", 0),
        ("value_gradient", 2),
    ],
)  # fmt: skip
def test_settings_out_of_range(setting: str, value: float) -> None:
    with pytest.raises(UserError, match=f"objective.{setting}: got {value!r}"):
        ilql(values_of(tables()), **{setting: value})


def test_the_catalog_knows_it() -> None:
    assert OBJECTIVES["ilql"].learns_from == "trajectories"
    assert "ilql" in objectives_for("causal_lm")
    assert "ilql" not in objectives_for("reward_model")
