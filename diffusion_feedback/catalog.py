"""Every name that a recipe may use, and where it lives; the only table that knows families, objectives and formats."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .errors import UserError

CATALOG: Mapping[str, Mapping[str, str]] = {
    "objective": {
        "dpo": "diffusion_feedback.objectives.pairwise:dpo",
        "ipo": "diffusion_feedback.objectives.pairwise:ipo",
        "hinge": "diffusion_feedback.objectives.pairwise:hinge",
        "robust": "diffusion_feedback.objectives.pairwise:robust",
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
        "sd": "diffusion_feedback.cli.assemble:DenoisingSession",
        "sdxl": "diffusion_feedback.cli.assemble:DenoisingSession",
        "clip": "diffusion_feedback.cli.assemble_scorer:ScorerSession",
        "causal_lm": "diffusion_feedback.cli.assemble_text:TextSession",
        "causal_lm/policy_gradient": "diffusion_feedback.cli.assemble_policy_gradient:PolicyGradientSession",
        "causal_lm/value_learning": "diffusion_feedback.cli.assemble_value_learning:ValueLearningSession",
        "reward_model": "diffusion_feedback.cli.assemble_text:RewardSession",
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
        "shapes": "diffusion_feedback.scorers.shapes:load",
        "imagereward": "diffusion_feedback.scorers.imagereward:load",
    },
    # Judges of completions, as they stand in front of the "=" of a spec.
    "text_scorer": {
        "reward_model": "diffusion_feedback.scorers.texts.reward_model:load",
        "classifier": "diffusion_feedback.scorers.texts.classifier:load",
        "function": "diffusion_feedback.scorers.texts.function:load",
    },
    "benchmark": {
        "hpsv2": "diffusion_feedback.evaluation.benchmarks.hpsv2:benchmark",
        "pickapic": "diffusion_feedback.evaluation.benchmarks.pickapic:benchmark",
        "partiprompts": "diffusion_feedback.evaluation.benchmarks.partiprompts:benchmark",
        "drawbench": "diffusion_feedback.evaluation.benchmarks.drawbench:benchmark",
        "shapes": "diffusion_feedback.evaluation.benchmarks.shapes:benchmark",
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

# Which kinds of objective a family can be tuned by.
KINDS: Mapping[str, tuple[str, ...]] = {
    "sd": ("pairwise", "pointwise"),
    "sdxl": ("pairwise", "pointwise"),
    "clip": ("ranking",),
    "causal_lm": (
        "pairwise", "reference_free", "coupled", "unpaired", "pointwise", "policy_gradient", "value_learning",
    ),
    "reward_model": ("reward",),
}  # fmt: skip

_TEXT_FAMILIES = frozenset({"causal_lm", "reward_model"})

# The kinds of objective that compare the policy with a reference.
NEEDS_REFERENCE = frozenset({"pairwise", "coupled", "unpaired"})

# Objectives whose loss on one pair depends on the other pairs of the same forward pass.
BATCH_COUPLED = frozenset({"pickscore_in_batch"})


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
    return [name for name in names("objective") if kind_of(name) in kinds]


def reads_text(family: str) -> bool:
    """Whether models of ``family`` learn from texts, not from images."""
    return family in _TEXT_FAMILIES


def session_of(family: str, objective: str) -> str:
    """The name under which the run of ``objective`` on a model of ``family`` is put together."""
    own = f"{family}/{kind_of(objective)}"
    return own if own in CATALOG["session"] else family


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
            raise UserError(f"{kind} {name!r} needs a value for {key!r}", f"set {kind}.{key} in the recipe")
