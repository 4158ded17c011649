"""Which session puts a run together: by what the model makes or judges, and by the kind of the objective."""

from __future__ import annotations

from ...catalog import family_row
from .given import Setup
from .session import Session


def open_session(setup: Setup) -> Session:
    """The session of the recipe's family and objective, its model and data loaded. Raises UserError for bad input.

    What one session imports the others do not need: a run on texts does not wait for diffusers.
    """
    match family_row(setup.recipe.model.family).modality, setup.objective.kind:
        case "image", "ranking":
            from .scorer import scorer_session as session
        case "image", _:
            from .diffusion import diffusion_session as session
        case _, "policy_gradient":
            from .policy_gradient import policy_gradient_session as session
        case _, "value_learning":
            from .value_learning import value_learning_session as session
        case _, "reward":
            from .reward_model import reward_model_session as session
        case _:
            from .language_model import language_model_session as session
    return session(setup)
