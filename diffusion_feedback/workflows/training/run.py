"""A training run from its recipe to its folder, for the commands that train."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from ...config import Recipe, to_dict, to_yaml
from ...errors import UserError, first_line, is_out_of_memory
from ...folders import check_outside, expand, hold_folder
from ...processes import check_alike, num_launched
from ...records import content_hash
from ...scorers.texts.loading import parse_text_spec
from ...training.checkpoints import fingerprint
from ...training.loop import Trainer
from ...training.run_folder import TRACKED, RunFolder
from .memory import estimate
from .session import Planned, Session, make_accelerator
from .sessions import open_session


def train(recipe: Recipe, *, resume: bool = False, overwrite: bool = False, dry_run: bool = False) -> None:
    """Train ``recipe``, or with ``dry_run`` only say what would be done. Raises UserError for bad input."""
    with nullcontext() if dry_run else hold_folder(expand(recipe.output_dir), "dfb train"):
        accelerator = run_training(recipe, resume=resume, overwrite=overwrite, dry_run=dry_run)
        if accelerator is not None:
            accelerator.end_training()


def run_training(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, dry_run: bool = False
) -> Accelerator | None:
    """``train``, after which trackers and the group of processes are still there; None where nothing was trained."""
    folder, is_done = RunFolder(expand(recipe.output_dir)), False
    if not dry_run:
        if overwrite:
            check_outside(folder.path, inputs_of(recipe))
        folder.check_free(to_dict(recipe), resume=resume, overwrite=overwrite)
        is_done = resume and folder.is_complete()
    if is_done and num_launched() == 1:
        print(f"{folder.path}: already complete")
        return None
    accelerator = make_accelerator(recipe)
    if not dry_run:
        check_alike(accelerator, _beginning(recipe, folder, resume=resume, overwrite=overwrite))
    if is_done:
        accelerator.print(f"{folder.path}: already complete")
        return accelerator
    session = open_session(recipe, accelerator)
    if dry_run:
        _describe(session)
        return None
    if accelerator.is_main_process:
        folder.open(to_dict(recipe), resume=resume, overwrite=overwrite)
    accelerator.wait_for_everyone()
    _start_trackers(recipe, accelerator, folder)
    trainer = session.fit(folder)
    _finish(session, trainer)
    if accelerator.is_main_process:
        print(f"done: {folder.path} (see {folder.path / 'README.md'})")
    return accelerator


def _beginning(recipe: Recipe, folder: RunFolder, *, resume: bool, overwrite: bool) -> dict[str, Any]:
    """What all processes must begin with."""
    checkpoints = [] if overwrite else folder.checkpoints()
    return {
        "recipe": content_hash(to_yaml(recipe)),
        "flags": f"--resume {resume}, --overwrite {overwrite}",
        "checkpoint": checkpoints[-1].name if checkpoints else "none",
        "checkpoint's content": fingerprint(checkpoints[-1]) if checkpoints else "none",
        "state": "already complete" if folder.is_complete() and not overwrite else "to be trained",
    }


def _start_trackers(recipe: Recipe, accelerator: Accelerator, folder: RunFolder) -> None:
    """Start the recipe's trackers, in which the run bears the name of its folder."""
    if not recipe.training.trackers:
        return
    name = folder.path.absolute().name
    named = {"wandb": {"name": name}, "mlflow": {"run_name": name}, "swanlab": {"experiment_name": name}}
    try:
        accelerator.init_trackers(TRACKED, config={"recipe": to_yaml(recipe)}, init_kwargs=named)
    except Exception as error:  # trackers are many, and fail in as many ways: no account, no network, no rights
        remedy = "log in to it, or leave it out: metrics.jsonl is written in any case"
        raise UserError(f"training.report_to: could not be started: {first_line(error)}", remedy) from error


def _finish(session: Session, trainer: Trainer) -> None:
    """Write the result. Raises UserError where the disk is full: the last checkpoint stands, and nothing is lost."""
    folder = trainer.folder
    written = f"{folder.resume_command} writes it from the last checkpoint"
    try:
        session.finish(trainer)
    except UserError as error:
        raise UserError(error.problem, f"{error.remedy}; {written}" if error.remedy else written) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        full = isinstance(error, OSError | SafetensorError) or "PytorchStreamWriter" in str(error)
        if not full or is_out_of_memory(error):
            raise
        problem = f"{folder.path}: the result could not be written: {first_line(error)}"
        raise UserError(problem, f"make room; {written}") from error


def inputs_of(recipe: Recipe) -> dict[str, str | None]:
    """The paths that a run reads, by their keys."""
    model, data, rollouts = recipe.model, recipe.data, recipe.rollouts
    return {
        "model.pretrained_model_name_or_path": model.pretrained_model_name_or_path,
        "model.reference_model_name_or_path": model.reference_model_name_or_path,
        "data.train": data.train,
        "data.validation": data.validation,
        "rollouts.ptx_data": rollouts.ptx_data,
        "rollouts.reward": parse_text_spec(rollouts.reward, "text_scorer").source if rollouts.reward else None,
        "rounds.heldout_prompts": recipe.rounds.heldout_prompts,
        "rounds.reward_recipe": recipe.rounds.reward_recipe,
    }


def _describe(session: Session) -> None:
    """Print examples, effective batch, steps, parameters, notes and memory."""
    trained = sum(p.numel() for p in session.parameters())
    total = sum(p.numel() for p in session.network.parameters())
    for line in session.plan() if isinstance(session, Planned) else _plan(session):
        print(line)
    print(f"parameters       {trained:,} trained of {total:,} in the network")
    for line in [*session.notes(), *estimate(session)]:
        print(line)


def _plan(session: Session) -> list[str]:
    """Examples, effective batch and steps of a run that goes through its examples."""
    training, size = session.recipe.training, session.order.batch_size
    epochs = training.max_train_steps * size / len(session.train)
    held = f"{len(session.heldout)} held out" if session.heldout is not None else "none held out"
    passes = f"{training.train_batch_size} a pass x {training.gradient_accumulation_steps} accumulated"
    return [
        f"examples         {len(session.train)} for training, {held}",
        f"effective batch  {size} = {passes} x {session.accelerator.num_processes} processes",
        f"steps            {training.max_train_steps} ({epochs:.2f} epochs)",
    ]
