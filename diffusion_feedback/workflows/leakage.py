"""Whether a model was trained on what it is measured on: from what its run has recorded, or from the data that are still there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..catalog import family_row
from ..config.data_lists import data_parts
from ..data.provenance import judges_of_pairs, prompts_of_pairs, prompts_of_texts
from ..documents import read_object, read_yaml
from ..errors import UserError, first_line
from ..evaluation.benchmarks.run import BenchmarkRun
from ..evaluation.leakage import Leakage, TrainedOn, find_leakage
from ..folders import ROUNDS, expand
from ..generation.images import METADATA
from ..generation.rows import read_records
from ..records import ImageRecord, Text
from ..runs import run_of, weights_of
from .training.trained_on import ENVIRONMENT, TRAINED_ON

logger = logging.getLogger(__name__)

_REMEDY = "train it again"
_UNREADABLE = (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def leakage_of_run(run: BenchmarkRun) -> Leakage:
    """What the model of a benchmark run has seen of its prompts and judges; of given images as far as their manifest names it."""
    models = [str(run.settings[key]) for key in ("model", "lora") if run.settings.get(key)]
    models = models or _origins(run)
    judges = {values.scorer: values.recipe_id for values in run.values}
    return leakage_of(models, [prompt.prompt for prompt in run.prompts], judges)


def _origins(run: BenchmarkRun) -> list[str]:
    """Where the models lay that drew the images of ``run``, as the manifest beside them says."""
    manifest, names = run.image_root / METADATA, {name for row in run.images for name in row}
    if not manifest.is_file():
        return []
    try:
        records, _ = read_records(manifest, ImageRecord, "generated image", _REMEDY)
    except _UNREADABLE as error:
        logger.warning("note: who drew the images in %s is not known: %s", run.image_root, first_line(error))
        return []
    return sorted({place for record in records if record.file_name in names for place in record.origin.values()})


def leakage_of(models: Sequence[str], prompts: Sequence[Text], judges: Mapping[str, str]) -> Leakage:
    """What ``models``, a base and what is put on it, have seen of ``prompts``, and which of ``judges`` labelled for them."""
    known = [trained for trained in map(trained_on, models) if trained is not None]
    total = None
    for trained in known:
        total = trained if total is None else total | trained
    named = {_resolved(name): name for name in judges}
    leaked = find_leakage(total, prompts, {key: judges[name] for key, name in named.items()})
    if leaked.judges is None:
        return leaked
    return Leakage(leaked.prompts, tuple(named[key] for key in leaked.judges))


def trained_on(model: str, seen: frozenset[Path] = frozenset()) -> TrainedOn | None:
    """What the run at ``model`` was trained on, and the runs that it started from; None for what is no run of ours."""
    try:
        folder = _run_at(model)
        if folder in seen or not (folder / "recipe.yaml").is_file():
            return None
        recipe = _recipe(folder)
        own = _recorded(folder)
        own = own if own is not None else _of_data(folder, recipe)
        if own is None:
            logger.warning(
                "note: what %s was trained on is not known: it was not recorded, and the data are not there", model
            )
        own = _with_round(own, folder)
        # A reference is compared with, and not learnt from.
        names = [value for key, value in recipe["model"].items() if isinstance(value, str) and "reference" not in key]
        bases = [trained_on(name, seen | {folder}) for name in names]
    except _UNREADABLE as error:
        logger.warning("note: what %s was trained on is not known: %s", model, first_line(error))
        return None
    known = [each for each in (own, *bases) if each is not None]
    for each in known[1:]:
        known[0] |= each
    return known[0] if known else None


def _recipe(folder: Path) -> dict[str, Any]:
    path = folder / "recipe.yaml"
    recipe = read_yaml(path, _REMEDY)
    if not isinstance(recipe, dict):
        raise UserError(f"{path}: holds no recipe", _REMEDY)
    return recipe


def _run_at(model: str) -> Path:
    """The folder of the run whose weights ``model`` names; of a merged model of rounds the run that made it."""
    folder = run_of(expand(weights_of(model)))
    if folder.name == "model" and (folder.parent.parent / ROUNDS).is_file():
        return folder.parent / "run"
    return folder


def _recorded(folder: Path) -> TrainedOn | None:
    path = folder / ENVIRONMENT
    recorded = read_object(path, _REMEDY).get(TRAINED_ON) if path.is_file() else None
    if recorded is None:
        return None
    trained = TrainedOn.of_json(recorded)
    return TrainedOn(trained.prompts, {_resolved(name): recipe for name, recipe in trained.judges.items()})


def _of_data(folder: Path, recipe: Mapping[str, Any]) -> TrainedOn | None:
    """What an older run was trained on, where its data are still in their place on this machine."""
    data = recipe["data"]
    places = [str(part.place) for part in data_parts(data["train"], "data.train", weighted=True)]
    if not all(expand(place).exists() for place in places):
        return None
    reading = {
        "split": data.get("split") or "train",
        "revision": data.get("revision"),
        "columns": data.get("columns") or None,
    }
    if family_row(recipe["model"]["family"]).reads_text:
        reward = str(recipe["rollouts"].get("reward") or "")
        texts = (prompt for place in places for prompt in prompts_of_texts(place, **reading))
        return TrainedOn.of(texts, {_resolved(reward): ""} if reward else {})
    judges = {name: each for place in places for name, each in judges_of_pairs(place, **reading).items()}
    return TrainedOn.of((prompt for place in places for prompt in prompts_of_pairs(place, **reading)), judges)


def _with_round(own: TrainedOn | None, folder: Path) -> TrainedOn | None:
    """``own`` with the judge of the rounds that the run in ``folder`` is one of."""
    rounds = folder.parent.parent
    if own is None or not (rounds / ROUNDS).is_file():
        return own
    recipe = _recipe(rounds)
    settings = recipe["rounds"]
    named = (settings.get("labels_from"), settings.get("scorer"), recipe["rollouts"].get("reward"))
    judges = {_resolved(str(spec)): "" for spec in named if spec}
    return TrainedOn(own.prompts, {**judges, **own.judges})


def _resolved(spec: str) -> str:
    """A judge's spec, such as "reward_model=runs/a,max_length=9", by the place of what it names and nothing else."""
    kind, separator, rest = spec.partition("=")
    source = rest.split(",")[0] if separator else spec
    if separator and kind != "function" and Path(source).expanduser().exists():
        source = str(Path(source).expanduser().resolve())
    return source if kind == "function" or not separator else f"{kind}={source}"
