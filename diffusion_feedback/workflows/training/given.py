"""What a run is given besides its recipe: objects in place of what the recipe names, a device and processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator

from ...catalog import objective_row
from ...catalog.rows import ObjectiveRow, name_of
from ...catalog.sources import source_hash
from ...config.data_lists import DataPart, data_parts
from ...config.parsing import checked
from ...config.recipe import Recipe
from ...config.sources import is_object, object_name
from ...data.places import check_dataset
from ...errors import UserError
from ...folders import expand
from ...models.loaded import as_it_came, family_of, from_loaded, has_adapters
from ...runs import moving_run, recorded_model, run_of, weights_of
from ...scorers.texts.function import from_function
from ...types.models import Tokenizer, Tuned
from ...types.texts import TextScorer
from .starting import checkpoint_of

if TYPE_CHECKING:
    from ...data.places import Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Objects that a caller hands in; what is None is loaded by the name in the recipe.

    Args:
        model: A diffusers pipeline, or a transformers model.
        tokenizer: The tokenizer of a transformers model.
        train_data: A ``datasets.Dataset``, or a list of these and of paths, each as itself or as {path, repeats, weight}.
        validation_data: Another one.
        reward: A function of prompts and completions, or a text scorer.
    """

    model: Any = None
    tokenizer: Tokenizer | None = None
    train_data: Any = None
    validation_data: Any = None
    reward: TextScorer | None = None


NOTHING = Given()
"""All is loaded by name."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What every session is built of."""

    recipe: Recipe
    accelerator: Accelerator
    given: Given = NOTHING
    goes_on: bool = False  # from a checkpoint, which holds all that is trained

    def model(self) -> Tuned | None:
        """What is tuned over the model that was given, in the recipe's precision; None where none was."""
        if self.given.model is None:
            return None
        dtype, device = getattr(torch, self.recipe.model.dtype), self.accelerator.device
        return from_loaded(self.given.model, self.given.tokenizer, dtype=dtype, device=device)

    @property
    def objective(self) -> ObjectiveRow:
        """The recipe's objective."""
        return objective_row(self.recipe.objective["name"])

    @property
    def objective_settings(self) -> Mapping[str, object]:
        """The settings of the recipe's objective."""
        return {key: value for key, value in self.recipe.objective.items() if key != "name"}

    def data(self, *, heldout: bool) -> Any:
        """The training or the held-out data: a data set that was given, else the recipe's path; None where there is none."""
        own = self.given.validation_data if heldout else self.given.train_data
        if own is not None:
            return own
        return self.recipe.data.validation if heldout else self.recipe.data.train

    def parts(self, *, heldout: bool) -> list[DataPart]:
        """The data sets of ``data``, with how often their examples are drawn; none where there is none.

        Raises UserError for a list that makes no sense.
        """
        given = self.data(heldout=heldout)
        key = "data.validation" if heldout else "data.train"
        return [] if given is None else data_parts(given, key, weighted=not heldout)

    def only_data(self, what: str, *, heldout: bool) -> str | Dataset | None:
        """``data`` of runs that read one data set. Raises UserError, which says ``what`` they read, for a list."""
        given = self.data(heldout=heldout)
        if isinstance(given, list | tuple):
            key = "data.validation" if heldout else "data.train"
            raise UserError(f"{key}: {len(given)} data sets, and {what} are read from one", "join them in one file")
        own: str | Dataset | None = given
        return own

    def reading(self, *, heldout: bool) -> dict[str, Any]:
        """How the training or the held-out data are read: split, revision, names of columns, and whether bad rows are left out."""
        return {**self.place(heldout=heldout), "on_bad_row": self.recipe.data.on_bad_row}

    def place(self, *, heldout: bool) -> dict[str, Any]:
        """Which rows of the training or the held-out data are meant: split, revision, and names of columns where there are any."""
        data = self.recipe.data
        split = data.validation_split if heldout else data.split
        names = {"columns": data.columns} if data.columns else {}
        return {"split": split, "revision": data.revision, **names}

    def limit(self, *, heldout: bool) -> int | None:
        """How many examples are used at most; None for all."""
        return self.recipe.data.max_validation_pairs if heldout else self.recipe.data.max_train_pairs

    @property
    def batch_size(self) -> int:
        """Examples in one optimizer step, over all processes."""
        training, num_processes = self.recipe.training, int(self.accelerator.num_processes)
        return training.train_batch_size * training.gradient_accumulation_steps * num_processes


def accept(
    recipe: Recipe, objective: object, given: Mapping[str, object], *, resume: bool = False
) -> tuple[Recipe, Given]:
    """``recipe`` with all that was handed in by name or as a path, checked, and the rest as objects.

    Where an object takes the place of a name, the recipe says what it was, in angle brackets. With ``resume`` the steps of
    other runs are those that the run in the recipe's folder began with. Raises UserError for objects
    of the wrong kind, and as a recipe file does.
    """
    objects: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    keys: dict[str, object] = {}
    for name, (key, mark) in _PLACES.items():
        if isinstance(objects.get(name), str | os.PathLike):
            keys[key] = str(objects.pop(name))
        elif name in objects and isinstance(objects[name], list | tuple) and _is_plain(objects[name]):
            keys[key] = [os.fspath(each) if isinstance(each, os.PathLike) else each for each in objects.pop(name)]
        elif name in objects:
            keys[key] = mark(objects, name)
    if "model" in objects:
        keys["model.family"] = family_of(objects["model"])
    elif "tokenizer" in objects:
        raise UserError("`tokenizer`: comes with a loaded model alone", "leave it out: a folder holds its own")
    for key, value in keys.items():
        section, _, field = key.partition(".")
        recipe = replace(recipe, **{section: replace(getattr(recipe, section), **{field: value})})
    if objective is not None:
        whole = objective if isinstance(objective, Mapping) else {"name": objective}
        recipe = replace(recipe, objective=dict(whole))
    recipe = checked(recipe)
    return pinned(recipe, _began_with(expand(recipe.output_dir)) if resume else {}), Given(**objects)


def pinned(recipe: Recipe, before: Mapping[str, object] = MappingProxyType({})) -> Recipe:
    """``recipe`` with the folders of models that are named as steps of runs: what is the best step later changes no run.

    ``before``: the model section with which the run began, whose steps are kept where the same runs are named.
    Raises UserError for a step that is not there.
    """
    places: dict[str, Any] = {}
    for name, resolve in _PINNED.items():
        reference, old = getattr(recipe.model, name), before.get(name)
        if reference is not None:
            is_kept = isinstance(old, str) and _is_still(reference, old, is_newest=name == "init_from")
            places[name] = old if is_kept else resolve(reference)
    return replace(recipe, model=replace(recipe.model, **places))


def _is_still(reference: str, old: str, *, is_newest: bool) -> bool:
    """Whether ``old``, which was recorded, is what ``reference`` meant then; ``is_newest``: a run itself means its newest step."""
    run = moving_run(reference)
    if run is None and is_newest:
        run = expand(reference)
    return reference == old or (run is not None and run.resolve() == run_of(expand(old)).resolve())


def _began_with(run: Path) -> Mapping[str, object]:
    """The model section of the recipe in the folder ``run``; nothing where none can be read, which is said elsewhere."""
    try:
        return recorded_model(run, "") or {}
    except UserError:
        return {}


def recorded(recipe: Recipe) -> Recipe:
    """``recipe`` as it is written down: an objective that is no name is recorded by name, module and source."""
    name = recipe.objective["name"]
    if isinstance(name, str):
        return recipe
    function = name.function if isinstance(name, ObjectiveRow) else name
    mark = object_name(name_of(name), source_hash(function)[:12])
    return replace(recipe, objective={**recipe.objective, "name": mark})


def check_all_given(recipe: Recipe, given: Given) -> None:
    """Raise UserError where a recipe was recorded with an object that is not given this time."""
    for name, (key, _) in _PLACES.items():
        value = attrgetter(key)(recipe)
        if getattr(given, name) is None and is_object(value):
            problem = f"{key}: {str(value)[1:-1]}, which no recipe can hold"
            raise UserError(problem, f"call train in Python with the same {name}")


def _mark_of_model(objects: Mapping[str, object], name: str) -> str:
    model, kind = objects[name], type(objects[name]).__name__
    if has_adapters(model):
        raise UserError(f"model: a {kind} that carries adapters", "fuse or unload them: a run puts on its own")
    tokenizer = cast(Tokenizer | None, objects.get("tokenizer"))
    # The hash is that of float32; what is cast for it must not take the place of weights that the run can use as they are.
    with as_it_came(model):
        return object_name(kind, from_loaded(model, tokenizer).model_hash())


def _mark_of_data(objects: Mapping[str, object], name: str) -> str:
    sizes = []
    for part in data_parts(objects[name], name, weighted=name == "train_data"):
        what = part.place
        if not isinstance(what, str | os.PathLike):
            check_dataset(what, name)
            assert isinstance(what, Sized)
            what = f"{len(what)} rows"
        sizes.append(f"{what} x {part.times:g}" if part.times != 1 else str(what))
    return object_name("datasets.Dataset", " and ".join(sizes))


def _is_plain(given: Sequence[object]) -> bool:
    """Whether a list of data sets names them all by paths or ids, as a recipe can."""
    places = [each.get("path") if isinstance(each, Mapping) else each for each in given]
    return all(isinstance(place, str | os.PathLike) for place in places)


def _mark_of_reward(objects: dict[str, object], name: str) -> str:
    """A function among ``objects`` becomes a scorer there."""
    reward = objects[name]
    if not hasattr(reward, "score"):
        if not callable(reward):
            raise UserError(f"reward: is a {type(reward).__name__}", "give a function of prompts and completions")
        reward = objects[name] = from_function(reward)
    return object_name("reward", getattr(reward, "recipe_id", ""))


# Keys of the model section that may name a step of a run, and what finds its folder.
_PINNED: Mapping[str, Callable[[str], str]] = {
    "pretrained_model_name_or_path": weights_of,
    "reference_model_name_or_path": weights_of,
    "init_from": checkpoint_of,
    "init_lora": weights_of,
}
# By parameter, the key of the recipe that an object stands for, and what names the object there.
_PLACES: Mapping[str, tuple[str, Callable[[dict[str, object], str], str]]] = {
    "train_data": ("data.train", _mark_of_data),
    "validation_data": ("data.validation", _mark_of_data),
    "reward": ("rollouts.reward", _mark_of_reward),
    "model": ("model.pretrained_model_name_or_path", _mark_of_model),
}
