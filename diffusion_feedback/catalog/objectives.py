"""The objectives, one row each."""

from __future__ import annotations

from .rows import ObjectiveRow

_PAIRWISE = "diffusion_feedback.objectives.pairwise"
_FREE = "diffusion_feedback.objectives.reference_free"
_COUPLED = "diffusion_feedback.objectives.coupled"
_UNPAIRED = "diffusion_feedback.objectives.unpaired"
_POLICY = "diffusion_feedback.objectives.policy_gradient"
_RANKING = "diffusion_feedback.objectives.ranking"

_SOFT = ("chosen_probability",)
_MARGIN = ("chosen_probability", "margin")
_BATCH = ("population", "positions")

_NO_LENGTH = "an image has no length"
_NO_MARGIN = "without a reference the error at the drawn timestep drowns the margin that gamma asks for; use dpo or cpo"
_NO_TOKEN = "it bends the probability of a token, and an image has none; use dpo or cpo"

OBJECTIVES: dict[str, ObjectiveRow] = {
    "dpo": ObjectiveRow(f"{_PAIRWISE}:dpo", inputs=_SOFT),
    "cdpo": ObjectiveRow(f"{_PAIRWISE}:cdpo", inputs=_SOFT),
    "robust": ObjectiveRow(f"{_PAIRWISE}:robust"),
    "ipo": ObjectiveRow(f"{_PAIRWISE}:ipo"),
    "hinge": ObjectiveRow(f"{_PAIRWISE}:hinge"),
    "exo": ObjectiveRow(f"{_PAIRWISE}:exo"),
    "dpo_norm": ObjectiveRow(f"{_PAIRWISE}:dpo_norm", inputs=_SOFT, images=f"{_NO_LENGTH} to divide by: it is dpo"),
    "odpo": ObjectiveRow(
        f"{_PAIRWISE}:odpo", inputs=_MARGIN, images="pairs of images carry no margin to ask for: it is dpo"
    ),
    "rdpo": ObjectiveRow(f"{_PAIRWISE}:rdpo", inputs=_SOFT, images=f"{_NO_LENGTH} to hold against it: it is dpo"),
    "dpop": ObjectiveRow(f"{_PAIRWISE}:dpop", inputs=_SOFT),
    "discopop": ObjectiveRow(f"{_PAIRWISE}:discopop"),
    "nca": ObjectiveRow(f"{_PAIRWISE}:nca"),
    "sppo": ObjectiveRow(f"{_PAIRWISE}:sppo", inputs=_SOFT),
    "apo_zero": ObjectiveRow(f"{_PAIRWISE}:apo_zero"),
    "apo_down": ObjectiveRow(f"{_PAIRWISE}:apo_down"),
    "bco": ObjectiveRow("diffusion_feedback.objectives.shifted:bco", inputs=("mean_log_ratio",)),
    "aot": ObjectiveRow(f"{_COUPLED}:aot", inputs=_BATCH),
    "aot_unpaired": ObjectiveRow(f"{_COUPLED}:aot_unpaired", inputs=_BATCH),
    "cpo": ObjectiveRow(f"{_FREE}:cpo", inputs=_SOFT, reference=False),
    "simpo": ObjectiveRow(f"{_FREE}:simpo", inputs=_SOFT, reference=False, rewards="mean", images=_NO_MARGIN),
    "alphapo": ObjectiveRow(f"{_FREE}:alphapo", inputs=_SOFT, reference=False, rewards="mean", images=_NO_TOKEN),
    "slic": ObjectiveRow(f"{_FREE}:slic", reference=False),
    "orpo": ObjectiveRow(f"{_FREE}:orpo", reference=False, rewards="mean"),
    "kto": ObjectiveRow(f"{_UNPAIRED}:kto", "unpaired", inputs=("kl",)),
    "apo_zero_unpaired": ObjectiveRow(f"{_UNPAIRED}:apo_zero_unpaired", "unpaired"),
    # A sum has no reference of its own: its terms have.
    "weighted_sum": ObjectiveRow(
        "diffusion_feedback.objectives.weighted_sum:weighted_sum",
        inputs=(*_MARGIN, "mean_log_ratio"),
        reference=False,
        has_terms=True,
    ),
    "sft": ObjectiveRow("diffusion_feedback.objectives.pointwise:sft", "pointwise"),
    "ppo": ObjectiveRow(f"{_POLICY}:PPO", "policy_gradient"),
    "grpo": ObjectiveRow(f"{_POLICY}:GRPO", "policy_gradient"),
    "rloo": ObjectiveRow(f"{_POLICY}:RLOO", "policy_gradient"),
    "ilql": ObjectiveRow("diffusion_feedback.objectives.value_learning:ilql", "value_learning"),
    "pickscore": ObjectiveRow(f"{_RANKING}:pickscore", "ranking", inputs=_SOFT),
    "pickscore_in_batch": ObjectiveRow(f"{_RANKING}:pickscore_in_batch", "ranking", inputs=_SOFT, in_batch=True),
    "bradley_terry": ObjectiveRow("diffusion_feedback.objectives.reward:bradley_terry", "reward", inputs=_MARGIN),
}
