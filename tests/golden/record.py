"""Write the recorded runs again: ``python tests/golden/record.py [CELL ...]``, from anywhere.

What is recorded is a promise that results stay as they are: record again only where they are meant to change, and say so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
RECORDS = TESTS / "golden" / "records"


def prepare() -> None:
    """The circumstances of the tests: no hub, one thread, the modules of the tests."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "support")]
    import torch

    torch.set_num_threads(1)


def read_record(name: str) -> dict[str, Any]:
    """The record of the cell ``name``: ``signature`` and ``result``."""
    record: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text("utf-8"))
    return record


def _is_row(value: Any) -> bool:
    """Plain values, or some plain values beside containers of plain ones."""
    if not isinstance(value, dict | list):
        return True
    items = [item for item in (value.values() if isinstance(value, dict) else value) if isinstance(item, dict | list)]
    flat = all(not any(isinstance(v, dict | list) for v in (i.values() if isinstance(i, dict) else i)) for i in items)
    return flat and len(items) < max(1, len(value))


def as_text(value: Any, indent: str = "") -> str:
    """JSON with one line for each row of a table, so that a change of a record reads as one of the table."""
    if _is_row(value):
        return json.dumps(value, ensure_ascii=False)
    inner = indent + " "
    if isinstance(value, list):
        return "[\n" + ",\n".join(inner + as_text(item, inner) for item in value) + f"\n{indent}]"
    items = (f"{inner}{json.dumps(key, ensure_ascii=False)}: {as_text(item, inner)}" for key, item in value.items())
    return "{\n" + ",\n".join(items) + f"\n{indent}}}"


def main() -> None:
    prepare()
    from golden.cells import CELLS, result_of
    from golden.inputs import write_inputs
    from golden.snapshot import signature

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cells", nargs="*", help="names of cells (default: all)")
    chosen = parser.parse_args().cells or list(CELLS)
    with tempfile.TemporaryDirectory() as scratch:
        inputs = write_inputs(Path(scratch) / "inputs")
        for name in chosen:
            place = Path(scratch) / name
            place.mkdir()
            record = {"signature": signature(), "result": result_of(name, inputs, place / "out")}
            RECORDS.mkdir(exist_ok=True)
            (RECORDS / f"{name}.json").write_text(as_text(record) + "\n", "utf-8")


if __name__ == "__main__":
    main()
