"""Which settings of rollouts make sense."""

from __future__ import annotations

from ..catalog import objective_row
from ..errors import UserError
from .meaning import keys_for, refuse_keys, require
from .recipe import GIVEN, POLICY_GRADIENT, Recipe, RoundsConfig


def check_rollouts(recipe: Recipe) -> None:
    """Refuse values out of range, and settings that mean nothing for the objective. Raises UserError naming the key."""
    name, rollouts = recipe.objective["name"], recipe.rollouts
    row = objective_row(name)
    if row.learns_from != "rollouts":
        # In rounds somebody judges what was drawn, whatever is learnt from it then.
        keys = [] if recipe.rounds != RoundsConfig() else ["rollouts.reward"]
        refuse_keys(
            recipe,
            [*keys_for(POLICY_GRADIENT), *keys],
            f"objective {name!r}, which does not learn from its own completions",
        )
        return
    refuse_keys(recipe, keys_for(GIVEN), f"objective {name!r}, which learns from its own completions")
    algorithm = row(**{key: value for key, value in recipe.objective.items() if key != "name"})
    require(
        bool(rollouts.reward), "rollouts.reward", rollouts.reward, "what judges completions, such as reward_model=PATH"
    )
    require(rollouts.temperature > 0, "rollouts.temperature", rollouts.temperature, f"above 0 with {name}")
    least = algorithm.min_generations
    require(
        rollouts.num_generations >= least,
        "rollouts.num_generations",
        rollouts.num_generations,
        f"{least} or more with {name}",
    )
    completions = rollouts.num_prompts * rollouts.num_generations
    require(
        completions % rollouts.num_mini_batches == 0,
        "rollouts.num_mini_batches",
        rollouts.num_mini_batches,
        f"a divisor of the {completions} completions of an iteration (num_prompts * num_generations)",
    )
    if getattr(algorithm, "target_kl", None) is not None and completions >= 5 * algorithm.horizon:
        problem = f"objective.horizon: {algorithm.horizon:g} beside {completions} completions an iteration"
        raise UserError(problem, "use more than a fifth of their number; the KL coefficient could fall to 0 and below")
    if algorithm.kl_coef == 0:
        refuse_keys(recipe, ("model.reference_model_name_or_path",), f"{name} without a KL, which asks no reference")
    if rollouts.ptx_data is None:
        refuse_keys(recipe, ("rollouts.ptx_coef", "rollouts.ptx_batch_size"), "a run without rollouts.ptx_data")
