"""Which session puts a run together: by what the model makes or judges, and by what the objective learns from."""

from __future__ import annotations

from accelerate import Accelerator

from ...catalog import family_row, objective_row
from ...config import Recipe
from .session import Session


def open_session(recipe: Recipe, accelerator: Accelerator) -> Session:
    """The run of ``recipe``, ready to go. Raises UserError as its session does.

    What one session imports the others do not need: a run on texts does not wait for diffusers.
    """
    objective = objective_row(recipe.objective["name"])
    match family_row(recipe.model.family).modality, objective.kind:
        case "image", "ranking":
            from .scorer import ScorerSession

            return ScorerSession(recipe, accelerator)
        case "image", _:
            from .diffusion import DenoisingSession

            return DenoisingSession(recipe, accelerator)
        case _, "policy_gradient":
            from .policy_gradient import PolicyGradientSession

            return PolicyGradientSession(recipe, accelerator)
        case _, "value_learning":
            from .value_learning import ValueLearningSession

            return ValueLearningSession(recipe, accelerator)
        case _, "reward":
            from .language_model import RewardSession

            return RewardSession(recipe, accelerator)
        case _:
            from .language_model import TextSession

            return TextSession(recipe, accelerator)
