"""The folder of a training run as others read it: which weights a reference means, and what its recipe says of its model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .documents import read_object, read_yaml
from .errors import UserError
from .folders import ROUNDS, expand
from .foreign import reading

CHECKPOINTS = "checkpoints"  # of a run, with one folder a step
RAW = "raw"  # in a checkpoint: the weights as they are, where it holds their average
BEST = "best.json"  # of a run: which step was the best
REFERENCE = "RUN@STEP, such as runs/a@150, RUN@best or RUN@last"
# What makes a folder one that plain libraries load; a pipeline, a model, an adapter of one, and an adapter of a pipeline.
_LORA = "pytorch_lora_weights.safetensors"
_RESULTS = ("model_index.json", "config.json", "adapter_config.json", _LORA)
_REFERENCE = re.compile(r"(?P<run>.+)@(?P<which>[0-9]+|best|last)", re.DOTALL)
_STEP = re.compile(r"step-(\d{6,})")


def weights_of(reference: str) -> str:
    """The place of the weights that ``reference`` means: RUN@STEP, RUN@best and RUN@last are checkpoints of a run.

    What is neither that nor the folder of a run is given back as it is: folders, files and hub ids. With an average of the
    weights a checkpoint gives the average, as the result of the run does. Raises UserError, which lists the steps that
    there are, for a step that is not there, and for a run without a result.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None or expand(reference).exists():
        _check_finished(reference)
        return reference
    run, which = expand(match["run"]), match["which"]
    if not run.is_dir():
        raise UserError(f"{reference}: {run} is no folder of a run", f"check the path, or give {REFERENCE}")
    steps = checkpoint_steps(run)
    if which == "last":
        if not steps and _has_weights(run):
            return str(run)
        step = max(steps, default=None)
    else:
        step = best_step(run) if which == "best" else int(which)
    if step not in steps:
        what = f"checkpoint of step {step}" if step is not None else f"{which} checkpoint"
        raise UserError(f"{reference}: {match['run']} has no {what}", _choices(match["run"], run))
    return str(steps[step])


def moving_run(reference: str) -> Path | None:
    """The folder of the run whose best or last step ``reference`` means, which may be another one later; None of others."""
    match = _REFERENCE.fullmatch(reference)
    return None if match is None or match["which"].isdigit() else expand(match["run"])


def checkpoint_steps(run: Path) -> dict[int, Path]:
    """The checkpoints in the folder ``run`` by their steps, oldest first; what else lies beside them is left aside."""
    matches = [(path, _STEP.fullmatch(path.name)) for path in (run / CHECKPOINTS).glob("step-*") if path.is_dir()]
    return dict(sorted((int(match[1]), path) for path, match in matches if match))


def best_step(run: Path) -> int | None:
    """The step that the run in the folder ``run`` has marked as its best; None where it marks none. Raises UserError."""
    path = run / BEST
    if not path.is_file():
        return None
    remedy = "remove the file, or bring back what the run has written"
    step = read_object(path, remedy, ["step"])["step"]
    if not isinstance(step, int):
        raise UserError(f"{path}: step is {step!r}, no number", remedy)
    return step


def run_of(folder: Path) -> Path:
    """The folder of the run that the weights in ``folder`` are of: its own, or that of a checkpoint, averaged or raw."""
    folder = folder.parent if folder.name == RAW else folder
    return folder.parent.parent if folder.parent.name == CHECKPOINTS else folder


def is_model(folder: Path) -> bool:
    """Whether ``folder`` holds a whole pipeline or transformers model, not adapters of one."""
    return any(folder.glob("model_index.json")) or any(folder.glob("model*.safetensors*"))


def holds_pipeline_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds the LoRA of a diffusers pipeline, in diffusers' own form or that of a run's state."""
    return any((folder / name).is_file() for name in (_LORA, "policy.safetensors"))


def recorded_model(folder: Path, remedy: str, *needed: str) -> dict[str, Any] | None:
    """What the recipe of the run whose weights are in ``folder`` says of its model; None for other folders.

    Raises UserError, which ends in ``remedy``, for a recipe that lacks one of the keys that are ``needed``.
    """
    recipe = run_of(folder) / "recipe.yaml"
    if not recipe.is_file():
        return None
    with reading(recipe, "the recipe of a run", remedy):
        model = dict(read_yaml(recipe, remedy)["model"])
        return model | {key: model[key] for key in needed}


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _RESULTS)


def _check_finished(given: str) -> None:
    """Raise UserError where ``given`` is the folder of a run without a result."""
    run = expand(given)
    is_run = (run / "recipe.yaml").is_file() and not (run / ROUNDS).is_file()
    if is_run and not (run / "README.md").is_file() and not _has_weights(run):
        problem = f"{given}: the run has not come to its end, so it has no result yet"
        raise UserError(problem, _choices(given, run))


def _choices(name: str, run: Path) -> str:
    """What can be given of the ``run`` that the user calls ``name``."""
    steps: Sequence[int] = list(checkpoint_steps(run))
    best = best_step(run)
    given = [f"{name} itself, its result"] if _has_weights(run) else []
    given += [f"{name}@{step}{' (best)' if step == best else ''}" for step in steps]
    if given:
        return f"give one of: {', '.join(given)}"
    return "it has no checkpoints either: go on with `resume`" if (run / "recipe.yaml").is_file() else "check the path"
