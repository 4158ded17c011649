"""Commands under launchers: what cannot be done right is refused by name, before a model is loaded and anything is written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_results import policy, rows, train

from diffusion_feedback.cli.launching import SHARING, check_launch
from diffusion_feedback.cli.main import COMMANDS, main
from diffusion_feedback.errors import UserError
from diffusion_feedback.processes import check_alike, check_joined, check_plugins, num_launched

MakeRecipe = Callable[..., Path]
PLUGINS = (
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
)
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_only_commands_that_share_run_in_several_processes(
    command: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SIZES:
        monkeypatch.delenv(name, raising=False)
    check_launch(command)
    monkeypatch.setenv(size, "1")
    check_launch(command)
    monkeypatch.setenv(size, "3")
    assert num_launched() == 3
    if command in SHARING:
        check_launch(command)
        return
    with pytest.raises(UserError, match=f"dfb {command} is the work of one process, and 3 were launched"):
        check_launch(command)


@pytest.mark.parametrize("variable", [*PLUGINS, "ACCELERATE_DYNAMO_BACKEND"])
@pytest.mark.parametrize("command", ["train", "rounds", "score", "calibrate", "benchmark", "label", "demo"])
def test_plugins_are_refused(
    command: str, variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the door, with no other argument: the refusal comes before anything is asked, read or loaded."""
    compiles = variable == "ACCELERATE_DYNAMO_BACKEND"
    monkeypatch.setenv(variable, "inductor" if compiles else "true")
    if compiles and command not in ("train", "rounds", "demo"):
        check_launch(command)
        return
    assert main([command]) == 2
    message = capsys.readouterr().err
    assert variable in message
    assert ("--dynamo_backend no" if compiles else "--num_processes") in message
    for off in ("", "false", "0"):
        monkeypatch.setenv(variable, "no" if compiles else off)
        check_launch(command)


@pytest.mark.parametrize("command", ["generate", "judge", "report", "data", "demo"])
def test_the_refusal_is_a_message(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([command, "model", "--prompts", "p.txt"]) == 2
    assert "is the work of one process, and 2 were launched" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a device accelerate joins the processes")
@pytest.mark.parametrize("command", ["train", "rounds", "score"])
def test_processes_that_do_not_join(
    command: str,
    make_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """torchrun on a machine without a GPU: each process would do all of the work, into the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    prompts = [tmp_path / name for name in ("prompts.txt", "heldout.txt")]
    for number, path in enumerate(prompts):
        path.write_text("".join(f"a picture {number} {row}\n" for row in range(3)))
    if command == "rounds":
        recipe = make_recipe(data={"train": str(prompts[0]), "validation": None})
        flags = [
            "--config",
            str(recipe),
            "--rounds.heldout_prompts",
            str(prompts[1]),
            "--rounds.scorer",
            "shapes",
            "--rounds.num_rounds",
            "1",
            "--rounds.start_from",
            "initial",
        ]
    elif command == "train":
        flags = ["--config", str(make_recipe())]
    else:
        import shapes_images

        folder = shapes_images.write_folder(tmp_path / "set", 2, 1)
        flags = [str(folder), "--scorer", "shapes", "--output", str(tmp_path / "run.parquet")]
    assert main([command, *flags]) == 2
    message = capsys.readouterr().err
    assert "2 processes were launched, but each of them runs alone" in message
    assert "ACCELERATE_USE_CPU=true" in message
    assert not list(tmp_path.glob("run/[!.]*"))
    assert not (tmp_path / "run.parquet").exists()


def test_joined_processes_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    check_joined(4)


@pytest.mark.parametrize("what", ["recipe", "flags", "checkpoint", "checkpoint's content", "state"])
def test_processes_must_begin_alike(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Group:
        num_processes = 2

    own = {"recipe": "a", "flags": "b", "checkpoint": "none", "checkpoint's content": "c", "state": "d"}
    other = {**own, what: "step-000004"}
    monkeypatch.setattr("accelerate.utils.gather_object", lambda value: [*value, own])
    check_alike(Group(), own)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"process 0 has the {what} step-000004, process 1 has {own[what]}"):
        check_alike(Group(), other)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", ["4", "2"])
def test_gradients_are_never_divided_twice(
    steps: str, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_train_steps": 1, "gradient_accumulation_steps": 2, "train_batch_size": 2}
    plain = train(make_recipe("plain", training=settings, validation={"num_prompts": 0}))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", steps)
    again = train(make_recipe("again", training=settings, validation={"num_prompts": 0}))
    assert rows(plain) == rows(again)


GLOO = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
LAUNCH = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
]  # fmt: skip
# Each process sees a folder of its own, as two machines without a shared disk do.
APART = """
import os, sys
from diffusion_feedback.cli.main import main
os.makedirs(sys.argv[2] + os.environ["RANK"], exist_ok=True)
os.chdir(sys.argv[2] + os.environ["RANK"])
sys.exit(main(["train", "--config", sys.argv[1], "--output_dir", "out", "--resume"]))
"""


def test_machines_without_a_shared_disk(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Two real processes, of which one has a checkpoint and the other none: both stop by name, and nothing hangs."""
    recipe = make_recipe(training={"max_train_steps": 2, "train_batch_size": 2}, validation={"num_prompts": 0})
    done = train(recipe)
    told = (done / "recipe.yaml").read_text()
    (done / "recipe.yaml").write_text(told.replace("train_batch_size: 2", "train_batch_size: 1"))
    (done / "README.md").unlink()
    (tmp_path / "node0").mkdir()
    done.rename(tmp_path / "node0" / "out")
    before = policy(tmp_path / "node0" / "out")
    recipe.write_text(recipe.read_text().replace("train_batch_size: 2", "train_batch_size: 1"))
    script = tmp_path / "apart.py"
    script.write_text(APART)
    stopped = subprocess.run(
        [*LAUNCH, str(script), str(recipe), str(tmp_path / "node")],
        capture_output=True, text=True, env={**os.environ, **GLOO}, timeout=120,
    )  # fmt: skip
    assert stopped.returncode != 0
    assert "process 0 has the checkpoint step-000002, process 1 has none" in stopped.stderr
    assert "disk that all of them share" in stopped.stderr
    assert all(torch.equal(value, before[name]) for name, value in policy(tmp_path / "node0" / "out").items())
    assert not list((tmp_path / "node1").rglob("step-*"))


def test_training_from_python_is_refused_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="ACCELERATE_USE_FSDP is set, but training cannot use FSDP"):
        check_plugins("training", compiles=True)
