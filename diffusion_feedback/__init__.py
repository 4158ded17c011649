"""Takes generative models beyond imitation by learning from feedback.

The public names are imported when they are first asked for, so that ``import diffusion_feedback`` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; _HOMES says the same to Python
    from .config import (
        DataConfig,
        ModelConfig,
        Recipe,
        RolloutConfig,
        RoundsConfig,
        TextConfig,
        TrainingConfig,
        ValidationConfig,
        load_recipe,
    )
    from .errors import UserError
    from .progress import set_verbosity
    from .scorers.function import scorer_from
    from .scorers.loading import load_scorer
    from .workflows.calibrating import calibrate
    from .workflows.checking import check
    from .workflows.converting import convert
    from .workflows.labeling import label
    from .workflows.scoring import score
    from .workflows.settings import (
        CalibrationSettings,
        CheckSettings,
        ConvertSettings,
        ImageSettings,
        LabelingSettings,
        ScoringSettings,
    )

__version__ = "0.1.0"

__all__ = [
    "CalibrationSettings",
    "CheckSettings",
    "ConvertSettings",
    "DataConfig",
    "ImageSettings",
    "LabelingSettings",
    "ModelConfig",
    "Recipe",
    "RolloutConfig",
    "RoundsConfig",
    "ScoringSettings",
    "TextConfig",
    "TrainingConfig",
    "UserError",
    "ValidationConfig",
    "calibrate",
    "check",
    "convert",
    "label",
    "load_recipe",
    "load_scorer",
    "score",
    "scorer_from",
    "set_verbosity",
]

# Where each public name lives; a test holds this, __all__ and the imports above together.
_HOMES = {
    "CalibrationSettings": "workflows.settings",
    "CheckSettings": "workflows.settings",
    "ConvertSettings": "workflows.settings",
    "DataConfig": "config",
    "ImageSettings": "workflows.settings",
    "LabelingSettings": "workflows.settings",
    "ModelConfig": "config",
    "Recipe": "config",
    "RolloutConfig": "config",
    "RoundsConfig": "config",
    "ScoringSettings": "workflows.settings",
    "TextConfig": "config",
    "TrainingConfig": "config",
    "UserError": "errors",
    "ValidationConfig": "config",
    "calibrate": "workflows.calibrating",
    "check": "workflows.checking",
    "convert": "workflows.converting",
    "label": "workflows.labeling",
    "load_recipe": "config",
    "load_scorer": "scorers.loading",
    "score": "workflows.scoring",
    "scorer_from": "scorers.function",
    "set_verbosity": "progress",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
