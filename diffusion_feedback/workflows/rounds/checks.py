"""Which recipes make sense as rounds, whatever the samples are."""

from __future__ import annotations

from ...catalog import needs_reference, objective_row
from ...config.recipe import Recipe, RoundsConfig
from ...errors import UserError
from ...labeling.rule_specs import rule_of
from .modality import Modality


def check_rounds(recipe: Recipe, modality: Modality) -> None:
    """Raise UserError for values out of range, judges that are missing, and settings that contradict each other."""
    rounds, name = recipe.rounds, recipe.objective["name"]
    least = {"num_rounds": 1, "num_prompts": 1, "num_samples": 2, "batch_size": 1}
    least |= {"num_heldout_prompts": 2, "num_heldout_samples": 1}
    for key, low in least.items():
        value = getattr(rounds, key)
        if value is not None and value < low:
            raise UserError(f"rounds.{key}: got {value}", f"allowed: {low} or more")
    if not 0 <= rounds.reference_decay < 1:
        raise UserError(f"rounds.reference_decay: got {rounds.reference_decay}", "allowed: 0 or more, below 1")
    if not rounds.heldout_prompts:
        raise UserError(
            "rounds.heldout_prompts: is not given", "name a file of prompts that the rounds do not train on"
        )
    if not objective_row(name).sees_both:
        problem = f"objective.name: {name!r} does not learn from the pairs that rounds make"
        raise UserError(problem, "use one that does, such as dpo")
    if recipe.model.reference_model_name_or_path is not None:
        raise UserError("model.reference_model_name_or_path: every round has its own", "set rounds.reference")
    rule_of(rounds.rule, "rounds.rule")
    if not needs_reference(recipe.objective) and rounds.reference != RoundsConfig().reference:
        problem = f"rounds.reference: got {rounds.reference!r}, and objective {name!r} has no reference"
        raise UserError(problem, "leave it out")
    if rounds.reference != "ema" and rounds.reference_decay != RoundsConfig().reference_decay:
        problem = f"rounds.reference_decay: means nothing with reference {rounds.reference!r}"
        raise UserError(problem, "leave it out, or set rounds.reference: ema")
    modality.check()
