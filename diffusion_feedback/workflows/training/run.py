"""A training run from its recipe to its folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from torch import nn, optim

from ...catalog import family_row, resolve
from ...catalog.heldout import heldout_metric
from ...config.continuing import Changes
from ...config.data_lists import data_parts
from ...config.parsing import require_recipe
from ...config.recipe import Recipe, RoundsConfig, to_dict, to_yaml
from ...config.sources import is_object
from ...errors import Interrupted, UserError, first_line, is_out_of_memory
from ...folders import check_outside, expand, hold_folder
from ...models.loaded import as_it_came
from ...processes import check_alike, num_launched
from ...records import content_hash, write_text
from ...reports.cards.writer import render_card
from ...reports.pages.training import closing_line
from ...scorers.texts.loading import parse_text_spec
from ...training.checkpoints import fingerprint
from ...training.history import read_history
from ...training.loop import Trainer
from ...training.run_folder import RunFolder
from ...training.selection import Selection, best_line
from ...types.models import Tokenizer
from ...types.texts import TextScorer
from .accelerator import make_accelerator, own_accelerate, start_trackers, track_samples
from .changes import describe_changes
from .examples import batch_warning
from .given import NOTHING, Given, Setup, accept, check_all_given, recorded
from .planning import plan_of, plan_without_weights
from .record import kept_warnings, warnings_among, write_page
from .result import Run
from .session import Session
from .starting import start_of
from .trained_on import record_training

log = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    *,
    model: object = None,
    tokenizer: Tokenizer | None = None,
    train_data: object = None,
    validation_data: object = None,
    objective: str | Callable[..., object] | Mapping[str, object] | None = None,
    reward: str | Callable[..., object] | TextScorer | None = None,
    init_from: str | Path | Run | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Run:
    """Train as ``recipe`` says, in its folder. What is None is loaded by the name in the recipe.

    Args:
        recipe: From ``load_recipe``, or made in Python; it is checked in the same way.
        model: A loaded diffusers pipeline or transformers model, or the path of one. It is as it came at the end, after a
            failure too: adapters, precision, device, what is frozen, dropout, modes. Full tuning alone changes its weights.
            What the recipe puts in another precision is in memory twice meanwhile.
        tokenizer: The tokenizer of a transformers model; a copy of it is used.
        train_data: A ``datasets.Dataset`` in any of the forms that files may have (Pick-a-Pic's columns for images;
            prompt, chosen and rejected, or others, for texts), or a path.
        validation_data: The same for held-out data.
        objective: A name, a function of log-probabilities, or a mapping of ``name`` (one of the two) and settings. It
            replaces the recipe's objective, settings and all.
        reward: For rollouts: a function of lists of prompts and completions that returns one number for each, or a spec.
        init_from: A run, or RUN@STEP or RUN@best, whose weights the new run starts with, as model.init_from of the recipe.
        resume: Go on from the newest checkpoint in the recipe's folder; objects must be the same as before.
        overwrite: Replace the run in the recipe's folder.
        dry_run: Load everything, and say in ``Run.plan`` what would be trained.

    Raises UserError for bad input, Interrupted for a run that was stopped after a checkpoint.
    """
    if resume and overwrite:
        raise UserError("`resume` and `overwrite` contradict each other", "give one of them")
    require_recipe(recipe)
    if init_from is not None:
        place = str(init_from.path if isinstance(init_from, Run) else init_from)
        recipe = replace(recipe, model=replace(recipe.model, init_from=place))
    names = {"model": model, "tokenizer": tokenizer, "train_data": train_data}
    with as_it_came(model, is_trained=recipe.model.tuning == "full"):
        recipe, given = accept(
            recipe, objective, names | {"validation_data": validation_data, "reward": reward}, resume=resume
        )
        if recipe.rounds != RoundsConfig():
            raise UserError("rounds: means nothing for one training run", "run it as rounds, or leave the section out")
        path = expand(recipe.output_dir)
        # Of all that was handed in, adapters need their base once more; the rest may go.
        kept = Given(model=given.model, tokenizer=given.tokenizer) if recipe.model.tuning == "lora" else NOTHING
        with nullcontext() if dry_run else hold_folder(path, "train"), own_accelerate():
            if dry_run:
                return Run(recorded(recipe), path, _planned(recipe, given), kept)
            run_training(recipe, given, resume=resume, overwrite=overwrite)
    return Run(recorded(recipe), path, given=kept)


def _planned(recipe: Recipe, given: Given) -> list[str]:
    check_all_given(recipe, given)
    try:
        session = open_session(Setup(recipe, make_accelerator(recipe), given))
    except UserError as error:
        return plan_without_weights(recipe, given, error)
    with closing(session):
        build_optimizer(recipe, session.parameters())
        warning = batch_warning(session.setup)
        return [*filter(None, [warning]), *describe(session), *plan_of(session)]


def open_session(setup: Setup) -> Session:
    """The session of the recipe's family and objective, its model and data loaded. Raises UserError for bad input.

    What one session imports the others do not need: a run on texts does not wait for diffusers.
    """
    match family_row(setup.recipe.model.family).modality, setup.objective.kind:
        case "image", "ranking":
            from .scorer import scorer_session as session
        case "image", _:
            from .diffusion import diffusion_session as session
        case _, "policy_gradient":
            from .policy_gradient import policy_gradient_session as session
        case _, "value_learning":
            from .value_learning import value_learning_session as session
        case _, "reward":
            from .reward_model import reward_model_session as session
        case _:
            from .language_model import language_model_session as session
    return session(setup)


def run_training(recipe: Recipe, given: Given = NOTHING, *, resume: bool = False, overwrite: bool = False) -> None:
    """Train ``recipe`` in its folder. The group of processes goes on: the program may have more to do."""
    check_all_given(recipe, given)
    written = recorded(recipe)
    folder = RunFolder(expand(recipe.output_dir))
    if overwrite:
        check_outside(folder.path, inputs_of(recipe))
    changes = folder.check_free(to_dict(written), resume=resume, overwrite=overwrite, processes=num_launched())
    if resume and recipe.training.max_train_steps is not None:
        folder.check_length(recipe.training.max_train_steps)
    is_done = resume and folder.is_complete() and not changes.is_longer_or_shorter
    if is_done and num_launched() == 1:
        _say_complete(folder, changes)
        return
    accelerator = make_accelerator(recipe)
    check_alike(accelerator, _beginning(written, folder, resume=resume, overwrite=overwrite))
    if is_done:
        _say_complete(folder, changes)
        return
    setup = Setup(recipe, accelerator, given, goes_on=resume and bool(folder.checkpoints()))
    with kept_warnings() as warnings, closing(open_session(setup)) as session:
        optimizer = build_optimizer(recipe, session.parameters())
        if warning := batch_warning(session.setup):
            log.warning(warning)
        if resume:
            folder.check_length(session.data.max_train_steps)
        selection = _selection(session)  # before anything is written or removed
        for line in describe_changes(changes, session.data, folder.last_step):
            log.info(line)
        if accelerator.is_main_process:
            how = {"resume": resume, "overwrite": overwrite, "processes": accelerator.num_processes}
            folder.open(to_dict(written), session.written_files, **how)
            record_training(session.data, folder.path)
        accelerator.wait_for_everyone()
        start_trackers(written, accelerator, folder)
        try:
            trainer = _fit(session, optimizer, folder, selection)
        except Interrupted:
            if accelerator.is_main_process:
                with _or_warn(folder):  # the signal is what is to be said
                    _note(session, folder, warnings)
                    write_page(folder.path)
            raise
        if accelerator.is_main_process:
            _note(session, folder, warnings)
        _finish(session, trainer)
    for tracker in accelerator.trackers:
        tracker.finish()


def _say_complete(folder: RunFolder, changes: Changes) -> None:
    log.info("%s: already complete", folder.path)
    left = [str(each) for each in changes.accepted if each.name not in ("output_dir", "processes")]
    if left:
        how = "give more steps, and it goes on with them"
        log.warning("%s: not applied, as the run is complete: %s; %s", folder.path, "; ".join(left), how)


@contextmanager
def _or_warn(folder: RunFolder) -> Iterator[None]:
    """Warn where the page of the run cannot be written: the run does not depend on it."""
    try:
        yield
    except (UserError, OSError, ValueError) as error:
        log.warning("%s: its page could not be written: %s", folder.path, first_line(error))


def _note(session: Session, folder: RunFolder, warnings: Sequence[str]) -> None:
    """Keep what a page says besides the metrics: lines on what is trained, and what was warned of."""
    lines = describe(session)
    steps = session.data.max_train_steps
    folder.note(session.data.unit, session.card, steps, lines, [*warnings_among(lines), *warnings])


def _beginning(recipe: Recipe, folder: RunFolder, *, resume: bool, overwrite: bool) -> dict[str, object]:
    """What all processes must begin with."""
    checkpoints = [] if overwrite else folder.checkpoints()
    return {
        "recipe": content_hash(to_yaml(recipe)),
        "flags": f"`resume` {resume}, `overwrite` {overwrite}",
        "checkpoint": checkpoints[-1].name if checkpoints else "none",
        "checkpoint's content": fingerprint(checkpoints[-1]) if checkpoints else "none",
        "state": "already complete" if folder.is_complete() and not overwrite else "to be trained",
    }


def _fit(session: Session, optimizer: optim.Optimizer, folder: RunFolder, selection: Selection) -> Trainer:
    """Train to the end, in ``folder``."""
    recipe, data = session.setup.recipe, session.data
    for line in describe(session):
        log.info(line)
    session.prepare(folder)

    def evaluate(step: int, network: nn.Module) -> Mapping[str, float]:
        metrics = session.evaluate(step, network, folder)
        track_samples(session.setup.accelerator, folder, step)
        return metrics

    trainer = Trainer(
        session.setup.accelerator,
        replace(recipe.training, max_train_steps=data.max_train_steps, num_train_epochs=None),
        folder,
        session.network,
        session.step,
        session.source,
        optimizer,
        evaluate=evaluate,
        evaluate_every=recipe.validation.steps,
        evaluate_first=session.evaluates_first,
        identity=session.identity,
        metrics_of=data.metrics_of,
        name_of=data.name_of,
        unit=data.unit,
        selection=selection,
        save_weights=session.save,
    )
    trainer.fit()
    return trainer


def _outcomes(trainer: Trainer) -> list[str]:
    """Lines on why the run ended before its last step, and on its best one, where there is something to say."""
    return [line for line in (trainer.stopped_early, best_line(trainer.folder)) if line is not None]


def _selection(session: Session) -> Selection:
    """What is kept or ended by evaluations. Raises UserError for metrics of held-out examples where there are none."""
    validation = session.setup.recipe.validation
    for name in ("keep_best", "early_stopping"):
        metric = getattr(validation, name)
        if metric is not None and session.data.heldout is None and not heldout_metric(metric).from_samples:
            problem = f"validation.{name}: {heldout_metric(metric).words} needs held-out examples, and none are given"
            raise UserError(problem, "set data.validation, or leave it out")
    return Selection(
        keep_best=validation.keep_best,
        early_stopping=validation.early_stopping,
        patience=validation.early_stopping_patience,
        min_delta=validation.early_stopping_min_delta,
    )


def _finish(session: Session, trainer: Trainer) -> None:
    """Write the result. Raises UserError where the disk is full: the last checkpoint stands, and nothing is lost."""
    folder = trainer.folder
    written = "`resume` writes it from the last checkpoint"
    try:
        _write_result(session, trainer)
    except UserError as error:
        raise UserError(error.problem, f"{error.remedy}; {written}" if error.remedy else written) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        full = isinstance(error, OSError | SafetensorError) or "PytorchStreamWriter" in str(error)
        if not full or is_out_of_memory(error):
            raise
        problem = f"{folder.path}: the result could not be written: {first_line(error)}"
        raise UserError(problem, f"make room; {written}") from error


def _write_result(session: Session, trainer: Trainer) -> None:
    """Weights that plain libraries load, and the model card, which marks the run as complete."""
    accelerator, folder = session.setup.accelerator, trainer.folder
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with trainer.result() as network:
            session.save(network, folder.path)
            length = {"steps": folder.last_step, "effective_batch": trainer.effective_batch}
            history = [str(each) for each in read_history(folder.path)]
            facts = {**session.card_facts(), **length, "history": history, "outcomes": _outcomes(trainer)}
        recipe = to_dict(recorded(session.setup.recipe))
        card = render_card(session.card, folder.path, recipe, folder.read_metrics(), **facts)
        for outcome in _outcomes(trainer):
            log.info(outcome)
        with _or_warn(folder):
            log.info("done: %s", closing_line(write_page(folder.path, card)))
        write_text(folder.path / "README.md", card)  # last: it marks the run as complete
    accelerator.wait_for_everyone()


def _places(key: str, given: object) -> dict[str, str | None]:
    parts = [] if given is None else data_parts(given, key, weighted=True)
    return {f"{key}[{number}]" if len(parts) > 1 else key: str(part.place) for number, part in enumerate(parts)}


def inputs_of(recipe: Recipe) -> dict[str, str | None]:
    """The paths that a run reads, by their keys."""
    model, data, rollouts = recipe.model, recipe.data, recipe.rollouts
    is_spec = rollouts.reward and not is_object(rollouts.reward)
    judge = parse_text_spec(rollouts.reward).source if is_spec else None
    return {
        "model.pretrained_model_name_or_path": model.pretrained_model_name_or_path,
        "model.reference_model_name_or_path": model.reference_model_name_or_path,
        "model.init_from": model.init_from,
        "model.init_lora": model.init_lora,
        **_places("data.train", data.train),
        **_places("data.validation", data.validation),
        "rollouts.ptx_data": rollouts.ptx_data,
        "rollouts.reward": judge,
        "rounds.heldout_prompts": recipe.rounds.heldout_prompts,
        "rounds.reward_recipe": recipe.rounds.reward_recipe,
    }


def describe(session: Session) -> list[str]:
    """Examples, batch, steps, parameters and notes."""
    trained = sum(p.numel() for p in session.parameters())
    total = sum(p.numel() for p in session.network.parameters())
    start = start_of(session.setup.recipe)
    starts = [] if start is None else [start]
    return [
        *session.data.plan(),
        *starts,
        f"parameters       {trained:,} trained of {total:,} in the network",
        *session.notes,
    ]


def build_optimizer(recipe: Recipe, parameters: Sequence[nn.Parameter]) -> optim.Optimizer:
    """The recipe's optimizer. Raises UserError for settings out of its range."""
    settings = {key: value for key, value in recipe.optimizer.items() if key != "name"}
    build = resolve("optimizer", recipe.optimizer["name"])
    try:
        optimizer: optim.Optimizer = build(parameters, recipe.training.learning_rate, **settings)
    except ValueError as error:
        raise UserError(f"optimizer: {error}", "change its setting in the recipe") from error
    return optimizer
