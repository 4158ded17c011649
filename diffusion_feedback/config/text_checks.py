"""Which recipes for models of texts make sense."""

from __future__ import annotations

from ..catalog import needs_reference, objective_row
from ..errors import UserError
from .meaning import keys_for, keys_of, refuse_keys
from .recipe import IMAGES, NOISE, SAMPLES, Recipe
from .rollout_checks import check_rollouts

_REFERENCE = ("text.cache_reference", "model.reference_model_name_or_path")
_SIDES = ("text.share_prompt", "text.tail_weight")
_DIFFUSION_DEFAULT = {"name": "dpo", "beta": 5000.0}


def check_text(recipe: Recipe) -> None:
    """Refuse values out of range, and settings that mean nothing for texts. Raises UserError naming the key."""
    # A text has no pixels and no noise; it is read whole, and nothing but the reference is worth a cache.
    refuse_keys(recipe, keys_for(IMAGES, NOISE), "a model of texts")
    if recipe.objective == _DIFFUSION_DEFAULT:
        problem = "objective: dpo with beta 5000 is the default for images, and a thousand times too steep for texts"
        raise UserError(problem, "set it, for example objective: {name: dpo, beta: 0.1}")
    name = recipe.objective["name"]
    row = objective_row(name)
    if not row.sees_both:
        refuse_keys(recipe, _SIDES, f"objective {name!r}, which sees completions one at a time")
    if not needs_reference(recipe.objective) and row.learns_from != "rollouts":
        refuse_keys(recipe, _REFERENCE, f"objective {name!r}, which has no reference")
    if row.learns_from == "labels":
        refuse_keys(
            recipe, ("text.cache_reference",), f"objective {name!r}: other prompts meet other completions each time"
        )
    writing = (*keys_for(SAMPLES), *keys_of("rollouts"))
    if row.trains_judge:
        refuse_keys(recipe, writing, "a reward model, which writes nothing")
    if row.learns_from == "trajectories":
        refuse_keys(recipe, writing, f"objective {name!r}, which learns from given completions alone")
        refuse_keys(recipe, ("training.ema_decay",), f"objective {name!r}, whose targets are averages already")
    check_rollouts(recipe)
