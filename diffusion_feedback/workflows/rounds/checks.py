"""Which recipes make sense as rounds."""

from __future__ import annotations

from pathlib import Path

from ...catalog import family_row, needs_reference, objective_row
from ...config import Recipe, RoundsConfig, load_recipe
from ...errors import UserError
from ...labeling.rules import rule_of
from ...scorers.texts.loading import parse_text_spec


def check_rounds(recipe: Recipe) -> None:
    """Refuse values out of range, judges that are missing, and settings that contradict each other. Raises UserError."""
    rounds, is_text = recipe.rounds, family_row(recipe.model.family).reads_text
    least = {"num_rounds": 1, "num_prompts": 1, "num_samples": 2, "batch_size": 1}
    least |= {"num_heldout_prompts": 2, "num_heldout_samples": 1}
    for key, low in least.items():
        value = getattr(rounds, key)
        if value is not None and value < low:
            raise UserError(f"rounds.{key}: got {value}", f"allowed: {low} or more")
    temperature = recipe.rollouts.temperature
    if is_text and not 0 < temperature < float("inf"):
        raise UserError(f"rollouts.temperature: got {temperature}", "allowed: above 0, as samples must differ")
    if not 0 <= rounds.reference_decay < 1:
        raise UserError(f"rounds.reference_decay: got {rounds.reference_decay}", "allowed: 0 or more, below 1")
    if not rounds.heldout_prompts:
        raise UserError(
            "rounds.heldout_prompts: is not given", "name a file of prompts that the rounds do not train on"
        )
    name = recipe.objective["name"]
    if not objective_row(name).sees_both:
        problem = f"objective.name: {name!r} does not learn from the pairs that rounds make"
        raise UserError(problem, "use one that does, such as dpo")
    if recipe.model.reference_model_name_or_path is not None:
        raise UserError("model.reference_model_name_or_path: every round has its own", "set rounds.reference")
    rule_of(rounds.rule, "rounds.rule")
    _check_reference(recipe, rounds, name, is_text)
    _check_judges(recipe, rounds, is_text)


def _check_reference(recipe: Recipe, rounds: RoundsConfig, objective: str, is_text: bool) -> None:
    compares = needs_reference(recipe.objective)
    if not compares and rounds.reference != RoundsConfig().reference:
        problem = f"rounds.reference: got {rounds.reference!r}, and objective {objective!r} has no reference"
        raise UserError(problem, "leave it out")
    if rounds.reference != "ema" and rounds.reference_decay != RoundsConfig().reference_decay:
        problem = f"rounds.reference_decay: means nothing with reference {rounds.reference!r}"
        raise UserError(problem, "leave it out, or set rounds.reference: ema")
    if not is_text and compares and rounds.reference != rounds.start_from:
        problem = f"rounds.reference: got {rounds.reference!r}, start_from is {rounds.start_from!r}"
        raise UserError(problem, "a run on images compares with the model that it starts from: make the two equal")


def _check_judges(recipe: Recipe, rounds: RoundsConfig, is_text: bool) -> None:
    if is_text:
        for spec in filter(None, (recipe.rollouts.reward, rounds.labels_from, rounds.heldout_judge)):
            parse_text_spec(spec, "text_scorer")
    judge = recipe.rollouts.reward if is_text else rounds.scorer
    key, other = ("rollouts.reward", rounds.scorer) if is_text else ("rounds.scorer", "")
    if other:
        raise UserError(f"rounds.scorer: got {other!r}, and texts are judged by rollouts.reward", "leave it out")
    if rounds.reward_recipe is None:
        if not judge:
            raise UserError(f"{key}: nobody judges the samples", f"set {key}")
        if rounds.labels_from is not None:
            problem = "rounds.labels_from: labels pairs for a reward model, and none is trained"
            raise UserError(problem, "set rounds.reward_recipe, or leave it out")
        return
    if not is_text:
        raise UserError("rounds.reward_recipe: reward models judge texts", "leave it out")
    if judge:
        problem = f"rollouts.reward: got {judge!r}, and the rounds train the judge that they use"
        raise UserError(problem, "leave it out, or leave rounds.reward_recipe out")
    if rounds.labels_from is None:
        raise UserError("rounds.labels_from: nobody labels the reward model's pairs", "set it")
    if not Path(rounds.reward_recipe).is_file():
        raise UserError(f"rounds.reward_recipe: {rounds.reward_recipe}: no such file", "recipes lie under configs/")
    # A mistake in it is told now, not after hours of sampling.
    own = load_recipe(rounds.reward_recipe)
    if not objective_row(own.objective["name"]).trains_judge or not family_row(own.model.family).reads_text:
        problem = f"rounds.reward_recipe: {rounds.reward_recipe} trains no reward model (family {own.model.family})"
        raise UserError(problem, "give a recipe of family reward_model")
