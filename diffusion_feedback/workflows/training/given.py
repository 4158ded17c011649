"""What a run is given besides its recipe: a device and processes, and objects in place of what the recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator

from ...catalog import ObjectiveRow, objective_row
from ...config import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Objects that a caller hands in; what is None is loaded by the name in the recipe."""

    model: Any = None
    tokenizer: Any = None
    train_data: Any = None
    validation_data: Any = None
    reward: Any = None


@dataclass(frozen=True, slots=True)
class Setup:
    """What every session is built of."""

    recipe: Recipe
    accelerator: Accelerator
    given: Given = field(default_factory=Given)

    @property
    def objective(self) -> ObjectiveRow:
        """The recipe's objective."""
        return objective_row(self.recipe.objective["name"])

    @property
    def objective_settings(self) -> Mapping[str, Any]:
        """The settings of the recipe's objective."""
        return {key: value for key, value in self.recipe.objective.items() if key != "name"}
