"""What a run would do, said before it does it: device, precision, schedule, time, memory, cache, evaluations."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from ...config.recipe import Recipe, TrainingConfig
from ...errors import UserError, plural
from ...folders import expand
from .accelerator import make_accelerator
from .examples import batch_warning
from .given import Given, Setup
from .memory import estimate, gibibytes
from .session import Session


def settings_plan(recipe: Recipe, device: torch.device) -> list[str]:
    """Lines on what is known before a model is loaded: device, precision, learning rate and its course."""
    training, model = recipe.training, recipe.model
    passes = "" if training.mixed_precision == "no" else f", passes in {training.mixed_precision}"
    checkpointed = ", activations computed again in the backward pass" if model.gradient_checkpointing else ""
    return [
        f"device           {_name_of(device)}",
        f"precision        weights in {model.dtype}{passes}{checkpointed}",
        f"learning rate    {training.learning_rate:g}, {_course(training)}",
    ]


def seconds_of_a_pass(session: Session) -> float:
    """How long forward and backward pass of one micro-batch take on this device, which has had one before."""
    data = session.data
    batch = data.train.batch(data.order.indices(0)[: session.setup.recipe.training.train_batch_size], 0)
    _wait(session.setup.accelerator.device)
    start = time.perf_counter()
    session.step(session.network, batch).loss.backward()
    _wait(session.setup.accelerator.device)
    seconds = time.perf_counter() - start
    session.network.zero_grad(set_to_none=True)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        size = torch.cuda.get_device_properties(device).total_memory
        return f"{device} ({torch.cuda.get_device_name(device)}, {gibibytes(size)})"
    return f"{device.type}, {plural(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else str(device)


def _course(training: TrainingConfig) -> str:
    warm = training.lr_warmup_steps
    return training.lr_scheduler + (f" after {plural(warm, 'step')} of warm-up" if warm else "")


def _time(session: Session, seconds: float) -> Iterator[str]:
    training, device = session.setup.recipe.training, session.setup.accelerator.device
    if session.setup.objective.learns_from == "rollouts":
        yield "time             unknown before completions are drawn"
        return
    a_step = seconds * training.gradient_accumulation_steps
    total = a_step * session.data.max_train_steps
    measured = f"one pass measured here ({device.type}): {seconds:.3g} s"
    yield f"time             {a_step:.3g} s per step, {_duration(total)} in all; {measured}"
    yield "                 encoding and evaluations come on top; another device takes another time"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _cache(session: Session) -> Iterator[str]:
    sizes = session.cache_bytes()
    if sizes:
        parts = ", ".join(f"{what} {_size(size)}" for what, size in sizes.items())
        total, folder = sum(sizes.values()), expand(session.setup.recipe.data.cache_dir)
        yield f"cache            {_size(total)} on disk in {folder}: {parts}"


def _size(count: int) -> str:
    return gibibytes(count) if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _evaluations(session: Session) -> Iterator[str]:
    every, last = session.setup.recipe.validation.steps, session.data.max_train_steps
    number = 1 if every == 0 else -(-last // every)
    drawn = session.num_samples()
    samples = f", {plural(drawn, 'sample')} drawn before and after" if drawn else ""
    when = "at the end" if every == 0 or every >= last else f"every {plural(every, 'step')} and at the end"
    yield f"evaluations      {number}, {when}: {session.data.held_out()}{samples}"


def plan_of(session: Session) -> list[str]:
    """All that a dry run says of a session, besides what the run itself says at its start."""
    setup = session.setup
    memory = estimate(session)  # by one pass, which warms the device up
    seconds = 0.0 if setup.objective.learns_from == "rollouts" else seconds_of_a_pass(session)
    known = settings_plan(setup.recipe, setup.accelerator.device)
    return [*known, *_time(session, seconds), *_cache(session), *_evaluations(session), *memory]


def plan_without_weights(recipe: Recipe, given: Given, error: UserError) -> list[str]:
    """What can be said where the model could not be loaded, for ``error``: for published models their memory too.

    Raises ``error`` for any other model, and where one was handed in.
    """
    from ...models.published import published_model
    from .published_memory import memory_need

    name = recipe.model.pretrained_model_name_or_path
    if given.model is not None or published_model(name) is None or not error.problem.startswith(name):
        raise error
    accelerator = make_accelerator(recipe)
    setup = Setup(recipe, accelerator, given)
    training = recipe.training
    passes = f"{plural(training.gradient_accumulation_steps, 'pass')} x {plural(accelerator.num_processes, 'process')}"
    length = (
        f"{training.max_train_steps} steps" if training.max_train_steps else f"{training.num_train_epochs:g} epochs"
    )
    return [
        *filter(None, [batch_warning(setup)]),
        f"model            {name}: not on this machine ({error.problem.splitlines()[0]})",
        f"examples         unknown until the model is loaded; {length}",
        f"batch            {setup.batch_size} examples per step = {training.train_batch_size} per pass x {passes}",
        *settings_plan(recipe, accelerator.device),
        "time, cache      unknown here",
        *memory_need(recipe).lines(),
    ]
