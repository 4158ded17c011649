"""Which settings of rollouts make sense."""

from __future__ import annotations

from ..catalog import objective_row
from ..errors import UserError
from .meaning import refuse, require
from .recipe import Recipe, RoundsConfig

_POLICY_GRADIENT_ONLY = (
    "rollouts.num_prompts",
    "rollouts.num_generations",
    "rollouts.num_ppo_epochs",
    "rollouts.num_mini_batches",
    "rollouts.missing_eos_penalty",
    "rollouts.reward_clip",
    "rollouts.ptx_data",
    "rollouts.ptx_coef",
    "rollouts.ptx_batch_size",
)
# Completions are not labelled, and how many an update has follows from the rollouts.
_LABELS = (
    "data.ties",
    "data.soft_labels",
    "data.prompt_weights",
    "training.gradient_accumulation_steps",
    "text.cache_reference",
    "text.max_completion_length",
)


def check_rollouts(recipe: Recipe) -> None:
    """Refuse values out of range, and settings that mean nothing for the objective. Raises UserError naming the key."""
    name, rollouts = recipe.objective["name"], recipe.rollouts
    row = objective_row(name)
    if row.learns_from != "rollouts":
        # In rounds somebody judges what was drawn, whatever is learnt from it then.
        keys = _POLICY_GRADIENT_ONLY if recipe.rounds != RoundsConfig() else (*_POLICY_GRADIENT_ONLY, "rollouts.reward")
        refuse(recipe, keys, f"objective {name!r}, which does not learn from its own completions")
        return
    refuse(recipe, _LABELS, f"objective {name!r}, which learns from its own completions")
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
        refuse(recipe, ("model.reference_model_name_or_path",), f"{name} without a KL, which asks no reference")
    if rollouts.ptx_data is None:
        refuse(recipe, ("rollouts.ptx_coef", "rollouts.ptx_batch_size"), "a run without rollouts.ptx_data")
