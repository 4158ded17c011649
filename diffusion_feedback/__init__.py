"""Takes generative models beyond imitation by learning from feedback.

The public names are imported when they are first used, so that ``import diffusion_feedback`` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

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
    from .workflows.benchmarking import benchmark
    from .workflows.calibrating import calibrate
    from .workflows.checking import check
    from .workflows.converting import convert
    from .workflows.generating import generate
    from .workflows.judging import judge
    from .workflows.labeling import label
    from .workflows.reporting import report
    from .workflows.rounds import rounds
    from .workflows.scoring import score
    from .workflows.settings import (
        BenchmarkSettings,
        CalibrationSettings,
        CheckSettings,
        CompletionSampling,
        ConvertSettings,
        GenerationSettings,
        ImageSampling,
        ImageSettings,
        JudgeSettings,
        LabelingSettings,
        ModelSource,
        ReportSettings,
        ScoringSettings,
    )
    from .workflows.training.result import Run
    from .workflows.training.run import train

__version__ = "0.1.0"

__all__ = [
    "BenchmarkSettings",
    "CalibrationSettings",
    "CheckSettings",
    "CompletionSampling",
    "ConvertSettings",
    "DataConfig",
    "GenerationSettings",
    "ImageSampling",
    "ImageSettings",
    "JudgeSettings",
    "LabelingSettings",
    "ModelConfig",
    "ModelSource",
    "Recipe",
    "ReportSettings",
    "RolloutConfig",
    "RoundsConfig",
    "Run",
    "ScoringSettings",
    "TextConfig",
    "TrainingConfig",
    "UserError",
    "ValidationConfig",
    "benchmark",
    "calibrate",
    "check",
    "convert",
    "generate",
    "judge",
    "label",
    "load_recipe",
    "load_scorer",
    "report",
    "rounds",
    "score",
    "scorer_from",
    "set_verbosity",
    "train",
]

# Where each public name lives; a test holds this, __all__ and the imports above together.
_HOMES = {
    "BenchmarkSettings": "workflows.settings",
    "CalibrationSettings": "workflows.settings",
    "CheckSettings": "workflows.settings",
    "CompletionSampling": "workflows.settings",
    "ConvertSettings": "workflows.settings",
    "DataConfig": "config",
    "GenerationSettings": "workflows.settings",
    "ImageSampling": "workflows.settings",
    "ImageSettings": "workflows.settings",
    "JudgeSettings": "workflows.settings",
    "LabelingSettings": "workflows.settings",
    "ModelConfig": "config",
    "ModelSource": "workflows.settings",
    "Recipe": "config",
    "ReportSettings": "workflows.settings",
    "RolloutConfig": "config",
    "RoundsConfig": "config",
    "Run": "workflows.training.result",
    "ScoringSettings": "workflows.settings",
    "TextConfig": "config",
    "TrainingConfig": "config",
    "UserError": "errors",
    "ValidationConfig": "config",
    "benchmark": "workflows.benchmarking",
    "calibrate": "workflows.calibrating",
    "check": "workflows.checking",
    "convert": "workflows.converting",
    "generate": "workflows.generating",
    "judge": "workflows.judging",
    "label": "workflows.labeling",
    "load_recipe": "config",
    "load_scorer": "scorers.loading",
    "rounds": "workflows.rounds",
    "report": "workflows.reporting",
    "score": "workflows.scoring",
    "scorer_from": "scorers.function",
    "set_verbosity": "progress",
    "train": "workflows.training.run",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
