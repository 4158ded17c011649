"""Too little memory, wherever it is met and however it is said: exit code 2 and a remedy that fits the command."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_feedback.cli import main as door
from diffusion_feedback.cli.main import COMMANDS, main
from diffusion_feedback.data.images import decode_image
from diffusion_feedback.data.places import HubData
from diffusion_feedback.data.tables import open_parquet
from diffusion_feedback.errors import UserError, is_out_of_memory, within_memory
from diffusion_feedback.foreign import reading
from diffusion_feedback.workflows.training.image_pairs import ImagePairs

MakeRecipe = Callable[..., Path]
SAID = {
    "a device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ..."),
    "a driver": RuntimeError("CUDA error: out of memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "another device": RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    "the allocator": RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    "Python": MemoryError(),
    "the system": OSError(errno.ENOMEM, "Cannot allocate memory"),
}
REMEDIES = {"train": "gradient_checkpointing", "rounds": "rounds.batch_size", "data": "a part of the data"}


@pytest.mark.parametrize("said", list(SAID))
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command(
    command: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: Any) -> None:
        raise SAID[said]

    monkeypatch.setattr(door, "_run", run)
    assert main([command]) == 2
    message = capsys.readouterr().err
    assert "out of memory" in message
    assert REMEDIES.get(command, "--batch_size") in message


@pytest.mark.parametrize("said", list(SAID))
def test_a_file_is_not_to_blame(said: str) -> None:
    """What reads strangers' files does not call them damaged where the memory is too small."""
    with pytest.raises(type(SAID[said])), reading("weights.safetensors", "weights", "write them again"):
        raise SAID[said]
    with pytest.raises(UserError, match="step 3: out of memory"), within_memory("step 3", "use less"):
        raise SAID[said]


@pytest.mark.parametrize(
    "other",
    [RuntimeError("shapes differ"), ValueError("out of memory"), UserError("out of memory"), OSError(errno.EIO, "x")],
)
def test_other_errors_are_not_taken_for_it(other: Exception) -> None:
    assert not is_out_of_memory(other)
    with pytest.raises(type(other)), within_memory("step 3", "use less"):
        raise other


def test_a_real_allocation_that_is_too_large() -> None:
    with pytest.raises(UserError, match=r"a tensor: out of memory: .*"), within_memory("a tensor", "use less"):
        torch.empty(2**60, dtype=torch.uint8)


def test_encoding(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def encode(*_: Any) -> None:
        raise SAID["a device"]

    monkeypatch.setattr(ImagePairs, "encode_ahead", encode)
    assert main(["train", "--config", str(make_recipe())]) == 2
    message = capsys.readouterr().err
    assert "encoding images and prompts: out of memory" in message
    assert "data.resolution" in message


def read_footer(folder: Path) -> None:
    (folder / "pairs.parquet").touch()
    open_parquet(folder / "pairs.parquet")


def read_image_bytes(folder: Path) -> None:
    decode_image(b"\x89PNG", "0.png")


def read_hub(folder: Path) -> None:
    len(HubData("owner/pairs", "train").data)


READERS = {
    "a footer": (read_footer, "pyarrow.parquet.ParquetFile"),
    "an image": (read_image_bytes, "PIL.Image.open"),
    "the hub": (read_hub, "datasets.load_dataset"),
}


@pytest.mark.parametrize("said", list(SAID))
@pytest.mark.parametrize("reader", list(READERS))
def test_no_reader_of_data_blames_it(reader: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, inner = READERS[reader]

    def fail(*_: Any, **settings: Any) -> None:
        raise SAID[said]

    monkeypatch.setattr(inner, fail)
    with pytest.raises(type(SAID[said])) as caught:
        read(tmp_path)
    assert is_out_of_memory(caught.value)
