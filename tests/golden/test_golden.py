"""Recorded runs: every kind of run and command still gives the losses, metrics, weights and tables that it gave.

Each cell (``cells.py``) is one tiny run through the command line; ``records/`` holds what its files held, and the
signature of the machine that wrote them. Two modes, chosen by that signature:

- **bit for bit**, where versions of the libraries, processor, its instructions and the number of threads are those of
  the record: every float, every hash of weights and of images, every token and name of a file is equal;
- **within a tolerance**, on any other machine, since sums round differently there: floats within ``TOLERANCE`` of the
  record (relative to the larger of 1 and the recorded value), of weights the norm and mean of each tensor; hashes and
  accuracies say nothing; names, counts and texts are still equal, drawn completions too.

``python tests/golden/record.py [CELL ...]`` writes the records again, where results are meant to change.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.cells import CELLS, result_of
from golden.inputs import write_inputs
from golden.record import RECORDS, read_record
from golden.snapshot import differences, signature, snapshot
from safetensors.torch import save_file

# Four times the largest difference between AVX2 and AVX-512 kernels of one processor in all cells (5.5e-4).
TOLERANCE = 2e-3


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that all cells read."""
    return write_inputs(tmp_path_factory.mktemp("golden") / "inputs")


@pytest.mark.parametrize("name", CELLS)
def test_as_recorded(name: str, inputs: Path, tmp_path: Path) -> None:
    record = read_record(name)
    tolerance = None if record["signature"] == signature() else TOLERANCE
    found = list(differences(record["result"], result_of(name, inputs, tmp_path / "out"), tolerance))
    mode = "bit for bit" if tolerance is None else f"within {tolerance} of another machine's record"
    assert not found, f"{len(found)} values differ, compared {mode}:\n" + "\n".join(found[:20])


def test_a_record_for_every_cell() -> None:
    assert {path.stem for path in RECORDS.glob("*.json")} == set(CELLS)


TRAINED = [name for name in CELLS if name.startswith(("image_", "text_", "scorer_", "reward_", "ppo_", "grpo", "ilql"))]


@pytest.mark.parametrize("name", TRAINED)
def test_a_record_holds_the_whole_trajectory(name: str) -> None:
    values = read_record(name)["result"]["values"]
    steps = [row for row in values["metrics.jsonl"] if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 21))
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in steps)
    assert len({row["loss"] for row in steps}) > 10, "a run that does not move proves nothing"
    assert any(file.endswith(".safetensors") and "tensors" in content for file, content in values.items())


# --- the net can fail ------------------------------------------------------------------------------------------------


def _metrics(values: dict[str, Any], step: int = 7) -> dict[str, Any]:
    return next(row for row in values["metrics.jsonl"] if row["step"] == step and "loss" in row)


def _nudge(key: str, relative: float | None) -> Callable[[dict[str, Any]], None]:
    """Change one metric of one step, by the smallest step of a float when ``relative`` is None."""

    def change(values: dict[str, Any]) -> None:
        row = _metrics(values)
        row[key] = math.nextafter(row[key], math.inf) if relative is None else row[key] * (1 + relative)

    return change


def _other_tensor(values: dict[str, Any]) -> None:
    next(iter(values["adapter_model.safetensors"]["tensors"].values()))[2] *= 1.05


def _other_hash(values: dict[str, Any]) -> None:
    values["adapter_model.safetensors"]["sha256"] = "0" * 64


PERTURBED: dict[str, tuple[Callable[[dict[str, Any]], Any], bool]] = {
    # What is changed, and whether another machine's record would refuse it too.
    "loss by one bit": (_nudge("loss", None), False),
    "loss by a twentieth": (_nudge("loss", 0.05), True),
    "grad norm by a twentieth": (_nudge("grad_norm", 0.05), True),
    "norm of a tensor": (_other_tensor, True),
    "hash of the weights": (_other_hash, False),
    "a metric that is gone": (lambda values: _metrics(values).pop("loss"), True),
    "a metric that is new": (lambda values: _metrics(values).update(new=0.0), True),
    "a row that is gone": (lambda values: values["metrics.jsonl"].pop(), True),
    "not a number": (lambda values: _metrics(values).update(loss=math.nan), True),
    "an integer for a float": (lambda values: _metrics(values).update(loss=1), True),
    "a file that is gone": (lambda values: values.pop("metrics.jsonl"), True),
}


@pytest.mark.parametrize("change", PERTURBED)
def test_what_changes_is_refused(change: str) -> None:
    recorded = read_record("text_sft")["result"]
    got = copy.deepcopy(recorded)
    assert not list(differences(recorded, got, None))
    perturb, is_seen_elsewhere = PERTURBED[change]
    perturb(got["values"])
    assert len(list(differences(recorded, got, None))) == 1
    assert bool(list(differences(recorded, got, TOLERANCE))) == is_seen_elsewhere


def test_one_bit_of_the_weights_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    weights = {"a": torch.ones(3), "b": torch.zeros(2, 2)}
    save_file(weights, folder / "model.safetensors")
    before = snapshot(folder, {})
    assert before["values"]["model.safetensors"]["tensors"]["a"] == ["torch.float32", [3], math.sqrt(3), 1.0]
    for other in (
        {**weights, "b": torch.tensor([[0.0, 0.0], [0.0, -0.0]])},
        {"a": weights["b"], "b": weights["a"]},
        {**weights, "b": torch.zeros(4)},
        {**weights, "b": torch.zeros(2, 2, dtype=torch.int32)},
    ):
        save_file(other, folder / "model.safetensors")
        after = snapshot(folder, {})
        hashes = [found["values"]["model.safetensors"]["sha256"] for found in (before, after)]
        assert hashes[0] != hashes[1]
        assert list(differences(before, after, None))
