"""The folder of rounds: whose it is, and what was measured in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import yaml

from ...config.recipe import Recipe, to_dict
from ...config.sources import user_sources
from ...documents import read_object, read_yaml
from ...errors import UserError
from ...folders import ROUNDS, check_outside
from ...output_folders import OutputKind
from ...records import Text, content_hash, write_text
from ..training.run import inputs_of

_RECIPE = "recipe.yaml"
_ROUNDS = OutputKind(
    # The mark comes first: where its writer is killed, the rounds go on.
    mark=ROUNDS,
    own=("round-*", "README.md", "rounds.json", "report.html", _RECIPE),
    # Rounds are added, and speed changes no result.
    free={("rounds", "num_rounds"), ("rounds", "batch_size"), ("rollouts", "batch_size"), ("output_dir",)},
    foreign="is there and holds no rounds",
    changed="holds rounds with {key} = {old}, the recipe has {new}",
)
_IDENTITIES = replace(_ROUNDS, free=(), changed="holds rounds of another content of the {key}")


def claim(recipe: Recipe, identity: Mapping[str, str], *, overwrite: bool) -> None:
    """Make the recipe's folder one of rounds of this ``identity`` (see ``identity_of``), and write the recipe to it.

    Raises UserError where it holds something else, or rounds of another recipe, other prompts or another model.
    """
    folder = Path(recipe.output_dir)
    path, is_marked = folder / _RECIPE, _ROUNDS.is_marked(folder)
    if overwrite:
        check_outside(folder, inputs_of(recipe))
    elif path.exists() and is_marked:
        _check_same(recipe)
    holds_run = path.exists() and not is_marked
    kind = replace(_IDENTITIES, foreign="is there and holds a training run") if holds_run else _IDENTITIES
    kind.open(folder, identity, overwrite=overwrite)
    write_text(path, yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True))


def identity_of(recipe: Recipe, prompts: tuple[list[Text], list[Text]]) -> dict[str, str]:
    """Hashes of ``prompts`` (of the rounds, and held-out), of the initial model's files, or name on the hub, and of the
    user's own code, where the recipe names some.
    """
    model = Path(recipe.model.pretrained_model_name_or_path)
    if not model.is_dir():
        own = content_hash(str(model), str(recipe.model.revision))
    else:
        files = sorted(file for file in model.rglob("*") if file.suffix in (".safetensors", ".json", ".bin"))
        own = content_hash(*(part for file in files for part in (str(file.relative_to(model)), file)))
    code = user_sources(to_dict(recipe))
    return {"prompts": content_hash(repr(prompts)), "model": own} | (
        {"code": content_hash(*code.values())} if code else {}
    )


def _check_same(recipe: Recipe) -> None:
    folder = Path(recipe.output_dir)
    remedy = "bring the file back, choose another output_dir, or `overwrite` to start over"
    before = read_yaml(folder / _RECIPE, remedy)
    if not isinstance(before, dict):
        raise UserError(f"{folder / _RECIPE}: damaged: not a recipe", remedy)
    _ROUNDS.check_same(folder, before, to_dict(recipe))
    beyond = folder / f"round-{recipe.rounds.num_rounds + 1}"
    if beyond.exists():
        problem = f"rounds.num_rounds: got {recipe.rounds.num_rounds}, and {beyond} is there"
        raise UserError(problem, "ask for all rounds that are there or more, or choose another output_dir")


def read_divergence(path: Path) -> dict[str, list[float]]:
    """The numbers in divergence.json. Raises UserError for a damaged file."""
    remedy = "remove the file, and start the same rounds again"
    measured = read_object(path, remedy)
    for name, values in measured.items():
        if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
            raise UserError(f"{path}: damaged: {name!r} is no list of numbers", remedy)
    return measured
