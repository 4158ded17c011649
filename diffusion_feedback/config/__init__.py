"""Recipes: YAML plus flags to typed dataclasses. Every key is checked; an unknown one is an error with the nearest name."""

from .checks import check_recipe
from .parsing import build_parser, checked, load_recipe, parse
from .recipe import (
    SECTIONS,
    DataConfig,
    ModelConfig,
    Recipe,
    RolloutConfig,
    RoundsConfig,
    TextConfig,
    TrainingConfig,
    ValidationConfig,
    to_dict,
    to_yaml,
)
from .sources import is_object, object_name, user_sources
from .wording import known_keys

__all__ = [
    "SECTIONS",
    "DataConfig",
    "ModelConfig",
    "Recipe",
    "RolloutConfig",
    "RoundsConfig",
    "TextConfig",
    "TrainingConfig",
    "ValidationConfig",
    "build_parser",
    "check_recipe",
    "checked",
    "is_object",
    "known_keys",
    "load_recipe",
    "object_name",
    "parse",
    "to_dict",
    "to_yaml",
    "user_sources",
]
