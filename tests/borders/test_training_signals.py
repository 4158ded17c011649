"""SIGTERM and SIGINT at any moment of training: the step is finished and kept, the way on is told, nothing differs after."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import text_recipes
import torch
from run_results import assert_close, policy, rows, train
from torch import Tensor

import diffusion_feedback as dfb
from diffusion_feedback.cli.main import main
from diffusion_feedback.training.loop import Trainer
from diffusion_feedback.training.stopping import StopSignals

MakeRecipe = Callable[..., Path]
REWARDS = "def length(prompts, completions):\n    return [float(len(text)) for text in completions]\n"
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 138, signal.SIGHUP: 129}


@pytest.fixture(params=["image lora", "image full with average", "text dpo", "ppo"])
def make(request: pytest.FixtureRequest, tmp_path: Path, make_recipe: MakeRecipe, tiny_lm: Path) -> MakeRecipe:
    """Recipes of one kind of run, of four steps and no checkpoint before its last one; ``steps`` between evaluations."""
    common = {"max_train_steps": 4, "checkpointing_steps": 100}

    def write(name: str, steps: int = 0) -> Path:
        looks: dict[str, Any] = {"steps": steps, "num_prompts": 1, "num_inference_steps": 1}
        if request.param == "image lora":
            return make_recipe(name, model={"tuning": "lora", "lora_rank": 2}, training=common, validation=looks)
        if request.param == "image full with average":
            return make_recipe(name, training={**common, "ema_decay": 0.9}, validation=looks)
        looks.pop("num_inference_steps")
        if request.param == "text dpo":
            return text_recipes.write_recipe(tmp_path, tiny_lm, name, training=common, validation=looks)
        (tmp_path / "rewards.py").write_text(REWARDS)
        rollouts = {"reward": f"function={tmp_path / 'rewards.py'}:length", "num_prompts": 2, "num_generations": 2}
        return text_recipes.write_recipe(
            tmp_path,
            tiny_lm,
            name,
            objective={"name": "ppo"},
            training=common,
            validation=looks,
            rollouts={**rollouts, "num_ppo_epochs": 2, "num_mini_batches": 1, "max_new_tokens": 3},
        )

    return write


def during_step(step: int, *signums: int) -> Callable[[pytest.MonkeyPatch], None]:
    def arrange(patch: pytest.MonkeyPatch) -> None:
        update = Trainer.update

        def signalled(self: Trainer, number: int) -> dict[str, float]:
            for signum in signums if number + 1 == step else ():
                signal.raise_signal(signum)
            return update(self, number)

        patch.setattr(Trainer, "update", signalled)

    return arrange


def during_evaluation(signum: int) -> Callable[[pytest.MonkeyPatch], None]:
    def arrange(patch: pytest.MonkeyPatch) -> None:
        evaluate = Trainer._evaluate_alone

        def signalled(self: Trainer, done: int) -> None:
            if done == 2:
                signal.raise_signal(signum)
            evaluate(self, done)

        patch.setattr(Trainer, "_evaluate_alone", signalled)

    return arrange


def before_the_first_step(patch: pytest.MonkeyPatch) -> None:
    """In the evaluation of the model as it came, which some kinds of run begin with."""
    patch.setattr(Trainer, "_begin", lambda self: self._evaluate(0))
    patch.setattr(Trainer, "_evaluate_alone", lambda self, done: signal.raise_signal(signal.SIGTERM))


def outcome(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Weights, and metrics without what a clock says."""
    found = [{key: value for key, value in row.items() if key != "eps"} for row in rows(folder, "step")]
    return policy(folder), found


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """What uninterrupted runs gave, by kind."""
    return {}


MOMENTS = {
    "in a step": (during_step(2, signal.SIGTERM), signal.SIGTERM, "step-000002"),
    "in a step, from the keyboard": (during_step(3, signal.SIGINT), signal.SIGINT, "step-000003"),
    "in the last step, before a job's time is over": (during_step(4, signal.SIGUSR1), signal.SIGUSR1, "step-000004"),
    "in an evaluation": (during_evaluation(signal.SIGTERM), signal.SIGTERM, "step-000002"),
    "before the first step": (before_the_first_step, signal.SIGTERM, None),
    "twice in a step": (during_step(3, signal.SIGTERM, signal.SIGTERM), signal.SIGTERM, None),
}


@pytest.mark.parametrize("moment", list(MOMENTS))
def test_the_step_is_kept_and_resuming_ends_the_same(
    moment: str,
    make: MakeRecipe,
    request: pytest.FixtureRequest,
    whole: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arrange, signum, kept = MOMENTS[moment]
    recipe = make("broken", steps=2)
    folder = recipe.with_suffix("")
    handlers = [signal.getsignal(each) for each in CODES]
    with pytest.MonkeyPatch.context() as patch:
        arrange(patch)
        assert main(["train", "--config", str(recipe)]) == CODES[signum]
    assert [signal.getsignal(each) for each in CODES] == handlers
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert [path.name for path in (folder / "checkpoints").glob("*")] == ([kept] if kept else [])
    if kept:
        number = int(kept[-1])
        assert f"stopped by {signal.Signals(signum).name} after step {number} of 4" in message
        assert f"its checkpoint is written: {folder}/checkpoints/{kept}; `dfb" in message
        assert f"goes on from step {number}" in message
    assert ("its checkpoint is written" in message) == bool(kept)
    goes_on = message.split("`")[1]
    assert goes_on == f"dfb train --config {recipe} --resume"
    assert main(shlex.split(goes_on)[1:]) == 0
    kind = request.node.callspec.params["make"]
    if kind not in whole:
        whole[kind] = outcome(train(make("whole", steps=2)))
    weights, metrics = whole[kind]
    again = outcome(folder)
    assert all(torch.equal(value, weights[name]) for name, value in again[0].items())
    assert again[1] == metrics


def test_a_program_keeps_its_own_handlers_of_the_rarer_signals() -> None:
    """nohup ignores SIGHUP, and a launcher of jobs may handle SIGUSR1; the usual two always end the step first."""
    own: list[int] = []
    before = {each: signal.getsignal(each) for each in CODES}
    try:
        signal.signal(signal.SIGUSR1, lambda signum, frame: own.append(signum))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGHUP)
            assert (own, stop.received) == ([signal.SIGUSR1], 0)
            signal.raise_signal(signal.SIGTERM)
            assert stop.received == signal.SIGTERM
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_in_python_an_interruption_names_step_and_checkpoint(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(training={"max_train_steps": 3, "checkpointing_steps": 100}, validation={"num_prompts": 0})
    with pytest.MonkeyPatch.context() as patch:
        during_step(2, signal.SIGUSR1)(patch)
        with pytest.raises(dfb.Interrupted) as stopped:
            dfb.train(dfb.load_recipe(recipe))
    folder = recipe.with_suffix("") / "checkpoints" / "step-000002"
    assert (stopped.value.step, stopped.value.checkpoint, stopped.value.signum) == (2, folder, signal.SIGUSR1)
    assert folder.is_dir()


def test_other_threads_leave_signals_alone() -> None:
    from threading import Thread

    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with StopSignals() as stop:
            seen.append((stop.received, signal.getsignal(signal.SIGTERM)))

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, before)]


def steps_of(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("grad_norm") if path.exists() else 0


@pytest.mark.slow
def test_real_processes_at_random_moments(make_recipe: MakeRecipe) -> None:
    """Whenever a signal comes: the exit code is its own, no step is lost, and the weights are the same."""
    settings: dict[str, Any] = {
        "model": {"tuning": "lora", "lora_rank": 2},
        "training": {"max_train_steps": 50, "checkpointing_steps": 1000, "train_batch_size": 2},
        "validation": {"num_prompts": 0},
        "data": {"validation": None},
    }
    recipe = make_recipe("broken", **settings)
    folder, moments = recipe.with_suffix(""), random.Random(0)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        command = [sys.executable, "-m", "diffusion_feedback", "train", "--config", str(recipe), "--resume"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        # Under nohup SIGHUP is ignored, by the tests and so by what they start.
        ignored = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)
        signal.signal(signal.SIGHUP, ignored)
        before = steps_of(folder)
        deadline = time.monotonic() + 90
        while process.poll() is None and time.monotonic() < deadline and steps_of(folder) < before + 1:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signum)
        _, told = process.communicate(timeout=90)
        assert process.returncode == CODES[signum]
        assert "Traceback" not in told
        newest = max((folder / "checkpoints").glob("step-*"))
        assert int(newest.name[5:]) == steps_of(folder)
    train(recipe, "--resume")
    whole = train(make_recipe("whole", **settings))
    assert all(torch.equal(value, policy(whole)[name]) for name, value in policy(folder).items())
    assert rows(folder) == rows(whole)


TWO = """
import os, signal, sys
from diffusion_feedback.cli.main import main
from diffusion_feedback.training.loop import Trainer
update = Trainer.update
def signalled(self, number):
    if number == 1 and os.environ["RANK"] == "1":
        signal.raise_signal(signal.SIGTERM)
    return update(self, number)
Trainer.update = signalled
sys.exit(main(["train", "--config", sys.argv[1]]))
"""


@pytest.mark.slow
def test_one_of_two_processes_is_asked(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Both stop after the same step, with a checkpoint from which one process goes on with the whole batch."""
    changes: dict[str, Any] = {"validation": {"num_prompts": 0}, "optimizer": {"name": "adamw", "epsilon": 1.0}}
    training = {"max_train_steps": 4, "checkpointing_steps": 100, "learning_rate": 1e-4}
    recipe = make_recipe("run", training={**training, "train_batch_size": 2}, **changes)
    (tmp_path / "two.py").write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    stopped = subprocess.run(
        [*command, str(tmp_path / "two.py"), str(recipe)], capture_output=True, text=True, env=env, timeout=150
    )
    assert "stopped by SIGTERM after step 2 of 4; its checkpoint is written" in stopped.stderr
    assert "launched as before" in stopped.stderr
    folder = recipe.with_suffix("")
    assert [path.name for path in (folder / "checkpoints").glob("*")] == ["step-000002"]
    train(recipe, "--resume", "--training.train_batch_size", "4")
    whole = train(make_recipe("whole", training={**training, "train_batch_size": 4}, **changes))
    assert_close(policy(folder), policy(whole), 1e-7)


@pytest.fixture(autouse=True)
def no_handler_is_left() -> Iterator[None]:
    before = [signal.getsignal(each) for each in CODES]
    yield
    assert [signal.getsignal(each) for each in CODES] == before
