"""A training run from its recipe to its folder, for the commands that train."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from ..catalog import resolve, session_of
from ..config import Recipe, to_dict, to_yaml
from ..folders import check_outside
from ..scorers.texts.loading import parse_text_spec
from ..training.run_folder import RunFolder
from .memory import estimate
from .run_parts import Planned, Session, make_accelerator


def train(recipe: Recipe, *, resume: bool = False, overwrite: bool = False, dry_run: bool = False) -> None:
    """Train ``recipe``, or with ``dry_run`` only say what would be done. Raises UserError for bad input."""
    accelerator = run_training(recipe, resume=resume, overwrite=overwrite, dry_run=dry_run)
    if accelerator is not None:
        accelerator.end_training()


def run_training(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, dry_run: bool = False
) -> Accelerator | None:
    """``train``, after which trackers and the group of processes are still there; None where nothing was trained."""
    folder = RunFolder(Path(recipe.output_dir))
    if not dry_run:
        if overwrite:
            check_outside(folder.path, inputs_of(recipe))
        folder.check_free(to_dict(recipe), resume=resume, overwrite=overwrite)
        if resume and folder.is_complete():
            print(f"{folder.path}: already complete")
            return None
    accelerator = make_accelerator(recipe)
    session: Session = resolve("session", session_of(recipe.model.family, recipe.objective["name"]))(
        recipe, accelerator
    )
    if dry_run:
        _describe(session)
        return None
    if accelerator.is_main_process:
        folder.open(to_dict(recipe), resume=resume, overwrite=overwrite)
    accelerator.wait_for_everyone()
    if recipe.training.report_to:
        accelerator.init_trackers("diffusion-feedback", config={"recipe": to_yaml(recipe)})
    trainer = session.fit(folder)
    session.finish(trainer)
    if accelerator.is_main_process:
        print(f"done: {folder.path} (see {folder.path / 'README.md'})")
    return accelerator


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
