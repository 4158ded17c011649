"""The families of models, one row each."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from .rows import ON_SAMPLES, Family

_DIVERGENCE = (
    "log-ratios of images are means of small errors, where every divergence is the reverse KL with another beta"
)
_NOT_FOR_IMAGES = {"f_divergence_type": _DIVERGENCE, "f_alpha_divergence_coef": _DIVERGENCE}

FAMILIES: dict[str, Family] = {
    "sd": Family(
        "diffusion_feedback.models.sd:load",
        refused_settings=_NOT_FOR_IMAGES,
        classes=("StableDiffusionPipeline",),
        from_loaded="diffusion_feedback.models.sd:from_pipeline",
    ),
    "sdxl": Family(
        "diffusion_feedback.models.sdxl:load",
        refused_settings=_NOT_FOR_IMAGES,
        classes=("StableDiffusionXLPipeline",),
        from_loaded="diffusion_feedback.models.sdxl:from_pipeline",
    ),
    "clip": Family("diffusion_feedback.models.clip:load", kinds=("ranking",)),
    "causal_lm": Family(
        "diffusion_feedback.models.causal_lm:load",
        modality="text",
        kinds=(*ON_SAMPLES, "policy_gradient", "value_learning"),
        classes=("*LMHeadModel", "*ForCausalLM", "*ForConditionalGeneration"),
        from_loaded="diffusion_feedback.models.causal_lm:from_model",
    ),
    "reward_model": Family(
        "diffusion_feedback.models.reward_model:load",
        modality="text",
        kinds=("reward",),
        classes=("*ForSequenceClassification",),
        from_loaded="diffusion_feedback.models.reward_model:from_model",
    ),
}


def family_of_class(names: Iterable[str]) -> str | None:
    """The family of an object whose class, or a base of it, has one of these ``names``; None where there is none."""
    names = list(names)
    for family, row in FAMILIES.items():
        if any(fnmatchcase(name, known) for name in names for known in row.classes):
            return family
    return None


def pipeline_classes() -> dict[str, str]:
    """The class of diffusers' pipelines by the family of images that is made of it."""
    return {family: row.classes[0] for family, row in FAMILIES.items() if row.classes and not row.reads_text}
