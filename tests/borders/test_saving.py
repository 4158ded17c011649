"""A result is whole or the one before it: whatever stops a save, no file under a final name is half-written."""

from __future__ import annotations

import hashlib
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny_clip
import tiny_text
import torch

from diffusion_feedback.catalog import resolve
from diffusion_feedback.errors import UserError
from diffusion_feedback.models import causal_lm, clip, lora, reward_model, value_heads
from diffusion_feedback.models.saving import saving
from diffusion_feedback.types.models import AdapterSettings

Save = Callable[[Path], None]


def _image(folder: Path, tuning: str) -> Save:
    denoiser = resolve("family", "sd")(str(folder))
    if tuning == "lora":
        lora.add(denoiser.network, AdapterSettings(rank=4, alpha=8, targets=["attention", "feed_forward"], seed=0))
    return lambda place: denoiser.save(denoiser.network, place)


def _text(folder: Path, tuning: str) -> Save:
    model = causal_lm.load(str(folder))
    if tuning == "lora":
        lora.add(model.network.model, AdapterSettings(rank=8, alpha=8, targets=["q_proj", "v_proj"], seed=0))
    return lambda place: model.save(model.network, place)


def _reward(folder: Path) -> Save:
    model = reward_model.load(str(folder))
    return lambda place: model.save(model.network, place)


def _clip(folder: Path) -> Save:
    scorer = clip.load(str(tiny_clip.save_clip(folder)))
    return lambda place: scorer.save(scorer.network, place)


def _heads() -> Save:
    heads = value_heads.ValueHeads(32, 50)
    return lambda place: value_heads.save_value_heads(heads, place)


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory, tiny_pipelines: dict[str, Path]) -> dict[str, Save]:
    """Whatever of ours writes weights."""
    folder = tmp_path_factory.mktemp("writers")
    text = tiny_text.save_tiny_lm(folder / "lm")
    return {
        "image lora": _image(tiny_pipelines["sd"], "lora"),
        "image full": _image(tiny_pipelines["sd"], "full"),
        "text lora": _text(text, "lora"),
        "text full": _text(text, "full"),
        "reward": _reward(text),
        "clip": _clip(folder / "clip"),
        "value heads": _heads(),
    }


WRITERS = ["image lora", "image full", "text lora", "text full", "reward", "clip", "value heads"]


def state(folder: Path) -> dict[str, str]:
    """All files of ``folder`` with the hashes of what they hold."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """The system refuses every file beyond ``size`` bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 60, 1500, 6000])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_message_and_changes_nothing(
    writer: str, size: int, writers: dict[str, Save], tmp_path: Path
) -> None:
    save, folder = writers[writer], tmp_path / "run"
    save(folder)
    (folder / "metrics.jsonl").write_text("{}\n")
    before = state(folder)
    with full_after(size), pytest.raises(UserError, match="could not be written") as raised:
        save(folder)
    assert str(folder) in raised.value.problem
    assert raised.value.remedy.endswith("run it again")  # an export has no `resume`; a run says it of itself
    assert state(folder) == before
    save(folder)  # once there is room; safetensors orders the remarks in a header as it pleases
    assert state(folder).keys() == before.keys()


@pytest.mark.parametrize("writer", WRITERS)
def test_others_may_read_what_the_mask_lets_them(writer: str, writers: dict[str, Save], tmp_path: Path) -> None:
    writers[writer](tmp_path)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert stat.S_IMODE(file.stat().st_mode) & 0o044 == 0o044, file


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, torch.OutOfMemoryError])
def test_what_is_no_fault_of_the_disk_passes(failure: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("old")

    def save() -> None:
        with saving(tmp_path) as beside:
            (beside / "weights").write_text("half")
            raise failure

    with pytest.raises(failure):
        save()
    assert state(tmp_path).keys() == {"weights"}
    assert (tmp_path / "weights").read_text() == "old"


def test_leftovers_of_a_kill_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".saving.tmp" / "unet").mkdir(parents=True)
    (tmp_path / ".saving.tmp" / "unet" / "half").write_text("half")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "old").write_text("old")
    with saving(tmp_path) as beside:
        (beside / "unet").mkdir()
        (beside / "unet" / "new").write_text("new")
        (beside / "model_index.json").write_text("{}")
    assert state(tmp_path).keys() == {"unet/new", "model_index.json"}


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="could not be written"), saving(tmp_path / "run") as beside:
        (beside / "x").write_text("")
