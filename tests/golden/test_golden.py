"""Recorded runs: every kind of run and command still gives the losses, metrics, weights and tables that it gave.

Each cell (``cells.py``) is one tiny run through the command line; ``records/`` holds what its files held, and the
signature of the machine that wrote them. Two modes, chosen by that signature:

- **bit for bit**, where versions of the libraries, processor, its instructions and the number of threads are those of
  the record: every float, every hash of weights and of images, every token and name of a file is equal;
- **within a tolerance**, on any other machine, since sums round differently there: floats within ``TOLERANCE`` of the
  record (relative to the larger of 1 and the recorded value), of weights the norm and mean of each tensor; hashes say
  nothing; names, counts and texts are still equal, drawn completions too.

``python tests/golden/record.py [CELL ...]`` writes the records anew, where results are meant to change.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from golden.cells import CELLS, result_of
from golden.inputs import write_inputs
from golden.record import RECORDS, read_record
from golden.snapshot import differences, signature

TOLERANCE = 1e-3


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
