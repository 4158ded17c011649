"""The families of models, one row each."""

from __future__ import annotations

from .rows import ON_SAMPLES, Family

_DIVERGENCE = (
    "log-ratios of images are means of small errors, where every divergence is the reverse KL with another beta"
)
_NOT_FOR_IMAGES = {"f_divergence_type": _DIVERGENCE, "f_alpha_divergence_coef": _DIVERGENCE}

FAMILIES: dict[str, Family] = {
    "sd": Family("diffusion_feedback.models.sd:load", refused_settings=_NOT_FOR_IMAGES),
    "sdxl": Family("diffusion_feedback.models.sdxl:load", refused_settings=_NOT_FOR_IMAGES),
    "clip": Family("diffusion_feedback.models.clip:load", kinds=("ranking",)),
    "causal_lm": Family(
        "diffusion_feedback.models.causal_lm:load",
        modality="text",
        kinds=(*ON_SAMPLES, "policy_gradient", "value_learning"),
    ),
    "reward_model": Family("diffusion_feedback.models.reward_model:load", modality="text", kinds=("reward",)),
}
