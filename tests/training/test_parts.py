"""Parts of the loop: order, split, learning rate, average, gate, metrics file."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffusion_feedback.catalog import objective_row
from diffusion_feedback.errors import UserError
from diffusion_feedback.objectives.pairwise import dpo
from diffusion_feedback.training.ema import WeightAverage
from diffusion_feedback.training.optimizers import adafactor, adamw_8bit, learning_rate_at
from diffusion_feedback.training.order import EpochOrder, split
from diffusion_feedback.training.preference import PreferenceStep
from diffusion_feedback.training.run_folder import RunFolder
from diffusion_feedback.training.steps import PointwiseStep, StepParts
from diffusion_feedback.types.images import PreferenceBatch
from diffusion_feedback.types.training import PairLogps


def test_every_epoch_meets_every_pair_once() -> None:
    order = EpochOrder(num_examples=12, batch_size=4, seed=3)
    epochs = [[i for step in range(3 * e, 3 * e + 3) for i in order.indices(step)] for e in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [order.epoch(step) for step in range(7)] == [0, 0, 0, 1, 1, 1, 2]


def test_the_incomplete_batch_is_left_out() -> None:
    order = EpochOrder(num_examples=10, batch_size=4, seed=0)
    assert [order.epoch(step) for step in range(4)] == [0, 0, 1, 1]
    met = Counter(i for step in range(40) for i in order.indices(step))
    assert set(met) == set(range(10))
    assert all(len(order.indices(step)) == 4 for step in range(40))


def test_too_few_pairs() -> None:
    with pytest.raises(UserError, match="effective batch of 8 examples is larger than the 7 usable ones"):
        EpochOrder(num_examples=7, batch_size=8, seed=0)


@pytest.mark.parametrize(("micro_batches", "processes"), [(1, 1), (8, 1), (1, 8), (4, 2), (2, 4)])
def test_processes_cover_the_batch_once(micro_batches: int, processes: int) -> None:
    indices = list(range(100, 116))
    parts = [part for rank in range(processes) for part in split(indices, micro_batches, processes, rank)]
    assert sorted(i for part in parts for i in part) == indices
    assert {len(part) for part in parts} == {16 // (micro_batches * processes)}


def test_learning_rate_by_hand() -> None:
    def rates(scheduler: str) -> list[float]:
        return [learning_rate_at(step, peak=8.0, scheduler=scheduler, warmup_steps=4, max_steps=8) for step in range(8)]

    assert rates("constant") == [2, 4, 6, 8, 8, 8, 8, 8]
    assert rates("linear") == [2, 4, 6, 8, 8, 6, 4, 2]
    cosine = [4 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert rates("cosine") == pytest.approx([2, 4, 6, 8, *cosine])


def test_average_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([0.0]))
    average = WeightAverage({"w": weight}, decay=0.5)
    expected = 0.0
    for number, value in enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]):
        weight.data.fill_(value)
        average.update()
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
    with average.applied():
        assert weight.item() == pytest.approx(expected, rel=1e-6)
    assert weight.item() == 9.0
    copy = WeightAverage({"w": weight}, decay=0.5)
    copy.load_state_dict(average.state_dict())
    assert copy.updates == 9
    assert torch.equal(copy.average["w"], average.average["w"])


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_weights_are_as_they_were_whenever_a_signal_came(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two weights are put in place and two back; the signal comes before the one of that ``number``."""
    weights = {name: nn.Parameter(torch.tensor([1.0])) for name in ("v", "w")}
    average = WeightAverage(weights, decay=0.5)
    average.average = {name: torch.tensor([3.0]) for name in weights}
    calls, copy = iter(range(1, 9)), nn.Parameter.copy_

    def interrupted(weight: Tensor, value: Tensor) -> Tensor:
        if next(calls) == number:
            raise KeyboardInterrupt
        return copy(weight, value)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Parameter, "copy_", interrupted, raising=False)
        with pytest.raises(KeyboardInterrupt), average.applied():
            pass
    assert [weight.item() for weight in weights.values()] == [1.0, 1.0]


class Constant:
    """A likelihood that returns what it was made with; the network is not asked."""

    def __init__(self, values: list[Tensor]) -> None:
        self.values = values

    def prepare(self, batch: PreferenceBatch) -> None:
        return None

    def chosen(self, inputs: None) -> None:
        return None

    def logps(self, network: nn.Module, inputs: None) -> Tensor:
        return self.values.pop(0)

    def lengths(self, inputs: None) -> None:
        return None


def parts(values: list[Tensor], **settings: float) -> StepParts:
    from contextlib import nullcontext

    return StepParts(Constant(values), nullcontext, objective_row("dpo"), settings)  # type: ignore[arg-type]


BATCH = PreferenceBatch(["a", "b"], ["", ""], [], [], torch.tensor([1.0, 0.6]), torch.tensor([1.0, 0.5]))


def test_the_gate_lets_equal_networks_pass() -> None:
    same = torch.tensor([-0.1, -0.2, -0.3, -0.4])
    figures = PreferenceStep(parts([same, same.clone()], beta=5000.0)).gate(nn.Identity(), BATCH)
    assert figures["loss"] == pytest.approx(math.log(2))
    assert figures["max_logit_gap"] == 0


@pytest.mark.parametrize("broken", [1e-5, math.nan])
def test_the_gate_stops_other_networks(broken: float) -> None:
    same = torch.tensor([-0.1, -0.2, -0.3, -0.4])
    other = same + torch.tensor([0.0, 0.0, 0.0, broken])
    with pytest.raises(UserError, match="step 0: policy and reference differ"):
        PreferenceStep(parts([same, other], beta=5000.0)).gate(nn.Identity(), BATCH)


def test_the_gate_of_supervised_training_wants_a_finite_loss() -> None:
    def step(value: float) -> PointwiseStep:
        from contextlib import nullcontext

        return PointwiseStep(StepParts(Constant([torch.tensor([value, -1.0])]), nullcontext, objective_row("sft"), {}))  # type: ignore[arg-type]

    assert step(-3.0).gate(nn.Identity(), BATCH)["loss"] == pytest.approx(2.0)
    with pytest.raises(UserError, match="the loss is nan"):
        step(math.nan).gate(nn.Identity(), BATCH)


def test_weights_and_soft_labels_enter_the_sum() -> None:
    reference, policy = torch.tensor([-1.0, -1.0, -1.0, -1.0]), torch.tensor([-0.5, -0.9, -1.2, -1.4])
    step = PreferenceStep(parts([reference, policy], beta=2.0))
    hard = step(nn.Identity(), BATCH)
    logps = PairLogps.of_halves(policy, reference)
    losses = dpo(logps, beta=2.0)
    assert hard.loss.item() == pytest.approx(losses[0].item() + 0.5 * losses[1].item(), rel=1e-6)
    soft_parts = parts([reference, policy], beta=2.0)
    soft = PreferenceStep(dataclasses.replace(soft_parts, soft_labels=True))(nn.Identity(), BATCH)
    losses = dpo(logps, BATCH.chosen_probability, beta=2.0)
    assert soft.loss.item() == pytest.approx(losses[0].item() + 0.5 * losses[1].item(), rel=1e-6)
    assert soft.loss.item() != pytest.approx(hard.loss.item(), rel=1e-3)


def test_a_cut_last_line_of_metrics_is_forgotten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in range(4):
        folder.log({"step": step})
    with folder.metrics_path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in folder.read_metrics()] == [0, 1, 2, 3]
    folder.forget_after(2)
    assert [row["step"] for row in folder.read_metrics()] == [0, 1, 2]
    assert folder.metrics_path.read_text().endswith("}\n")


def test_half_written_checkpoints_do_not_count(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.load_checkpoint() is None
    for step in (1, 2, 3):
        folder.save_checkpoint(step, {"policy": {"w": torch.tensor([float(step)])}}, {"optimizer": {}})
    folder.prune(2)
    (tmp_path / "checkpoints" / ".step-000004.tmp").mkdir()
    assert [path.name for path in folder.checkpoints()] == ["step-000002", "step-000003"]
    found = folder.load_checkpoint()
    assert found is not None
    assert found[0] == 3
    assert found[1]["policy"]["w"].item() == 3.0


@pytest.mark.parametrize("name", ["resume/optimizer.pt", "resume/policy.safetensors", "resume/weights.json"])
def test_damaged_checkpoints_are_named(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        folder.save_checkpoint(step, {"policy": {"w": torch.zeros(2)}}, {"optimizer": {}})
    damaged = tmp_path / "checkpoints" / "step-000002"
    (damaged / name).write_bytes(b"xx")
    with pytest.raises(UserError, match=r"step-000002: the checkpoint cannot be read(.|\n)*remove the folder"):
        folder.load_checkpoint()
    shutil.rmtree(damaged)
    found = folder.load_checkpoint()
    assert found is not None
    assert found[0] == 1


def test_a_checkpoint_that_is_half_removed_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        folder.save_checkpoint(step, {"policy": {"w": torch.zeros(2)}}, {"optimizer": {}})

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.prune(1)
    assert [path.name for path in folder.checkpoints()] == ["step-000002"]
    folder.save_checkpoint(3, {"policy": {"w": torch.zeros(2)}}, {"optimizer": {}})
    assert not (tmp_path / "checkpoints" / ".step-000001.tmp").exists()


def test_what_is_refused_later_changes_nothing_in_a_run_that_goes_on(tmp_path: Path) -> None:
    """Before its checkpoint is known to fit, a lengthened run keeps its recipe, card, page and history."""
    recipe = {"training": {"max_train_steps": 2}}
    RunFolder(tmp_path).open(recipe, resume=False, overwrite=False)
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(2, {"policy": {"w": torch.zeros(2)}}, {"optimizer": {}})
    for name in ("README.md", "report.html"):
        (tmp_path / name).write_text("x")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    folder.open({"training": {"max_train_steps": 4}}, resume=True, overwrite=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept
    folder.go_on()
    assert not (tmp_path / "README.md").exists()
    assert "max_train_steps: 4" in (tmp_path / "recipe.yaml").read_text()
    assert (tmp_path / "history.jsonl").exists()


def test_the_evaluation_of_an_end_that_is_none_any_more(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (2, 3):
        folder.log({"step": step, "loss": 0.5})
        folder.log({"step": step, "validation/accuracy": 0.5})
        folder.log_heldout(step, ["a"], {"accuracy": [1.0]})
    folder.forget_evaluation(3)
    assert [(row["step"], "loss" in row) for row in folder.read_metrics()] == [(2, True), (2, False), (3, True)]
    assert list(folder.read_heldout()) == [2]


def test_damaged_metrics_are_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics_path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: not JSON"):
        folder.read_metrics()


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(1, {"policy": {"w": torch.zeros(2)}}, {"optimizer": {}})
    (tmp_path / "checkpoints" / ".step-000002.tmp").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"step-000002: the checkpoint could not be written(.|\n)*`resume`"):
        folder.save_checkpoint(2, {"policy": {"w": torch.zeros(2)}}, {"optimizer": {}})
    assert [path.name for path in folder.checkpoints()] == ["step-000001"]


def test_adafactor_moves_weights_that_start_at_zero() -> None:
    """The second factor of an adapter does; ten steps along one sign move it by about ten times the learning rate."""
    weight = nn.Parameter(torch.zeros(4, 4))
    optimizer = adafactor([weight], 1e-3)
    for _ in range(10):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weight.mean().item() == pytest.approx(-1e-2, rel=0.05)


def test_the_optional_optimizer_says_how_to_get_it() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="needs bitsandbytes"):
            adamw_8bit([nn.Parameter(torch.zeros(1))], 1e-3)
    else:
        assert adamw_8bit([nn.Parameter(torch.zeros(1))], 1e-3).param_groups[0]["lr"] == 1e-3


def test_a_recipe_written_by_hand_is_the_same_recipe(tmp_path: Path) -> None:
    """YAML 1.1 takes 1e-5 for a text; recipes are YAML 1.2, where it is a number."""
    folder = RunFolder(tmp_path / "run")
    folder.open({"objective": {"name": "dpo", "beta": 1e-5}}, resume=False, overwrite=False)
    (folder.path / "recipe.yaml").write_text("objective: {name: dpo, beta: 1e-5}")
    folder.check_free({"objective": {"name": "dpo", "beta": 1e-5}}, resume=True, overwrite=False)
    with pytest.raises(UserError, match=r"another objective.beta: 1e-05 became 2e-05"):
        folder.check_free({"objective": {"name": "dpo", "beta": 2e-5}}, resume=True, overwrite=False)


def test_a_new_run_removes_what_the_one_before_wrote_and_nothing_else(tmp_path: Path) -> None:
    recipe = {"training": {"learning_rate": 1e-5}}
    folder = RunFolder(tmp_path / "run")
    folder.open(recipe, ["transformer", "model*.safetensors"], resume=False, overwrite=False)
    for name in ("transformer/config.json", "model-1.safetensors", "adapter_config.json", "notes.txt", "../kept.txt"):
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_text("x")
    environment = folder.path / "environment.json"
    content = json.loads(environment.read_text())
    assert content["written_files"] == ["transformer", "model*.safetensors"]
    # Names that reach further are not believed.
    content["written_files"] += ["*", "../kept.txt", "/", "..", ".", 3, None]
    environment.write_text(json.dumps(content))
    folder.open(recipe, ["adapter_*"], resume=False, overwrite=True)
    left = {path.name for path in folder.path.iterdir()}
    assert left == {"recipe.yaml", "environment.json", "notes.txt"}
    assert (tmp_path / "kept.txt").exists()
    for damage in ("", "[]", '{"written_files": 3}'):
        environment.write_text(damage)
        folder.open(recipe, ["adapter_*"], resume=False, overwrite=True)
