"""Learning values: the step against loops over tables, its targets, its layout, and whole runs by the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch
from accelerate import Accelerator
from torch import nn

from diffusion_feedback.config import TrainingConfig
from diffusion_feedback.errors import UserError
from diffusion_feedback.likelihoods.tokens import TokenLikelihood
from diffusion_feedback.models.causal_lm import LanguageModel
from diffusion_feedback.models.value_heads import ValueHeads, ValueNetwork
from diffusion_feedback.objectives.pointwise import sft
from diffusion_feedback.objectives.value_learning import ilql
from diffusion_feedback.training.loop import Trainer
from diffusion_feedback.training.order import PairOrder
from diffusion_feedback.training.run_folder import RunFolder
from diffusion_feedback.training.sources import TokenSource
from diffusion_feedback.training.steps import PointwiseStep, StepParts
from diffusion_feedback.training.value_learning import ValueLearningStep, heldout_figures
from diffusion_feedback.types import TextBatch, TokenSequence, TrajectoryBatch

SETTINGS = {"gamma": 0.9, "tau": 0.8, "cql_scale": 0.3, "awac_scale": 0.7, "beta": 1.5}
VOCABULARY = 30


def trajectory(number: int, length: int, *, gap: bool = False) -> tuple[TokenSequence, np.ndarray[Any, Any]]:
    """A sequence of ``length`` tokens after a prompt of two; with a ``gap``, tokens 4 and 5 are another speaker's."""
    source = np.random.default_rng(number)
    ids = source.integers(3, VOCABULARY, 2 + length).astype(np.int32)
    scored = np.arange(2 + length) >= 2
    if gap:
        scored[4:6] = False
    return TokenSequence(ids, scored, 2), source.normal(size=int(scored.sum())).astype(np.float32)


DATA = [trajectory(n, 3 + (5 * n) % 7, gap=n % 3 == 2) for n in range(12)]


def batch_of(indices: Sequence[int], draw: int = 0, weights: Sequence[float] | None = None) -> TrajectoryBatch:
    weight = torch.ones(len(indices)) if weights is None else torch.tensor(weights)
    found = [DATA[i] for i in indices]
    return TrajectoryBatch([str(i) for i in indices], [s for s, _ in found], [r for _, r in found], weight, draw)


def build(seed: int = 0, dtype: torch.dtype = torch.float64) -> ValueNetwork:
    # GPT-2 computes in the precision of its weights; Llama's norms are in float32.
    model = tiny_text.language_model("gpt2", seed=seed, vocab_size=VOCABULARY)
    network = ValueNetwork(LanguageModel(model), ValueHeads(32, VOCABULARY, seed=seed)).to(dtype)
    with torch.no_grad():  # apart from their targets, which is where they are after some updates
        for p in network.heads.q_heads.parameters():
            p.add_(0.1)
    return network


def step_of(network: ValueNetwork, **settings: float) -> ValueLearningStep:
    return ValueLearningStep(ilql, {**SETTINGS, **settings}, TokenLikelihood(), network.heads)


def by_loops(network: ValueNetwork, indices: Sequence[int]) -> list[list[float]]:
    """The loss of every action of every trajectory, one sequence at a time, by transformers' own forward pass."""
    found = []
    for sequence, rewards in (DATA[i] for i in indices):
        with torch.no_grad():
            output = network.language_model.model(
                torch.from_numpy(sequence.ids)[None].long(), output_hidden_states=True
            )
            hidden = output.hidden_states[-1][0]
            q, v, target = network.heads.q(hidden), network.heads.v(hidden), network.heads.target_q(hidden)
        actions = np.flatnonzero(sequence.scored).tolist()
        losses = []
        for number, position in enumerate(actions):
            state, token = position - 1, int(sequence.ids[position])
            following = float(v[actions[number + 1] - 1]) if number + 1 < len(actions) else 0.0
            goal = float(rewards[number]) + SETTINGS["gamma"] * following
            gap = float(target[state, token] - v[state])
            loss = sum(float((q[head, state, token] - goal) ** 2) for head in range(2))
            loss += (SETTINGS["tau"] if gap >= 0 else 1 - SETTINGS["tau"]) * gap**2
            loss += SETTINGS["cql_scale"] * sum(
                float(q[head, state].logsumexp(0) - q[head, state, token]) for head in range(2)
            )
            logp = float(output.logits[0, state].double().log_softmax(0)[token])
            losses.append(loss + SETTINGS["awac_scale"] * np.exp(min(SETTINGS["beta"] * gap, np.log(100))) * -logp)
        found.append(losses)
    return found


def test_the_step_is_the_formula() -> None:
    network, indices, weights = build(), [0, 2, 5, 7], [1.0, 2.0, 0.5, 1.0]
    output = step_of(network)(network, batch_of(indices, weights=weights))
    expected = by_loops(network, indices)
    means = torch.tensor([np.mean(losses) for losses in expected])
    torch.testing.assert_close(output.metrics["loss"], means, rtol=1e-10, atol=0)
    assert output.weights["loss"].tolist() == [len(losses) for losses in expected]
    total = sum(weight * sum(losses) for weight, losses in zip(weights, expected, strict=True))
    assert float(output.loss.detach()) == pytest.approx(total, rel=1e-10)
    returns = [float(DATA[i][1].astype(np.float64).sum()) for i in indices]
    assert output.metrics["return"].tolist() == pytest.approx(returns, rel=1e-6)
    assert set(output.metrics) >= {"losses/q", "losses/v", "losses/cql", "losses/awac", "nll", "values/v", "values/q"}


def gradients(network: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def test_any_split_into_passes_gives_the_same_gradient() -> None:
    network = build()
    step = step_of(network)
    whole = gradients(network, step(network, batch_of(range(12))).loss)
    parts = [
        gradients(network, step(network, batch_of(part)).loss) for part in ([3, 1], [11], [0, 2, 4, 5, 6, 7, 8, 9, 10])
    ]
    assert whole.keys() == parts[0].keys()
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_values_share_of_the_trunk(share: float) -> None:
    """The trunk's gradient is that of imitation, and ``value_gradient`` times that of the values; the heads' is whole."""
    network, batch = build(), batch_of([0, 1, 2])

    def of(**settings: float) -> dict[str, torch.Tensor]:
        return gradients(network, step_of(network, **settings)(network, batch).loss)

    mixed, whole, imitation = of(value_gradient=share), of(), of(value_gradient=0.0)
    values = of(awac_scale=0.0)
    for name, value in mixed.items():
        if name.startswith("heads."):
            torch.testing.assert_close(value, whole[name], rtol=1e-10, atol=1e-12)
        else:
            torch.testing.assert_close(value, imitation[name] + share * values[name], rtol=1e-8, atol=1e-10)
    assert any(bool(values[name].any()) for name in values if not name.startswith("heads."))


def test_the_policy_is_behaviour_cloning_to_the_last_bit() -> None:
    """At beta 0 and value_gradient 0 the trunk's gradient is that of supervised fine-tuning."""
    network = build(dtype=torch.float32)
    step = step_of(network, beta=0.0, value_gradient=0.0, awac_scale=1.0)
    found = gradients(network, step(network, batch_of([0, 3, 4])).loss)
    sequences = [DATA[i][0] for i in (0, 3, 4)]
    ones = torch.ones(3)
    texts = TextBatch(["0", "3", "4"], sequences, [], ones, ones, torch.zeros(3))
    cloning = PointwiseStep(StepParts(TokenLikelihood(), None, sft, {}))
    expected = gradients(network.language_model, cloning(network.language_model, texts).loss)
    for name, value in expected.items():
        assert torch.equal(found[f"language_model.{name}"], value), name


def test_targets_follow_every_few_updates() -> None:
    network = build()
    step = step_of(network, target_alpha=0.25, target_sync_steps=3)
    targets = [p.clone() for p in network.heads.target_q_heads.parameters()]
    heads = list(network.heads.q_heads.parameters())
    for update in range(1, 8):
        step.observe(network, {})
        if update % 3 == 0:
            targets = [0.75 * old + 0.25 * new.detach() for old, new in zip(targets, heads, strict=True)]
        for expected, found in zip(targets, network.heads.target_q_heads.parameters(), strict=True):
            torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=0)
    other = build(seed=1)
    again = step_of(other, target_alpha=0.25, target_sync_steps=3)
    again.load_state_dict({name: value.clone() for name, value in step.state_dict().items()})
    assert again.updates == 7
    for saved, found in zip(
        network.heads.target_q_heads.parameters(), other.heads.target_q_heads.parameters(), strict=True
    ):
        assert torch.equal(found, saved)


def test_what_the_step_refuses() -> None:
    network = build()
    short = batch_of([0])
    wrong = TrajectoryBatch(short.pair_ids, short.sequences, [short.rewards[0][:-1]], short.weight)
    with pytest.raises(ValueError, match="3 scored tokens, 2 rewards"):
        step_of(network)(network, wrong)
    with pytest.raises(UserError, match="objective.tau"):
        step_of(network, tau=2.0).check()
    with torch.no_grad():
        network.heads.v_head[0].weight.fill_(float("nan"))
    with pytest.raises(UserError, match="step 0: the loss is nan"):
        step_of(network).gate(network, short)


def test_heldout_figures_do_not_depend_on_the_batches() -> None:
    network = build()
    step = step_of(network)
    first, second = (heldout_figures(step, network, batch_of, num_trajectories=12, batch_size=size) for size in (12, 5))
    assert first == pytest.approx(second, rel=1e-9)
    losses = [loss for losses in by_loops(network, range(12)) for loss in losses]
    assert first["loss"] == pytest.approx(float(np.mean(losses)), rel=1e-9)
    assert step.updates == 0


def fit(folder: Path, steps: int, max_tokens: int = 1000) -> dict[str, torch.Tensor]:
    """Train for ``steps`` updates, from the newest checkpoint in ``folder``; gives all weights."""
    # In float64, as Adam makes a step of any gradient above 1e-8, though it be the rounding of a zero.
    network = build()
    network.language_model.requires_grad_(True)
    trained = [p for p in network.parameters() if p.requires_grad]
    counts = [len(rewards) for _, rewards in DATA]
    source = TokenSource(PairOrder(12, 4, 0), batch_of, [len(s) for s, _ in DATA], max_tokens, counts=counts)
    step = step_of(network, target_alpha=0.5, target_sync_steps=2)
    trainer = Trainer(
        Accelerator(cpu=True),
        TrainingConfig(max_train_steps=steps, learning_rate=1e-2, checkpointing_steps=3, ema_decay=0.9),
        RunFolder(folder),
        network,
        step,
        source,
        torch.optim.AdamW(trained),
        look=lambda *_: {},
    )
    trainer.fit()
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_a_continued_run_ends_like_one_that_never_stopped(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", 8)
    fit(tmp_path / "parts", 3)
    resumed = fit(tmp_path / "parts", 8)
    assert any(name.startswith("heads.target_q_heads") for name in whole)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name
    small = fit(tmp_path / "small", 8, max_tokens=12)
    for name, value in whole.items():
        torch.testing.assert_close(small[name], value, rtol=1e-6, atol=1e-7)
