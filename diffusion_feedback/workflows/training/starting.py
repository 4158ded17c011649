"""Where a run starts that does not start at its base: with the weights of another run, or of a LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ...catalog import needs_reference
from ...config.recipe import Recipe
from ...errors import UserError, shown
from ...folders import expand
from ...foreign import reading
from ...models.lora import trainable
from ...runs import checkpoint_steps, recorded_model, run_of, weights_of
from ...training.checkpoints import load_checkpoint
from ...types.models import Tuned

_REMEDY = "give RUN, RUN@STEP or RUN@best, of a run whose checkpoints are there"
# Of networks that hold a model among other things, such as value heads, what the model's own weights are called.
_WRAPPED = ("policy.", "language_model.")
_HEADS = ("value_head.", "heads.")


def checkpoint_of(reference: str) -> str:
    """The checkpoint that ``reference`` (RUN, RUN@STEP, RUN@best, or its folder) means: of a whole run the newest one.

    Raises UserError for what is none.
    """
    place = expand(reference)
    if (place / "recipe.yaml").is_file():
        steps = checkpoint_steps(place)
        if not steps:
            remedy = "give its result as the model, or adapters of it as model.init_lora"
            raise UserError(f"model.init_from: {reference} has no checkpoints", remedy)
        return str(steps[max(steps)])
    checkpoint = Path(expand(weights_of(reference)))
    if not (run_of(checkpoint) / "recipe.yaml").is_file() or run_of(checkpoint) == checkpoint:
        raise UserError(f"model.init_from: {reference} is no run, and no checkpoint of one", _REMEDY)
    return str(checkpoint)


def starts_elsewhere(recipe: Recipe) -> bool:
    """Whether the adapters of ``recipe`` change the base before the first update."""
    return recipe.model.tuning == "lora" and bool(recipe.model.init_from or recipe.model.init_lora)


def start_of(recipe: Recipe) -> str | None:
    """A line on where the run of ``recipe`` starts and what it is compared with; None where it starts at its base."""
    model = recipe.model
    start = model.init_from or model.init_lora
    if start is None:
        return None
    what = "weights" if model.tuning == "full" else "adapters"
    if not needs_reference(recipe.objective):
        compared = ""
    elif model.reference_model_name_or_path is not None:
        compared = f"; the reference is {model.reference_model_name_or_path}"
    elif model.tuning == "full":
        compared = "; they are the reference too, so the first loss is that of equal models"
    else:
        base = model.pretrained_model_name_or_path
        compared = f"; the reference is {base} without adapters, so the first loss is not that of equal models"
    return f"start            {what} of {start}{compared}"


def start_from_run(
    recipe: Recipe, model: Tuned, wanted: Mapping[str, nn.Parameter], base_hash: str | None = None
) -> None:
    """Give ``wanted``, weights of the network of ``model`` by name, the values of the checkpoint that the recipe names.

    The average, where the run has one, as its result does; heads beside the model are left aside. ``base_hash``: that of
    the model below the adapters, which must be that of the run. Raises UserError, which names every setting in which the
    two runs differ, and for tensors that do not fit.
    """
    reference = recipe.model.init_from
    assert reference is not None
    checkpoint = Path(reference)
    if not checkpoint.is_dir():
        problem = f"model.init_from: {reference} is gone, and the run starts with its weights"
        raise UserError(problem, "bring it back, or begin another run with another start")
    _check_alike(recipe, checkpoint)
    _, tensors, state = load_checkpoint(checkpoint)
    _check_base(recipe, checkpoint, state.get("identity"), base_hash)
    saved = _own_weights(tensors.get("average") or tensors.get("policy", {}))
    missing, foreign = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
    unlike = sorted(name for name in wanted if name in saved and saved[name].shape != wanted[name].shape)
    problems = [f"{len(missing)} weights are not in it, {missing[0]} among them"] if missing else []
    problems += [f"{len(foreign)} of its weights are not trained here, {foreign[0]} among them"] if foreign else []
    problems += [
        f"{name} is {tuple(saved[name].shape)} there, and {tuple(wanted[name].shape)} here" for name in unlike[:1]
    ]
    if problems:
        raise UserError(f"model.init_from: {reference}: {'; '.join(problems)}", "use the base and tuning of that run")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(saved[name])


def trained_as_a_whole(model: Tuned) -> dict[str, nn.Parameter]:
    """What full tuning trains of ``model``, by its names in the network."""
    parts = {id(parameter) for part in model.trained_parts() for parameter in part.parameters()}
    return {name: parameter for name, parameter in model.network.named_parameters() if id(parameter) in parts}


def trained_adapters(model: Tuned) -> dict[str, nn.Parameter]:
    """What is trained of ``model`` under adapters, by its names in the network."""
    return dict(trainable(model.network))


def _own_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the model itself, by the names that they have in its network."""
    kept = {name: value for name, value in tensors.items() if name != "updates" and not name.startswith(_HEADS)}
    for prefix in _WRAPPED:
        if kept and all(name.startswith(prefix) for name in kept):
            kept = {name.removeprefix(prefix): value for name, value in kept.items()}
    return kept


def _check_alike(recipe: Recipe, checkpoint: Path) -> None:
    """Raise UserError for all settings by which weights of the run of ``checkpoint`` would not be those of this one."""
    with reading(checkpoint, "a checkpoint of a run", _REMEDY):
        before = recorded_model(checkpoint, _REMEDY, "family", "tuning", "lora_rank", "lora_targets")
    assert before is not None
    own = recipe.model
    names = ["family", "tuning"]
    if own.tuning == "lora" == before["tuning"]:
        names += ["lora_rank", "lora_alpha", "lora_targets", "lora_modules_to_save"]
    old, new = _comparable(before), _comparable(vars(own))
    unlike = [
        f"model.{name}: {shown(old[name])} there, {shown(new[name])} here" for name in names if old[name] != new[name]
    ]
    if unlike:
        problem = f"model.init_from: {checkpoint} was trained otherwise: {'; '.join(unlike)}"
        raise UserError(problem, _remedy(own.tuning, before["tuning"], run_of(checkpoint)))


def _check_base(recipe: Recipe, checkpoint: Path, identity: object, base_hash: str | None) -> None:
    """Raise UserError where adapters of the run of ``checkpoint`` were trained over other weights than ``base_hash``."""
    kept = identity if isinstance(identity, Mapping) else {}
    there = None if "trajectories" in kept else kept.get("base")  # value learning hashes its heads too
    before = recorded_model(checkpoint, _REMEDY) or {}
    # In another precision the same weights have another hash.
    if None in (there, base_hash) or there == base_hash or before.get("dtype") != recipe.model.dtype:
        return
    key = "pretrained_model_name_or_path"
    problem = f"model.init_from: the adapters of {checkpoint} were trained over another base than the one here"
    known = f"{before.get(key)} there (hash {there}), {getattr(recipe.model, key)} here ({base_hash})"
    raise UserError(f"{problem}: {known}", "use the base of that run, as it was")


def _comparable(model: Mapping[str, object]) -> dict[str, object]:
    """Settings of a model, of which those that say the same are equal."""
    alpha = model.get("lora_alpha")
    lists = {name: sorted(cast(list[str], model.get(name) or [])) for name in ("lora_targets", "lora_modules_to_save")}
    return {**model, **lists, "lora_alpha": model["lora_rank"] if alpha is None else alpha}


def _remedy(here: str, there: str, run: Path) -> str:
    if (here, there) == ("lora", "full"):
        return f"give {run} as model.pretrained_model_name_or_path: adapters go onto its weights"
    if (here, there) == ("full", "lora"):
        return "tune by lora too, or merge that run into its base and give it as the model"
    return "use the settings of that run; model.init_lora takes adapters of another strength"
