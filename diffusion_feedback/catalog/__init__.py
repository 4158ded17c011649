"""Every name that a recipe may use, and where it lives; the only table that knows families, objectives and formats."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UserError

CATALOG: Mapping[str, Mapping[str, str]] = {
    "objective": {
        "dpo": "diffusion_feedback.objectives.pairwise:dpo",
        "cdpo": "diffusion_feedback.objectives.pairwise:cdpo",
        "robust": "diffusion_feedback.objectives.pairwise:robust",
        "ipo": "diffusion_feedback.objectives.pairwise:ipo",
        "hinge": "diffusion_feedback.objectives.pairwise:hinge",
        "exo": "diffusion_feedback.objectives.pairwise:exo",
        "dpo_norm": "diffusion_feedback.objectives.pairwise:dpo_norm",
        "odpo": "diffusion_feedback.objectives.pairwise:odpo",
        "rdpo": "diffusion_feedback.objectives.pairwise:rdpo",
        "dpop": "diffusion_feedback.objectives.pairwise:dpop",
        "discopop": "diffusion_feedback.objectives.pairwise:discopop",
        "nca": "diffusion_feedback.objectives.pairwise:nca",
        "sppo": "diffusion_feedback.objectives.pairwise:sppo",
        "apo_zero": "diffusion_feedback.objectives.pairwise:apo_zero",
        "apo_down": "diffusion_feedback.objectives.pairwise:apo_down",
        "bco": "diffusion_feedback.objectives.shifted:bco",
        "aot": "diffusion_feedback.objectives.coupled:aot",
        "aot_unpaired": "diffusion_feedback.objectives.coupled:aot_unpaired",
        "cpo": "diffusion_feedback.objectives.reference_free:cpo",
        "simpo": "diffusion_feedback.objectives.reference_free:simpo",
        "alphapo": "diffusion_feedback.objectives.reference_free:alphapo",
        "slic": "diffusion_feedback.objectives.reference_free:slic",
        "orpo": "diffusion_feedback.objectives.reference_free:orpo",
        "kto": "diffusion_feedback.objectives.unpaired:kto",
        "apo_zero_unpaired": "diffusion_feedback.objectives.unpaired:apo_zero_unpaired",
        "weighted_sum": "diffusion_feedback.objectives.weighted_sum:weighted_sum",
        "sft": "diffusion_feedback.objectives.pointwise:sft",
        "ppo": "diffusion_feedback.objectives.policy_gradient:PPO",
        "grpo": "diffusion_feedback.objectives.policy_gradient:GRPO",
        "rloo": "diffusion_feedback.objectives.policy_gradient:RLOO",
        "ilql": "diffusion_feedback.objectives.value_learning:ilql",
        "pickscore": "diffusion_feedback.objectives.ranking:pickscore",
        "pickscore_in_batch": "diffusion_feedback.objectives.ranking:pickscore_in_batch",
        "bradley_terry": "diffusion_feedback.objectives.reward:bradley_terry",
    },
    # The kind of objective, which is the module it stands in, decides the step.
    "step": {
        "pairwise": "diffusion_feedback.training.steps:PairwiseStep",
        "reference_free": "diffusion_feedback.training.steps:PairwiseStep",
        "shifted": "diffusion_feedback.training.shifted:ShiftedStep",
        "weighted_sum": "diffusion_feedback.training.shifted:ShiftedStep",
        "coupled": "diffusion_feedback.training.coupled:CoupledStep",
        "unpaired": "diffusion_feedback.training.unpaired:UnpairedStep",
        "pointwise": "diffusion_feedback.training.steps:PointwiseStep",
        "value_learning": "diffusion_feedback.training.value_learning:ValueLearningStep",
        "ranking": "diffusion_feedback.training.ranking:RankingStep",
        "policy_gradient": "diffusion_feedback.training.policy_gradient:PolicyGradientStep",
        "reward": "diffusion_feedback.training.reward:RewardStep",
    },
    "family": {
        "sd": "diffusion_feedback.models.sd:load",
        "sdxl": "diffusion_feedback.models.sdxl:load",
        "clip": "diffusion_feedback.models.clip:load",
        "causal_lm": "diffusion_feedback.models.causal_lm:load",
        "reward_model": "diffusion_feedback.models.reward_model:load",
    },
    # How a run on a model of each family is put together; "family/kind" where a kind of objective needs a run of its own.
    "session": {
        "sd": "diffusion_feedback.workflows.training.diffusion:DenoisingSession",
        "sdxl": "diffusion_feedback.workflows.training.diffusion:DenoisingSession",
        "clip": "diffusion_feedback.workflows.training.scorer:ScorerSession",
        "causal_lm": "diffusion_feedback.workflows.training.language_model:TextSession",
        "causal_lm/policy_gradient": "diffusion_feedback.workflows.training.policy_gradient:PolicyGradientSession",
        "causal_lm/value_learning": "diffusion_feedback.workflows.training.value_learning:ValueLearningSession",
        "reward_model": "diffusion_feedback.workflows.training.language_model:RewardSession",
    },
    "optimizer": {
        "adamw": "diffusion_feedback.training.optimizers:adamw",
        "adamw_8bit": "diffusion_feedback.training.optimizers:adamw_8bit",
        "adafactor": "diffusion_feedback.training.optimizers:adafactor",
        "rmsprop": "diffusion_feedback.training.optimizers:rmsprop",
    },
    "scorer": {
        "pickscore": "diffusion_feedback.scorers.pickscore:load",
        "hpsv2": "diffusion_feedback.scorers.hpsv2:load",
        "clip_score": "diffusion_feedback.scorers.clip_score:load",
        "aesthetic": "diffusion_feedback.scorers.aesthetic:load",
        "shapes": "diffusion_feedback.shapes.scorer:load",
        "imagereward": "diffusion_feedback.scorers.imagereward:load",
    },
    # Judges of completions, as they stand in front of the "=" of a spec.
    "text_scorer": {
        "reward_model": "diffusion_feedback.scorers.texts.reward_model:load",
        "classifier": "diffusion_feedback.scorers.texts.classifier:load",
        "function": "diffusion_feedback.scorers.texts.function:load",
    },
    "pair_judge": {
        "llm": "diffusion_feedback.scorers.texts.llm_judge:load",
    },
    "benchmark": {
        "hpsv2": "diffusion_feedback.evaluation.benchmarks.hpsv2:benchmark",
        "pickapic": "diffusion_feedback.evaluation.benchmarks.pickapic:benchmark",
        "partiprompts": "diffusion_feedback.evaluation.benchmarks.partiprompts:benchmark",
        "drawbench": "diffusion_feedback.evaluation.benchmarks.drawbench:benchmark",
        "shapes": "diffusion_feedback.shapes.benchmark:benchmark",
    },
    # How pairs are picked from the ranked candidates of a prompt.
    "rule": {
        "best_worst": "diffusion_feedback.labeling.rules:best_worst",
        "adjacent": "diffusion_feedback.labeling.rules:adjacent",
        "opposite": "diffusion_feedback.labeling.rules:opposite",
        "all_pairs": "diffusion_feedback.labeling.rules:all_pairs",
        "random": "diffusion_feedback.labeling.rules:random",
        "mu_minus_2sigma": "diffusion_feedback.labeling.rules:mu_minus_2sigma",
    },
}

_ON_SAMPLES = ("pairwise", "shifted", "weighted_sum", "coupled", "reference_free", "unpaired", "pointwise")

# Which kinds of objective a family can be tuned by.
KINDS: Mapping[str, tuple[str, ...]] = {
    "sd": _ON_SAMPLES,
    "sdxl": _ON_SAMPLES,
    "clip": ("ranking",),
    "causal_lm": (*_ON_SAMPLES, "policy_gradient", "value_learning"),
    "reward_model": ("reward",),
}

_NO_LENGTH = "an image has no length"
_NOT_FOR_IMAGES = {
    "dpo_norm": f"{_NO_LENGTH} to divide by: it is dpo",
    "rdpo": f"{_NO_LENGTH} to hold against it: it is dpo",
    "odpo": "pairs of images carry no margin to ask for: it is dpo",
    "simpo": "without a reference the error at the drawn timestep drowns the margin that gamma asks for; use dpo or cpo",
    "alphapo": "it bends the probability of a token, and an image has none; use dpo or cpo",
}
_DIVERGENCE = (
    "log-ratios of images are means of small errors, where every divergence is the reverse KL with another beta"
)

# Objectives that a family could be tuned by, were it not for the reason.
REFUSED: Mapping[str, Mapping[str, str]] = {"sd": _NOT_FOR_IMAGES, "sdxl": _NOT_FOR_IMAGES}

# Settings of objectives that mean nothing for a family, and why.
REFUSED_SETTINGS: Mapping[str, Mapping[str, str]] = {
    family: {"f_divergence_type": _DIVERGENCE, "f_alpha_divergence_coef": _DIVERGENCE} for family in ("sd", "sdxl")
}

_TEXT_FAMILIES = frozenset({"causal_lm", "reward_model"})

# The kinds of objective that compare the policy with a reference.
NEEDS_REFERENCE = frozenset({"pairwise", "shifted", "coupled", "unpaired"})

# Objectives whose loss on one example depends on the others: those of the same forward pass (pickscore_in_batch), or those
# of the whole update, however it is cut into passes and processes (all others).
BATCH_COUPLED = frozenset({"pickscore_in_batch", "kto", "aot", "aot_unpaired"})

# What a term of a weighted sum can be.
_TERM_KINDS = frozenset({"pairwise", "reference_free", "shifted", "pointwise"})


def nearest(name: str, known: list[str]) -> str:
    """A hint for a misspelt ``name``: the closest of ``known``, and the list of all."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(known)}"


def names(kind: str) -> list[str]:
    """The names of one ``kind``, in the catalog's order."""
    return list(CATALOG[kind])


def resolve(kind: str, name: str) -> Callable[..., Any]:
    """Import what ``name`` stands for. Raises UserError naming the nearest name for an unknown one."""
    if name not in CATALOG[kind]:
        raise UserError(f"unknown {kind} {name!r}", nearest(name, names(kind)))
    module, attribute = CATALOG[kind][name].split(":")
    found = getattr(importlib.import_module(module), attribute)
    assert callable(found)
    return found  # type: ignore[no-any-return]


def settings_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of ``function``: its recipe schema."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def kind_of(objective: str) -> str:
    """The kind of ``objective``: the module that it stands in. Raises UserError for an unknown name."""
    return resolve("objective", objective).__module__.rpartition(".")[2]


def objectives_for(family: str) -> list[str]:
    """The objectives that models of ``family`` can be tuned by. Raises UserError for an unknown name."""
    kinds = KINDS.get(family)
    if kinds is None:
        raise UserError(f"unknown family {family!r}", nearest(family, names("family")))
    refused = REFUSED.get(family, {})
    return [name for name in names("objective") if kind_of(name) in kinds and name not in refused]


def reads_text(family: str) -> bool:
    """Whether models of ``family`` learn from texts, not from images."""
    return bool(_TEXT_FAMILIES & {family})


def session_of(family: str, objective: str) -> str:
    """The name under which the run of ``objective`` on a model of ``family`` is put together."""
    own = f"{family}/{kind_of(objective)}"
    return own if own in CATALOG["session"] else family


def parts_of(objective: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The terms of a weighted sum; of any other ``objective`` (name and settings) itself."""
    return list(objective.get("terms", [objective]))


def needs_reference(objective: Mapping[str, Any]) -> bool:
    """Whether ``objective`` (name and settings) compares the policy with a reference: a sum does where a term does."""
    return any(kind_of(part["name"]) in NEEDS_REFERENCE for part in parts_of(objective))


def check_terms(terms: Any) -> None:
    """Refuse ``terms`` of a weighted sum that are no list of {name, weight, settings}, and what cannot be summed.

    Raises UserError naming the term.
    """
    form = "give a list such as [{name: dpo, weight: 0.8, beta: 0.1}, {name: sft, weight: 1.0}]"
    if not isinstance(terms, list) or not terms:
        raise UserError(f"objective.terms: got {terms!r}", form)
    for number, term in enumerate(terms, 1):
        if not isinstance(term, Mapping) or not isinstance(term.get("name"), str) or "weight" not in term:
            raise UserError(f"objective.terms: term {number} is {term!r}, without a name or a weight", form)
        name = term["name"]
        kind = kind_of(name)
        if kind not in _TERM_KINDS:
            fitting = ", ".join(other for other in names("objective") if kind_of(other) in _TERM_KINDS)
            reason = "looks at more than one pair" if name in BATCH_COUPLED else "is no loss on pairs of samples"
            problem = f"objective.terms: {name!r} cannot be a term of a sum, as it {reason}"
            raise UserError(problem, f"allowed: {fitting}")
        check_settings("objective", name, {key: value for key, value in term.items() if key not in ("name", "weight")})


def check_settings(kind: str, name: str, settings: Mapping[str, Any]) -> None:
    """Refuse ``settings`` that ``name`` does not consume, and missing ones without a default. Raises UserError."""
    schema = settings_of(resolve(kind, name))
    for key in settings:
        if key not in schema:
            raise UserError(
                f"{kind} {name!r} does not take {key!r}",
                nearest(key, list(schema)) if schema else "it takes no settings",
            )
    for key, parameter in schema.items():
        if parameter.default is inspect.Parameter.empty and key not in settings:
            remedy = (
                f"append ,{key}=..." if kind in ("text_scorer", "pair_judge") else f"set {kind}.{key} in the recipe"
            )
            raise UserError(f"{kind} {name!r} needs a value for {key!r}", remedy)
    if "terms" in schema:
        check_terms(settings["terms"])
