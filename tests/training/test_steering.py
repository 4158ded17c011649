"""Runs that are steered: lengthened, slowed down, cut into other passes; and what is refused, all of it by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from run_results import policy, rows, train

from diffusion_feedback.cli.main import main
from diffusion_feedback.config.continuing import CHANGES, MAY_CHANGE, change_of, compare_recipes
from diffusion_feedback.config.recipe import SECTIONS, Recipe, TrainingConfig
from diffusion_feedback.config.wording import known_keys
from diffusion_feedback.errors import UserError
from diffusion_feedback.training.history import read_history
from diffusion_feedback.training.optimizers import learning_rate_at, scheduled_rate

Make = Callable[..., Path]
LORA = {"tuning": "lora", "lora_rank": 2}
QUIET = {"num_prompts": 0}


def test_every_key_says_what_a_change_of_it_means() -> None:
    """Each key has one row, its own or that of its section, and no row is of a key that is not."""
    keys = [key for key in known_keys() if key not in SECTIONS]
    assert set(CHANGES) <= {*keys, *SECTIONS}
    assert all(change_of(key) for key in keys)
    may = {key for key in keys if change_of(key) in (*MAY_CHANGE, "passes")}
    assert {"training.learning_rate", "training.max_train_steps", "data.cache_dtype", "validation.steps"} <= may
    refused = {"training.seed", "objective", "model.lora_rank", "model.tuning", "data.train", "optimizer"}
    assert not refused & may


def other(value: Any) -> Any:
    return "another" if value is None or isinstance(value, str | list | tuple) else not value if value in (0, 1) else 7


@pytest.mark.parametrize("key", [key for key in known_keys() if "." in key])
def test_a_change_of_each_key_is_taken_or_refused_by_name(key: str) -> None:
    section, _, name = key.partition(".")
    default = next(field.default for field in dataclasses.fields(SECTIONS[section]) if field.name == name)
    old = {section: {name: 5 if default is dataclasses.MISSING else default}}
    changes = compare_recipes(old, {section: {name: other(default)}}, has_coupled_passes=False)
    one = changes.accepted if change_of(key) in (*MAY_CHANGE, "passes") else changes.refused
    assert [each.name for each in one] == [key]
    assert len(changes.accepted) + len(changes.refused) == 1
    in_batch = compare_recipes(old, {section: {name: other(default)}}, has_coupled_passes=True)
    assert bool(in_batch.accepted) == (change_of(key) in MAY_CHANGE)


def test_a_key_that_the_run_did_not_know_has_its_default() -> None:
    assert (
        compare_recipes(
            {}, {"training": {"lr_power": 1.0}, "model": {"lora_rank": 8}}, has_coupled_passes=False
        ).accepted
        == ()
    )
    assert len(compare_recipes({}, {"model": {"lora_rank": 9}}, has_coupled_passes=False).refused) == 1


DIFFUSERS = {
    "constant_with_warmup": {},
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {"power": 2.0},
}


@pytest.mark.parametrize("name", DIFFUSERS)
def test_schedules_are_those_of_diffusers(name: str) -> None:
    """But for the warm-up, which begins above 0 here, as a step at 0 teaches nothing."""
    from diffusers.optimization import get_scheduler

    peak, warmup, steps = 1e-3, 4, 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps, **DIFFUSERS[name])
    more = {**DIFFUSERS[name], **({"end": 1e-7} if name == "polynomial" else {})}
    for step in range(steps):
        own = learning_rate_at(step, peak=peak, scheduler=name, warmup_steps=warmup, max_steps=steps, **more)
        theirs = scheduler.get_last_lr()[0] + (peak / warmup if step < warmup else 0)
        assert own == pytest.approx(theirs, rel=1e-9, abs=1e-15), step
        optimizer.step()
        scheduler.step()


def test_rates_of_a_recipe() -> None:
    training = TrainingConfig(
        max_train_steps=10, learning_rate=1.0, lr_scheduler="polynomial", lr_power=1.0, lr_end=0.5
    )
    assert [scheduled_rate(training, step) for step in (0, 5, 10)] == [1.0, 0.75, 0.5]
    restarts = dataclasses.replace(training, lr_scheduler="cosine_with_restarts", lr_num_cycles=2)
    assert scheduled_rate(restarts, 0) == scheduled_rate(restarts, 5) == 1.0
    assert scheduled_rate(restarts, 10) == 0.0


@pytest.mark.parametrize(
    ("epochs", "each", "steps"), [(0.07, 100, 7), (1.1, 50, 55), (0.29, 100, 29), (0.5, 5, 3), (0.001, 10, 1)]
)
def test_steps_of_epochs(epochs: float, each: int, steps: int) -> None:
    assert TrainingConfig(num_train_epochs=epochs).steps(each) == steps


REFUSED = [
    (["--training.lr_power", "2"], "training.lr_power: got 2.0, which schedule 'constant' does not take"),
    (["--training.lr_num_cycles", "2", "--training.lr_scheduler", "cosine"], "lr_scheduler: cosine_with_restarts"),
    (["--training.lr_scheduler", "constant_with_warmup"], "training.lr_warmup_steps: got 0"),
    (["--training.lr_scheduler", "polynomial", "--training.lr_end", "1"], "less than the learning rate, 0.001"),
    (["--training.num_train_epochs", "2"], "got 2 beside training.max_train_steps 6"),
    (["--training.num_train_epochs", "0", "--training.max_train_steps", "null"], "training.num_train_epochs: got 0"),
]


@pytest.mark.parametrize(("flags", "said"), REFUSED)
def test_schedules_and_lengths_that_are_refused(
    flags: list[str], said: str, make_recipe: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", str(make_recipe()), *flags]) == 2
    assert said in capsys.readouterr().err


def same(one: Path, other: Path) -> None:
    assert policy(one).keys() == policy(other).keys()
    for name, value in policy(one).items():
        assert torch.equal(policy(other)[name], value), name


@pytest.mark.parametrize("modality", ["images", "texts"])
def test_a_lengthened_run_is_the_long_one(
    modality: str, make_recipe: Make, make_text_recipe: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit under a constant rate; half-way it has no result, and its history says what ran until when."""
    make = make_recipe if modality == "images" else make_text_recipe
    model = LORA if modality == "images" else {"tuning": "full"}
    whole = train(make("whole", model=model, training={"max_train_steps": 5}, validation=QUIET))
    recipe = make("longer", model=model, training={"max_train_steps": 3}, validation=QUIET)
    folder = train(recipe)
    capsys.readouterr()
    assert main(["train", "--config", str(recipe), "--resume", "--training.max_train_steps", "2"]) == 2
    error = capsys.readouterr().err
    assert "training.max_train_steps: 2, and" in error
    assert "has gone 3 steps" in error
    train(recipe, "--resume", "--training.max_train_steps", "5", "--training.checkpointing_steps", "1")
    out = capsys.readouterr().out
    assert "changed          training.max_train_steps: 3 -> 5, from step 4" in out
    assert "learning rate  " not in out
    same(folder, whole)
    assert [row["step"] for row in rows(folder)] == [1, 2, 3, 4, 5]
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["training"]["max_train_steps"] == 5
    (line,) = read_history(folder)
    assert (line.step, line.processes) == (3, 1)
    assert [(each.name, each.old, each.new) for each in line.changed][1:] == [("training.max_train_steps", 3, 5)]
    assert (
        "after step 3: training.checkpointing_steps: 2 -> 1, training.max_train_steps: 3 -> 5"
        in (folder / "README.md").read_text()
    )


def test_another_rate_and_epochs_go_on_from_the_checkpoint(
    make_text_recipe: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """24 texts in steps of 4 are 6 steps an epoch; a cosine that is lengthened says what the rate is from here on."""
    training = {"max_train_steps": None, "num_train_epochs": 0.5, "lr_scheduler": "cosine"}
    recipe = make_text_recipe(training=training, validation=QUIET)
    assert main(["train", "--config", str(recipe), "--dry_run"]) == 0
    assert "steps            3 = 0.5 epochs of 6" in capsys.readouterr().out
    folder = train(recipe)
    before = policy(folder)
    flags = ["--training.num_train_epochs", "0.75", "--training.learning_rate", "0.01"]
    train(recipe, "--resume", *flags)
    out = capsys.readouterr().out
    assert "changed          training.learning_rate: 0.001 -> 0.01, from step 4" in out
    assert (
        "learning rate    0.00345 at step 4, where it was to be 0: the schedule is cosine to step 5 from here on" in out
    )
    assert [row["lr"] for row in rows(folder)][3:] == pytest.approx([0.00345, 0.000955], rel=1e-2)
    assert any(not torch.equal(value, before[name]) for name, value in policy(folder).items())


def test_what_makes_another_run_is_named_at_once(make_recipe: Make, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(model=LORA, training={"max_train_steps": 1}, validation=QUIET)
    folder = train(recipe)
    kept = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    flags = ["--training.seed", "3", "--model.lora_rank", "4", "--training.learning_rate", "0.1"]
    capsys.readouterr()
    assert main(["train", "--config", str(recipe), "--resume", *flags, "--training.train_batch_size", "2"]) == 2
    error = capsys.readouterr().err
    for said in ("model.lora_rank: 2 became 4", "training.seed: 0 became 3", "effective batch: 4 became 2"):
        assert f"another {said}" in error
    assert "learning_rate" not in error
    assert "model.init_from" in error
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == kept


def files(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_is_refused_changes_nothing(make_text_recipe: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """A best step without held-out texts, over a finished run; and more steps after the texts have changed."""
    recipe = make_text_recipe(model=LORA, training={"max_train_steps": 2}, validation=QUIET)
    folder, longer = train(recipe), ["--training.max_train_steps", "4"]
    kept = files(folder)
    best = ["--validation.keep_best", "nll", "--validation.steps", "1", "--data.validation", "null"]
    capsys.readouterr()
    assert main(["train", "--config", str(recipe), "--overwrite", *best]) == 2
    assert "needs held-out examples" in capsys.readouterr().err
    assert files(folder) == kept
    assert main(["train", "--config", str(recipe), "--resume", "--training.learning_rate", "0.1"]) == 0
    said = capsys.readouterr().out
    assert "not applied, as the run is complete: training.learning_rate: 0.001 -> 0.1; give more steps" in said
    assert files(folder) == kept
    place = Path(yaml.safe_load(recipe.read_text())["data"]["train"])
    text = place.read_text()
    place.write_text(text.replace("a", "e", 1) if "a" in text else text)
    assert main(["train", "--config", str(recipe), "--resume", *longer]) == 2
    assert "another examples" in capsys.readouterr().err
    assert files(folder) == kept


def test_the_history_of_a_run(tmp_path: Path) -> None:
    row = {"step": 10, "time": "", "processes": 1, "changed": {}}
    later = {**row, "step": 20}
    (tmp_path / "history.jsonl").write_text(
        "".join(f"{json.dumps(each)}\n" for each in (row, later, {**row, "step": 15}))
    )
    assert [each.step for each in read_history(tmp_path)] == [10, 15]  # the checkpoint of step 20 was removed
    (tmp_path / "history.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match=r"history\.jsonl"):
        read_history(tmp_path)


def test_the_recipe_class_is_that_of_the_table() -> None:
    assert {field.name for field in dataclasses.fields(Recipe)} <= {key.partition(".")[0] for key in CHANGES}
