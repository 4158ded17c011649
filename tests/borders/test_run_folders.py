"""Every file of a run's folder under every damage: one message with the file and the way on, or the very same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_results import policy, policy_at, rows, train
from safetensors.torch import load_file, save_file
from torch import nn

from diffusion_feedback import records
from diffusion_feedback.cli.main import main
from diffusion_feedback.errors import UserError
from diffusion_feedback.models.latent_diffusion import LatentDiffusion
from diffusion_feedback.training import checkpoints

MakeRecipe = Callable[..., Path]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A place for one finished run, of which each test damages a copy."""
    return {"place": tmp_path_factory.mktemp("finished")}


@pytest.fixture
def run(make_recipe: MakeRecipe, finished: dict[str, Path], tmp_path: Path) -> Path:
    """A run of four steps with checkpoints of steps 2 and 4, ended before its result was written; recipe beside it."""
    recipe = make_recipe(
        model={"tuning": "lora", "lora_rank": 2},
        training={"max_train_steps": 4, "ema_decay": 0.9},
        validation={"num_prompts": 0},
    )
    kept = finished["place"] / "run"
    if not kept.exists():
        train(recipe).rename(kept)
        (kept / "README.md").unlink()
    told = (kept / "recipe.yaml").read_text()
    shutil.copytree(kept, tmp_path / "run")
    # The caches of a test lie in its own folder; everything else is the same.
    fields = {"output_dir": tmp_path / "run", "cache_dir": tmp_path / "cache"}
    for key, path in fields.items():
        old = next(line for line in told.splitlines() if f"{key}:" in line)
        told = told.replace(old, f"{old.split(':')[0]}: {path}")
    (tmp_path / "run" / "recipe.yaml").write_text(told)
    return tmp_path / "run"


def resumed(run: Path) -> int:
    return main(["train", "--config", str(run.parent / "run.yaml"), "--resume"])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00garbage")


def gone(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = (flipped, cut_off, emptied, garbage, gone, a_folder)
LORA = "pytorch_lora_weights.safetensors"
# The average, the weights as they are, how often the average was updated, and the optimizer's state.
PARTS = (LORA, f"raw/{LORA}", "resume/average.safetensors", "resume/optimizer.pt")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", PARTS)
def test_a_damaged_checkpoint(
    name: str, damage: Callable[[Path], None], run: Path, finished: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named, and so is the one before it; with the damaged one removed, the run ends in the same weights."""
    newest = run / "checkpoints" / "step-000004"
    damage(newest / name)
    assert resumed(run) == 2
    message = capsys.readouterr().err
    assert f"{newest}: the checkpoint cannot be read: {name}" in message
    assert f"remove the folder {newest}, and --resume goes on from step-000002" in message
    if damage is not flipped:
        return
    shutil.rmtree(newest)
    assert resumed(run) == 0
    whole = policy(finished["place"] / "run")
    assert all(torch.equal(value, whole[key]) for key, value in policy(run).items())
    assert rows(run) == rows(finished["place"] / "run")


@pytest.mark.parametrize("damage", [cut_off, emptied, garbage, a_folder])
def test_damaged_checksums(damage: Callable[[Path], None], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = run / "checkpoints" / "step-000004"
    damage(newest / checkpoints.CHECKSUMS)
    assert resumed(run) == 2
    message = capsys.readouterr().err
    assert checkpoints.CHECKSUMS in message
    assert "--resume goes on from step-000002" in message


def test_checkpoints_of_older_versions_have_no_checksums(run: Path) -> None:
    (run / "checkpoints" / "step-000004" / checkpoints.CHECKSUMS).unlink()
    with pytest.warns(UserWarning, match=r"step-000004: holds no checksums.json"):
        assert resumed(run) == 0


def test_the_only_checkpoint_is_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "checkpoints" / "step-000002")
    flipped(run / "checkpoints" / "step-000004" / "raw" / LORA)
    assert resumed(run) == 2
    assert "there is no checkpoint before it: start over with --overwrite" in capsys.readouterr().err


def changed(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Tensors that are whole, with checksums that agree, and yet not those of this run."""

    def apply(checkpoint: Path) -> None:
        tensors = load_file(checkpoint / name)
        change(tensors)
        save_file(tensors, checkpoint / name)
        sums = json.loads((checkpoint / checkpoints.CHECKSUMS).read_text())
        sums[name] = checkpoints._sha256(checkpoint / name)
        (checkpoint / checkpoints.CHECKSUMS).write_text(json.dumps(sums))

    return apply


def one_row(tensors: dict[str, Any]) -> None:
    key = max(tensors, key=lambda name: tensors[name].ndim)
    tensors[key] = tensors[key][:1].clone()  # copy_ would spread it over all rows


def not_a_number(tensors: dict[str, Any]) -> None:
    key = max(tensors, key=lambda name: tensors[name].ndim)
    tensors[key] = tensors[key] * float("nan")


def stripped(tensors: dict[str, Any]) -> None:
    del tensors[max(tensors, key=lambda name: tensors[name].ndim)]


def renamed(tensors: dict[str, Any]) -> None:
    key = max(tensors, key=lambda name: tensors[name].ndim)
    tensors["foreign"] = tensors.pop(key)


CHANGES = {
    one_row: "has the shape (1,",
    not_a_number: "holds values that are not finite",
    stripped: "1 tensors are missing",
    renamed: "1 tensors are missing",
}


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize(("name", "state"), [(f"raw/{LORA}", "policy"), (LORA, "average")])
def test_tensors_of_another_run(
    name: str, state: str, change: Callable[[dict[str, Any]], None], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(name, change)(run / "checkpoints" / "step-000004")
    assert resumed(run) == 2
    message = capsys.readouterr().err
    assert f"step-000004, {state}: " in message
    assert CHANGES[change] in message
    assert "--resume goes on from step-000002" in message


NO_CHECKPOINTS = ("step-000006.bak", "step-000006 (copy)", "step-old", "step-", "step-6", "notes.txt")


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_is_no_checkpoint_is_left_alone(is_folder: bool, run: Path, finished: dict[str, Path]) -> None:
    """Copies that people make beside checkpoints are neither loaded nor removed; halves of our own are swept."""
    places = [run / "checkpoints" / name for name in NO_CHECKPOINTS]
    for foreign in places:
        if is_folder:
            shutil.copytree(run / "checkpoints" / "step-000002", foreign)
        else:
            foreign.write_text("mine")
    half = run / "checkpoints" / ".step-000008.tmp"
    half.mkdir()
    shutil.rmtree(run / "checkpoints" / "step-000004")
    assert resumed(run) == 0
    whole = policy(finished["place"] / "run")
    kept = policy_at(run, 4)
    assert all(torch.equal(value, whole[key]) for key, value in kept.items())
    assert all(foreign.exists() for foreign in places)
    assert not half.exists()


@pytest.mark.parametrize("damage", [cut_off, emptied, garbage, a_folder])
def test_a_damaged_recipe(damage: Callable[[Path], None], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "recipe.yaml"
    damage(path)
    assert resumed(run) == 2
    message = capsys.readouterr().err
    assert str(path) in message or "--resume with another" in message  # a half may be a recipe too, of another run
    assert "->" in message


METRICS = {
    "not JSON": ('{"step": 1, "loss"', "line 2: not JSON"),
    "a list": ("[1, 2]", "line 2: no object with a step"),
    "no step": ('{"loss": 0.7}', "line 2: no object with a step"),
    "a text as step": ('{"step": "one"}', "line 2: no object with a step"),
    "nested too deep": ("[" * 100_000, "line 2: not JSON"),
}


@pytest.mark.parametrize("damage", list(METRICS))
def test_damaged_metrics(damage: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line, named = METRICS[damage]
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = line
    path.write_text("\n".join(lines) + "\n")
    assert resumed(run) == 2
    message = capsys.readouterr().err
    assert f"{path}, {named}" in message
    assert "remove the line" in message


@pytest.mark.parametrize("damage", [garbage, a_folder])
def test_metrics_that_cannot_be_read(
    damage: Callable[[Path], None], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / "metrics.jsonl")
    assert resumed(run) == 2
    assert "metrics.jsonl: could not be read as metrics" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["environment.json", "metrics.jsonl"])
def test_what_no_step_depends_on_may_be_lost(what: str, run: Path) -> None:
    (run / what).unlink()
    assert resumed(run) == 0


BEFORE: dict[str, tuple[Callable[[Path], None], bool]] = {
    "gone": (gone, True),
    "emptied": (emptied, False),
    "garbage": (garbage, False),
    "a list": (lambda path: path.write_text("[1]") and None, False),
    "without completions": (lambda path: path.write_text('{"prompts": []}') and None, True),
    "of other prompts": (lambda path: path.write_text('{"prompts": [[1]], "completions": ["x"]}') and None, True),
}


@pytest.mark.parametrize("damage", list(BEFORE))
def test_the_completions_before_training(
    damage: str, make_text_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pages of samples show them beside those of the step: the right ones, or a word that there are none."""
    recipe = make_text_recipe(training={"max_train_steps": 2, "checkpointing_steps": 1})
    folder = train(recipe)
    page, before = folder / "samples" / "step-000002.md", folder / "samples" / "before.json"
    whole = page.read_text()
    for path in (page, folder / "README.md"):
        path.unlink()
    shutil.rmtree(folder / "checkpoints" / "step-000002")
    apply, goes_on = BEFORE[damage]
    apply(before)
    assert main(["train", "--config", str(recipe), "--resume"]) == (0 if goes_on else 2)
    if goes_on:
        assert "(not drawn before training)" in page.read_text()
        assert page.read_text().count("After 2 steps") == whole.count("After 2 steps")
        return
    message = capsys.readouterr().err
    assert f"evaluation after step 2: {before}" in message
    assert "remove the file" in message
    before.unlink()
    assert main(["train", "--config", str(recipe), "--resume"]) == 0


def test_trackers_begin_anew_with_the_run(make_recipe: MakeRecipe) -> None:
    """--overwrite leaves no curves of the run before, and its own name is what people see in lists of runs."""
    recipe = make_recipe(training={"max_train_steps": 1, "report_to": "tensorboard"}, validation={"num_prompts": 0})
    folder = train(recipe)
    first = set((folder / "diffusion-feedback").rglob("events*"))
    assert first
    train(recipe, "--overwrite")
    second = set((folder / "diffusion-feedback").rglob("events*"))
    assert second
    assert not first & second


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("wandb", "wandb is not installed"),
        ("[wandb]", "wandb is not installed"),
        ("[tensorboard, wandb]", "wandb is not installed"),
        ("[wandb, tensorboard]", "wandb is not installed"),
        ("wandbb", "unknown tracker 'wandbb'"),
        ("[tensorboard, 3]", "unknown tracker"),
    ],
)
def test_trackers_are_checked_before_a_model_is_loaded(
    given: str,
    named: str,
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("accelerate.tracking._available_trackers", ["tensorboard"])
    monkeypatch.setattr(
        "diffusion_feedback.workflows.training.diffusion.base_model", lambda *_, **__: pytest.fail("loaded")
    )
    recipe = make_recipe()
    assert main(["train", "--config", str(recipe), "--training.report_to", given]) == 2
    message = capsys.readouterr().err
    assert "training.report_to" in message
    assert named in message or "3" in given
    assert not recipe.with_suffix("").exists()


def test_none_is_no_tracker(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(training={"max_train_steps": 1, "report_to": "none"}, validation={"num_prompts": 0})
    assert not (train(recipe) / "diffusion-feedback").exists()


FULL = {
    "the system": OSError(28, "No space left on device"),
    "torch": RuntimeError("[enforce fail at inline_container.cc:664] PytorchStreamWriter failed writing file"),
}


@pytest.mark.parametrize("how", list(FULL))
def test_a_full_disk_in_the_last_save(
    how: str, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything that was trained stands in the last checkpoint; the command that is told writes the result from it."""

    recipe = make_recipe(training={"max_train_steps": 2}, validation={"num_prompts": 0})
    folder, save = recipe.with_suffix(""), LatentDiffusion.save

    def full(self: LatentDiffusion, network: nn.Module, place: Path) -> None:
        if place == folder:
            raise FULL[how]
        save(self, network, place)

    with monkeypatch.context() as patch:
        patch.setattr(LatentDiffusion, "save", full)
        assert main(["train", "--config", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert f"{folder}: the result could not be written" in message
    assert "make room" in message
    assert "make room; --resume writes it from the last checkpoint" in message
    assert main(["train", "--config", str(recipe), "--resume"]) == 0
    assert (folder / "README.md").is_file()


def test_checkpoints_are_on_the_disk_before_they_bear_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file and the folder are synced before the renaming, the folder around them after it."""
    seen: list[str] = []
    rename = Path.rename
    monkeypatch.setattr(records, "sync", lambda path: seen.append(path.name))
    monkeypatch.setattr(Path, "rename", lambda self, to: [seen.append("renamed"), rename(self, to)][1])
    checkpoints.save_checkpoint(tmp_path, 3, {"policy": {"w": torch.zeros(2)}}, {"optimizer": {}})
    files = {"policy.safetensors", "weights.json", "optimizer.pt", "resume", "checksums.json"}
    assert set(seen[:6]) == {*files, ".step-000003.tmp"}
    assert seen[5:] == [".step-000003.tmp", "renamed", tmp_path.name]


def test_a_checkpoint_that_has_no_room_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save_checkpoint(tmp_path, 1, {"policy": {"w": torch.zeros(2)}}, {"optimizer": {}})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_save_state", full)
    with pytest.raises(UserError, match="No space left on device"):
        checkpoints.save_checkpoint(tmp_path, 2, {"policy": {"w": torch.zeros(2)}}, {"optimizer": {}})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
