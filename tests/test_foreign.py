"""Every failure of a stranger's files is one UserError; only what can be a hub id is asked of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_feedback.errors import UserError
from diffusion_feedback.foreign import check_exists, is_hub_id, reading

RAISED = [
    OSError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    ImportError,
    OverflowError,
    RecursionError,
    IndexError,
]


@pytest.mark.parametrize("kind", RAISED)
def test_every_failure_is_one_message(kind: type[Exception]) -> None:
    with (
        pytest.raises(UserError, match=r"(?s)a/b: could not be read as a model: .*broken.*-> save it again"),
        reading("a/b", "a model", "save it again"),
    ):
        raise kind("broken\nand more")


def test_messages_of_ours_and_lack_of_memory_pass() -> None:
    with pytest.raises(UserError, match="^ours$"), reading("a", "a model", ""):
        raise UserError("ours")
    with pytest.raises(MemoryError), reading("a", "a model", ""):
        raise MemoryError


@pytest.mark.parametrize("name", ["gpt2", "owner/name", "stabilityai/stable-diffusion-xl-base-1.0", "a-b/c.d_e"])
def test_hub_ids(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(name)
    check_exists(name, "")


@pytest.mark.parametrize(
    "name", ["runs/x", "./gpt2", "/a/b", "a/b/c", "../a", "~/x", "owner/name.safetensors", "a b", "", "x/", "a..b/c"]
)
def test_paths_are_never_asked_of_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert not is_hub_id(name)
    if name:
        with pytest.raises(UserError, match="no such file or folder"):
            check_exists(name, "check the path")
