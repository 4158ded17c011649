"""Weights of strangers: code in them never runs, and whatever else stands in the file is named."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffusion_feedback.errors import UserError
from diffusion_feedback.scorers.checkpoints import fill, read_checkpoint
from diffusion_feedback.weights import state_hash

STATE = {"b.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.5, -2.0], dtype=torch.float16)}


class Payload:
    """Unpickled by Python's own reader, it makes the file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_reads_torch_files(tmp_path: Path, nested: bool, old: bool) -> None:
    """Of both of torch's formats, bare or as training scripts write them."""
    content = {"epoch": 3, "state_dict": STATE, "optimizer": {"lr": 0.1}} if nested else STATE
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
    assert same(read_checkpoint(tmp_path / "w.pt"))


def test_reads_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    assert same(read_checkpoint(str(tmp_path / "w.safetensors")))


@pytest.mark.parametrize("form", ["zip", "old", 2, 5])
def test_code_does_not_run(tmp_path: Path, form: str | int) -> None:
    """In torch's two formats, and in pickles of Python's own protocols, the last of which torch does not even know."""
    path, trace = tmp_path / "w.pt", tmp_path / "trace"
    if isinstance(form, int):
        path.write_bytes(pickle.dumps({"extra": Payload(trace)}, protocol=form))
    else:
        content = {"state_dict": STATE, "extra": Payload(trace)}
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    named = r"refused, it holds code or objects besides weights \((posix|nt).mkdir\)"
    with pytest.raises(UserError, match="not a checkpoint" if form == 5 else named) as error:
        read_checkpoint(path)
    assert str(path) in error.value.problem
    assert "weights_only" not in str(error.value)
    assert not trace.exists()
    # It would have worked: what protects is the reader, not a payload that does nothing.
    pickle.loads(path.read_bytes()) if isinstance(form, int) else torch.load(path, weights_only=False)
    assert trace.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(
        UserError, match="refused, it holds code or objects besides weights .torch.nn.modules.linear.Linear"
    ):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("w.pt", b""),
        ("w.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"),
        ("w.pt", b"<!doctype html><html>404</html>"),
        ("w.pt", b"hello\n"),
        ("w.pt", b"PK\x03\x04 and no more"),
        ("w.safetensors", b""),
        ("w.safetensors", b"hello, no tensors here"),
    ],
)
def test_other_files_are_no_checkpoints(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a checkpoint") as error:
        read_checkpoint(path)
    assert str(path) in error.value.problem
    assert "download" in error.value.remedy


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_half_a_file_is_no_checkpoint(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    save_file(STATE, path) if name.endswith("safetensors") else torch.save(STATE, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="not a checkpoint"):
        read_checkpoint(path)


def test_any_bytes_are_refused_or_read(tmp_path: Path) -> None:
    """No bytes get through as another error than the user's."""
    rng = random.Random(0)
    path = tmp_path / "w.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    good = path.read_bytes()
    refused = 0
    for number in range(300):
        damaged = bytearray(good) if number % 2 else bytearray(b"\x80\x02" + rng.randbytes(rng.randrange(1, 60)))
        for _ in range(3):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except UserError:
            refused += 1
    assert refused > 200


def test_another_zip_file_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match="not a checkpoint"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "content", [{}, [torch.zeros(2)], torch.zeros(2), {"a": 1.0}, {"state_dict": {}}, {"state_dict": {"a": [1]}}]
)
def test_no_tensors_by_name(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        read_checkpoint(tmp_path / "w.pt")


def test_places_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="w.pt: no such file"):
        read_checkpoint(tmp_path / "w.pt")
    with pytest.raises(UserError, match="is a folder"):
        read_checkpoint(tmp_path)


def layer() -> nn.Linear:
    return nn.Linear(3, 2)


def test_fill_copies_every_tensor() -> None:
    """Into the module's own precision, under the names of the file."""
    module = layer()
    fill(module, {"x.weight": torch.ones(2, 3).half(), "x.bias": torch.tensor([3.0, 4.0])}, "w.pt", lambda n: f"x.{n}")
    assert module.weight.dtype == torch.float32
    assert (module.weight.tolist(), module.bias.tolist()) == ([[1.0] * 3] * 2, [3.0, 4.0])


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"x.weight": torch.zeros(2, 3)}, "1 tensors missing, 0 unknown, 0 of another shape; missing x.bias"),
        (
            {"x.weight": torch.zeros(2, 3), "x.bias": torch.zeros(2), "y": torch.zeros(1)},
            "0 tensors missing, 1 unknown, 0 of another shape; unknown y",
        ),
        (
            {"x.weight": torch.zeros(3, 2), "x.bias": torch.zeros(2)},
            r"0 unknown, 1 of another shape; x.weight is \(3, 2\), expected \(2, 3\)",
        ),
    ],
)
def test_fill_names_what_does_not_fit(state: dict[str, Tensor], named: str) -> None:
    module = layer()
    before = module.weight.clone()
    with pytest.raises(UserError, match=f"w.pt: weights of another architecture: .*{named}"):
        fill(module, state, "w.pt", lambda name: f"x.{name}")
    assert torch.equal(module.weight, before)


def test_whole_numbers_are_no_weights() -> None:
    state = {"weight": torch.zeros(2, 3, dtype=torch.int8), "bias": torch.zeros(2)}
    with pytest.raises(UserError, match="w.pt: not weights .* weight holds int8"):
        fill(layer(), state, "w.pt")


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        (torch.eye(3).to_sparse(), "float32, sparse_coo"),
        (torch.zeros(3, dtype=torch.complex64), "complex64, strided"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of torch, about tensors that it is going to drop
def test_tensors_of_other_kinds_are_named(tmp_path: Path, tensor: Tensor, named: str) -> None:
    torch.save({"w": tensor}, tmp_path / "w.pt")
    with pytest.raises(UserError) as error:
        read_checkpoint(tmp_path / "w.pt")
    assert named in str(error.value)


def test_hash_is_of_the_content(tmp_path: Path) -> None:
    """The same in any order and of any file format; another for any other name, number, shape or precision."""
    save_file(STATE, tmp_path / "w.safetensors")
    torch.save({"state_dict": dict(reversed(STATE.items()))}, tmp_path / "w.pt")
    found = state_hash(STATE)
    assert found == state_hash(read_checkpoint(tmp_path / "w.pt"))
    assert found == state_hash(read_checkpoint(tmp_path / "w.safetensors"))
    assert found == state_hash({**STATE, "b.weight": STATE["b.weight"].T.contiguous().T})
    weight = STATE["b.weight"]
    others: list[dict[str, Tensor]] = [
        {"a.bias": STATE["a.bias"], "c.weight": weight},
        {**STATE, "b.weight": weight + torch.eye(2, 3) * 1e-6},
        {**STATE, "b.weight": weight.reshape(3, 2)},
        {**STATE, "b.weight": weight.double()},
        {"b.weight": weight},
    ]
    assert len({found, *map(state_hash, others)}) == 1 + len(others)
    assert (len(found), set(found) <= set("0123456789abcdef")) == (12, True)
