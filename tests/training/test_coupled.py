"""Objectives that look beyond their own example are exact, however a batch is cut into passes and processes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coupled_run
import pytest
import torch
from coupled_run import OBJECTIVES, build_parts, build_source, model
from run_results import policy
from torch import Tensor, nn

from diffusion_feedback.errors import UserError
from diffusion_feedback.training.loop import Trainer
from diffusion_feedback.training.order import EpochOrder
from diffusion_feedback.training.preference import MeanDivergence, Population, PreferenceStep, RunningMean
from diffusion_feedback.training.sources import FixedBatchSource, TokenSource, UnpairedSource
from diffusion_feedback.types.training import Coupled, Gated, Observer

ROOT = Path(__file__).resolve().parents[2]


def assert_same_run(first: Path, second: Path, policy: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert policy.keys() == other.keys()
    for name, value in policy.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=2e-6, msg=name)
    for one, two in zip(coupled_run.metrics(first), coupled_run.metrics(second), strict=True):
        assert one.keys() == two.keys()
        for name in one:
            assert one[name] == pytest.approx(two[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("name", OBJECTIVES)
def test_passes_do_not_matter(tmp_path: Path, name: str) -> None:
    """1 x 8, 4 x 2 and passes under a budget of tokens: losses, gradients, weights."""
    wide = coupled_run.run(name, tmp_path / "wide", 1)
    assert len(coupled_run.metrics(tmp_path / "wide")) == coupled_run.STEPS
    for label, passes, budget in (("long", 4, None), ("budget", 1, 60)):
        other = coupled_run.run(name, tmp_path / label, passes, budget)
        assert_same_run(tmp_path / "wide", tmp_path / label, wide, other)


@pytest.mark.slow
def test_processes_do_not_matter(tmp_path: Path) -> None:
    """Two processes of two passes each, over gloo, are one process with one pass."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += [str(ROOT / "tests" / "support" / "coupled_run.py"), str(tmp_path / "both"), "2", *OBJECTIVES]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in OBJECTIVES:
        alone = coupled_run.run(name, tmp_path / "alone" / name, 1)
        both = policy(tmp_path / "both" / name)
        assert_same_run(tmp_path / "alone" / name, tmp_path / "both" / name, alone, both)


# --- kto ----------------------------------------------------------------------------------------------------------------


def test_partners_rotate_over_the_whole_step() -> None:
    """Whatever the passes and processes: the next example of the step, never the example itself."""
    order = EpochOrder(12, 6, 3)

    def partners(passes: int, processes: int, lengths: Sequence[int] | None = None) -> dict[int, int]:
        found: dict[int, int] = {}
        for rank in range(processes):
            inner: FixedBatchSource | TokenSource = FixedBatchSource(order, list, passes, processes, rank)
            if lengths is not None:
                inner = TokenSource(order, list, lengths, 20, processes, rank)
            source = UnpairedSource(inner, lambda own, others, draw: zip(own, others, strict=True))
            for batch in source.micro_batches(1):
                found.update(batch)
        return found

    indices = order.indices(1)
    expected = {index: indices[(place + 1) % 6] for place, index in enumerate(indices)}
    assert partners(1, 1) == partners(3, 1) == partners(1, 3) == partners(3, 2) == expected
    assert partners(1, 2, lengths=[5 + index % 3 for index in range(12)]) == expected
    assert all(own != other for own, other in expected.items())


def test_one_example_has_no_partner() -> None:
    with pytest.raises(UserError, match="no mismatched completion"):
        UnpairedSource(FixedBatchSource(EpochOrder(4, 1, 0), list, 1), lambda *_: None)


def test_kl_is_the_mean_over_the_global_batch() -> None:
    """By hand: log-ratios of each mismatched sequence by itself, token by token, in float64."""
    policy, reference = model(1), model(2)
    batches = list(build_source("kto", EpochOrder(32, 8, 0), 4).micro_batches(0))
    step = PreferenceStep.of(build_parts(OBJECTIVES["kto"], reference))
    placed = step.coupled(policy, batches, lambda values: [values])
    ratios = []
    for sequence in (sequence for batch in batches for sequence in batch.mismatched):
        ids = torch.from_numpy(sequence.ids.astype("int64"))[None]
        scores = []
        for network in (policy, reference):
            with torch.no_grad():
                logps = network.model.double()(input_ids=ids).logits[0].log_softmax(-1)
            network.model.float()
            scores.append(
                sum(logps[place - 1, ids[0, place]].item() for place in range(len(sequence)) if sequence.scored[place])
            )
        ratios.append(scores[0] - scores[1])
    assert placed.context.kl is not None
    assert len(ratios) == 8
    assert placed.context.kl.item() == pytest.approx(max(0.0, sum(ratios) / 8), abs=1e-5)
    # The other way round the mean has the other sign: one of the two is cut at 0.
    turned = PreferenceStep.of(build_parts(OBJECTIVES["kto"], policy)).coupled(
        reference, batches, lambda values: [values]
    )
    assert turned.context.kl is not None
    assert turned.context.kl.item() == pytest.approx(max(0.0, -sum(ratios) / 8), abs=1e-5)
    assert (
        min(placed.context.kl.item(), turned.context.kl.item())
        == 0.0
        < max(placed.context.kl.item(), turned.context.kl.item())
    )


def test_only_kto_asks_for_the_divergence() -> None:
    batches = list(build_source("kto", EpochOrder(32, 8, 0), 2).micro_batches(0))
    parts = build_parts({"name": "apo_zero_unpaired", "beta": 0.5}, model(2))
    step = PreferenceStep.of(parts)

    def never(values: Tensor) -> list[Tensor]:
        raise AssertionError(values)

    assert step.coupled(model(1), batches, never) is step
    assert "kl" not in step(model(1), batches[0]).metrics


def test_desirable_and_undesirable_figures_are_kept_apart() -> None:
    batch = next(build_source("kto", EpochOrder(32, 8, 0), 1).micro_batches(0))
    output = PreferenceStep.of(build_parts(OBJECTIVES["kto"], model(2)))(model(1), batch)
    assert 0 < int(batch.desirable.sum()) < 8
    chosen, rejected = output.weights["rewards/chosen"], output.weights["logps/rejected"]
    assert chosen.bool().tolist() == batch.desirable.tolist()
    assert rejected.bool().tolist() == (~batch.desirable).tolist()


# --- aot ----------------------------------------------------------------------------------------------------------------


def test_copies_and_order_of_examples_do_not_matter() -> None:
    """The whole batch in another order, in one or in two processes, gives every example the same loss."""
    policy, step = model(1), PreferenceStep.of(build_parts(OBJECTIVES["aot"], model(2)))
    first, second = build_source("aot", EpochOrder(16, 8, 0), 2).micro_batches(0)
    kept: list[Tensor] = []
    step.coupled(policy, [second], lambda values: [kept.append(values) or values][:1])

    def losses(placed: Any, *batches: Any) -> dict[str, float]:
        return {
            example_id: loss
            for batch in batches
            for example_id, loss in zip(batch.example_ids, placed(policy, batch).metrics["loss"].tolist(), strict=True)
        }

    here = losses(step.coupled(policy, [first, second], lambda values: [values]), first, second)
    turned = losses(step.coupled(policy, [second, first], lambda values: [values]), first, second)
    apart = losses(step.coupled(policy, [first], lambda values: [kept[0], values]), first)
    assert here == turned
    assert apart == {example_id: here[example_id] for example_id in first.example_ids}
    alone = losses(step, first)
    assert alone != apart


# --- bco ----------------------------------------------------------------------------------------------------------------


def test_the_shift_is_the_mean_of_earlier_updates() -> None:
    policy, parts = model(1), build_parts(OBJECTIVES["bco"], model(2))
    step, source = PreferenceStep.of(parts), build_source("bco", EpochOrder(16, 8, 0), 1)
    ratios: list[float] = []
    for number in range(3):
        batch = next(source.micro_batches(number))
        output = step(policy, batch)
        logps = PreferenceStep(parts).logps(policy, batch)
        shift = torch.tensor(sum(ratios) / len(ratios) if ratios else 0.0)
        expected = parts.objective(logps, shift, beta=0.5)
        torch.testing.assert_close(output.metrics["loss"], expected.detach())
        step.observe(policy, {name: float(value.mean()) for name, value in output.metrics.items()})
        assert logps.reference_chosen is not None
        assert logps.reference_rejected is not None
        ratios += (logps.policy_chosen - logps.reference_chosen).tolist()
        ratios += (logps.policy_rejected - logps.reference_rejected).tolist()
    assert step.context.mean_log_ratio == pytest.approx(sum(ratios) / len(ratios), rel=1e-5)
    assert step.context.updates == 3
    again = PreferenceStep.of(parts).context
    again.load_state_dict(step.context.state_dict())
    assert (again.mean_log_ratio, again.updates) == (step.context.mean_log_ratio, 3)


def test_a_killed_run_goes_on_with_the_same_shift(tmp_path: Path) -> None:
    whole = coupled_run.run("bco", tmp_path / "whole", 2)
    before, coupled_run.STEPS = coupled_run.STEPS, 2
    try:
        coupled_run.run("bco", tmp_path / "broken", 2)
    finally:
        coupled_run.STEPS = before
    resumed = coupled_run.run("bco", tmp_path / "broken", 2)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert coupled_run.metrics(tmp_path / "broken") == coupled_run.metrics(tmp_path / "whole")


# --- all ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gate_lets_equal_networks_pass_and_no_others(name: str) -> None:
    policy = model(1)
    batch = next(build_source(name, EpochOrder(16, 8, 0), 1).micro_batches(0))
    build = PreferenceStep.of
    changes: dict[str, Any] = {"starts_at_reference": True, "reference": lambda given: nullcontext(given)}
    step = build(build_parts(OBJECTIVES[name], policy, **changes))
    assert isinstance(step, Gated)
    figures = step.gate(policy, batch)
    assert figures["loss"] == pytest.approx(figures["expected_loss"], abs=1e-6)
    assert figures["max_logit_gap"] == 0
    away = build(build_parts(OBJECTIVES[name], model(2), starts_at_reference=True))
    with pytest.raises(UserError, match="policy and reference differ"):
        away.gate(policy, batch)
    assert set(build(build_parts(OBJECTIVES[name], model(2))).gate(policy, batch)) == {"loss"}
    elsewhere = build(replace(build_parts(OBJECTIVES[name], model(2)), starts_elsewhere=True)).gate(policy, batch)
    assert set(elsewhere) == {"loss", "expected_loss", "max_logit_gap", "max_reference_gap"}
    assert elsewhere["max_logit_gap"] > elsewhere["max_reference_gap"] == 0


def test_one_process_does_not_wait_for_its_device() -> None:
    """A tensor without values: what is asked for any fails, as it would wait for a GPU."""
    alone: Any = SimpleNamespace(accelerator=SimpleNamespace(num_processes=1))
    values = torch.ones(3, device="meta")
    (collected,) = Trainer._collect(alone, values)
    assert collected is values


def test_steps_say_what_they_are() -> None:
    contexts = {
        "aot": Population, "kto": MeanDivergence, "bco": RunningMean, "weighted_sum": RunningMean,
        "dpo": None, "apo_zero_unpaired": None, "cpo": None,
    }  # fmt: skip
    for name, context in contexts.items():
        objective = OBJECTIVES.get(name, {"name": name, "beta": 0.5})
        step = PreferenceStep.of(build_parts(objective, nn.Identity()))
        assert (None if step.context is None else type(step.context)) is context
        assert isinstance(step, Coupled)
        assert step.looks_ahead == (context in (Population, MeanDivergence))
        assert isinstance(step, Observer)
        assert bool(step.state_dict()) == (context is RunningMean)


def test_a_missing_reference_is_named() -> None:
    batch = next(build_source("kto", EpochOrder(32, 8, 0), 1).micro_batches(0))
    step = PreferenceStep.of(dataclasses.replace(build_parts(OBJECTIVES["kto"], nn.Identity()), reference=None))
    with pytest.raises(UserError, match="use a reference"):
        step(model(1), batch)
