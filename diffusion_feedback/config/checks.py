"""Which recipes make sense: values in range, settings that do not contradict each other, and none that mean nothing."""

from __future__ import annotations

from ..catalog import family_row, objective_row, objectives_for, parts_of
from ..catalog.heldout import heldout_metrics_of
from ..catalog.objectives import OBJECTIVES
from ..errors import UserError
from .data_lists import data_parts
from .meaning import check_values, default_of, keys_for, keys_of, refuse_keys, require
from .recipe import ADAPTERS, NOISE, POLYNOMIAL, RESTARTS, SAMPLES, WARMUP, Recipe, TrainingConfig
from .text_checks import check_text


def check_recipe(recipe: Recipe) -> None:
    """Refuse values out of range and settings that contradict each other. Raises UserError naming the key."""
    training, data, model = recipe.training, recipe.data, recipe.model
    check_values(recipe)
    low, high = training.timestep_range
    require(0 <= low < high <= 1, "training.timestep_range", training.timestep_range, "0 <= low < high <= 1")
    require(bool(model.lora_targets), "model.lora_targets", model.lora_targets, "one name of layers or more")
    for key in ("lora_targets", "lora_modules_to_save"):
        require(all(getattr(model, key)), f"model.{key}", getattr(model, key), "names that are not empty")
    if model.tuning == "full":
        refuse_keys(recipe, ("model.lora_modules_to_save", "model.init_lora"), "full tuning, which trains every module")
    if model.init_from is not None and model.init_lora is not None:
        raise UserError("model.init_from: got one beside model.init_lora", "a run has one start: leave one of them out")
    half = model.dtype == "float32" or training.mixed_precision != "no"
    require(half, "training.mixed_precision", "no", f"bf16 or fp16, as model.dtype is {model.dtype}")
    _check_length(recipe.training)
    _check_family(recipe)
    if data.random_crop and data.cache:
        raise UserError("data.random_crop: random crops cannot be cached", "set data.cache: false, or drop random_crop")
    if data.streaming and not data.cache:
        raise UserError("data.streaming: streamed images are seen once", "set data.cache: true")
    if model.tuning == "full" and model.dtype != "float32":
        raise UserError(
            f"model.dtype: {model.dtype} weights under full tuning lose small updates",
            "use float32 and training.mixed_precision",
        )
    for key, given, weighted in (("data.train", data.train, True), ("data.validation", data.validation, False)):
        if given is not None:
            data_parts(given, key, weighted=weighted)
    _check_labels(recipe)
    _check_selection(recipe)


def _check_selection(recipe: Recipe) -> None:
    """Refuse metrics that the evaluations of a run do not have, and what is chosen from where there is one alone."""
    validation = recipe.validation
    known = heldout_metrics_of(
        objective_row(recipe.objective["name"]), of_images=not family_row(recipe.model.family).reads_text
    )
    for name in ("keep_best", "early_stopping"):
        key, metric = f"validation.{name}", getattr(validation, name)
        if metric is None:
            continue
        prefix, _, scorer = metric.partition("/")
        is_scored = bool(scorer and validation.scorers) and f"{prefix}/SCORER" in known
        names = [name if validation.scorers else name.replace("SCORER", "NAME of validation.scorers") for name in known]
        require(metric in known or is_scored, key, metric, f"{', '.join(names) or 'nothing with this objective'}")
        if validation.steps == 0:
            raise UserError(f"{key}: validation.steps is 0, which evaluates only at the end", "set validation.steps")


def _check_length(training: TrainingConfig) -> None:
    """Refuse two lengths of one run, and settings that the schedule of its learning rate does not take."""
    steps, epochs, name = training.max_train_steps, training.num_train_epochs, training.lr_scheduler
    if steps is not None and epochs is not None:
        problem = f"training.num_train_epochs: got {epochs:g} beside training.max_train_steps {steps}"
        raise UserError(problem, "give one of them, and null for the other where a recipe has it")
    for schedule in (RESTARTS, POLYNOMIAL):
        for key in keys_for(schedule) if schedule != name else []:
            value = getattr(training, key.partition(".")[2])
            if value != default_of(key):
                problem = f"{key}: got {value!r}, which schedule {name!r} does not take"
                raise UserError(problem, f"leave it out, or set training.lr_scheduler: {schedule}")
    warmup, end = training.lr_warmup_steps, training.lr_end
    require(name != WARMUP or warmup > 0, "training.lr_warmup_steps", warmup, f"1 or more with {name}")
    below = end < training.learning_rate or end == 0
    require(below, "training.lr_end", end, f"less than the learning rate, {training.learning_rate:g}")


def _check_labels(recipe: Recipe) -> None:
    name = recipe.objective["name"]
    if recipe.data.soft_labels and "chosen_probability" not in objective_row(name).inputs:
        problem = f"data.soft_labels: objective {name!r} takes hard labels only"
        soft = ", ".join(other for other, row in OBJECTIVES.items() if "chosen_probability" in row.inputs)
        raise UserError(problem, f"use one that takes soft labels ({soft}), or soft_labels: false")
    if recipe.data.ties == "soft" and not recipe.data.soft_labels:
        raise UserError("data.ties: soft needs data.soft_labels: true", "a tie has no majority; or use ties: drop")


def _check_family(recipe: Recipe) -> None:
    """Refuse an objective that a family cannot be tuned by, and settings that mean nothing for a scorer."""
    name, family = recipe.objective["name"], recipe.model.family
    models, objective = family_row(family), objective_row(name)
    fitting = f"objectives for {family}: {', '.join(objectives_for(family))}"
    for part in parts_of(recipe.objective):
        reason = models.why_not(objective_row(part["name"]))
        if reason is not None:
            raise UserError(f"objective {part['name']!r} means nothing for family {family!r}: {reason}", fitting)
        for key in part:
            if key in models.refused_settings:
                problem = f"objective.{key} means nothing for family {family!r}: {models.refused_settings[key]}"
                raise UserError(problem, "leave it out, and tune beta")
    if not models.can_learn(objective):
        raise UserError(f"objective.name: {name!r} cannot tune a model of family {family!r}", fitting)
    if models.reads_text:
        check_text(recipe)
        return
    text = (*keys_of("text"), *keys_of("rollouts"))
    refuse_keys(
        recipe, (*text, "model.reference_model_name_or_path", "model.lora_modules_to_save"), "a model of images"
    )
    if not objective.trains_judge:
        return
    if recipe.model.tuning != "full":
        problem = f"model.tuning: got {recipe.model.tuning!r}, and a scorer is tuned as a whole"
        raise UserError(problem, "set model.tuning: full")
    refuse_keys(recipe, keys_for(ADAPTERS, NOISE, SAMPLES), "a scorer")
    size = recipe.training.train_batch_size
    require(size > 1 or not objective.is_coupled, "training.train_batch_size", size, f"2 or more with {name}")
