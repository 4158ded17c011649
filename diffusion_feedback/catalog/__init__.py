"""Every name that a recipe may use, and what stands behind it: ours, or a user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UserError, nearest
from .families import FAMILIES
from .objectives import OBJECTIVES
from .rows import Family, ObjectiveRow, Optimizer, import_path, name_of, settings_of
from .sources import is_reference, load_named

# A name of the catalog, a reference to a user's own code, or that itself.
Named = str | Callable[..., Any] | ObjectiveRow | Family | Optimizer

CATALOG: Mapping[str, Mapping[str, str | ObjectiveRow | Family | Optimizer]] = {
    "objective": OBJECTIVES,
    "family": FAMILIES,
    "optimizer": {
        "adamw": Optimizer("diffusion_feedback.training.optimizers:adamw", 8.0),
        "adamw_8bit": Optimizer("diffusion_feedback.training.optimizers:adamw_8bit", 2.0),
        "adafactor": Optimizer("diffusion_feedback.training.optimizers:adafactor", 0.1),
        "rmsprop": Optimizer("diffusion_feedback.training.optimizers:rmsprop", 4.0),
    },
    "scorer": {
        "pickscore": "diffusion_feedback.scorers.pickscore:load",
        "hpsv2": "diffusion_feedback.scorers.hpsv2:load",
        "clip_score": "diffusion_feedback.scorers.clip_score:load",
        "aesthetic": "diffusion_feedback.scorers.aesthetic:load",
        "shapes": "diffusion_feedback.shapes.scorer:load",
        "imagereward": "diffusion_feedback.scorers.imagereward:load",
        "function": "diffusion_feedback.scorers.function:load",
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
        "pickapic": "diffusion_feedback.evaluation.benchmarks.prompt_lists:pickapic",
        "partiprompts": "diffusion_feedback.evaluation.benchmarks.prompt_lists:partiprompts",
        "drawbench": "diffusion_feedback.evaluation.benchmarks.prompt_lists:drawbench",
        "prompts": "diffusion_feedback.evaluation.benchmarks.prompt_lists:own_prompts",
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


def names(kind: str) -> list[str]:
    """The names of one ``kind``, in the catalog's order."""
    return list(CATALOG[kind])


def _entry(kind: str, named: Named) -> Named:
    """What ``named`` stands for: a path of ours, a row, or what the user named or handed in. Raises UserError."""
    if not isinstance(named, str):
        return named
    if is_reference(named):
        return load_named(named, f"{kind} {named!r}", also=Family)  # type: ignore[no-any-return]
    check_name(kind, named)
    return CATALOG[kind][named]


def check_name(kind: str, named: str) -> None:
    """Raise UserError where ``named`` is neither a name of the catalog nor the user's own code; loads neither."""
    if not is_reference(named) and named not in CATALOG[kind]:
        raise UserError(f"unknown {kind} {named!r}", nearest(named, names(kind)))


def objective_row(named: Named) -> ObjectiveRow:
    """The row of an objective: of the catalog, or a user's; a plain function is one on pairs with a reference.

    Raises UserError for an unknown name, and for a function with parameters that its row does not hand over.
    """
    entry = _entry("objective", named)
    if isinstance(entry, str | Family | Optimizer):
        raise UserError(
            f"objective {name_of(named)!r}: is a {type(entry).__name__}", "give a function or an ObjectiveRow"
        )
    row = entry if isinstance(entry, ObjectiveRow) else ObjectiveRow(entry)
    if row not in OBJECTIVES.values():
        row.check_signature(f"objective {name_of(named)!r}")
    return row


def family_row(named: Named) -> Family:
    """The row of a family: of the catalog, or a user's. Raises UserError for an unknown name, and for what is no row."""
    entry = _entry("family", named)
    if not isinstance(entry, Family):
        remedy = "give a row: Family(load), where load(path, revision=, variant=, dtype=, device=) returns a model"
        raise UserError(f"family {name_of(named)!r}: is a {type(entry).__name__}", remedy)
    return entry


def resolve(kind: str, named: Named) -> Callable[..., Any]:
    """The function that ``named`` stands for: a name of the catalog, "package.module:attribute", "file.py:attribute", or
    what is handed in as it is.

    Raises UserError naming the nearest name for an unknown one, and as ``load_named`` does for a user's own.
    """
    if kind == "objective":
        return objective_row(named).function
    if kind == "family":
        return family_row(named).function
    entry = _entry(kind, named)
    if isinstance(entry, Family):
        raise UserError(f"{kind} {name_of(named)!r}: is a Family", "give a function")
    return import_path(entry.path if isinstance(entry, Optimizer) else entry)


def state_bytes(optimizer: Named) -> float:
    """Bytes of state that ``optimizer`` keeps of a trained parameter; a user's own is taken for AdamW's kin."""
    row = _entry("optimizer", optimizer)
    return row.state_bytes if isinstance(row, Optimizer) else 8.0


def objectives_for(family: Named) -> list[str]:
    """The objectives of the catalog that models of ``family`` can be tuned by. Raises UserError for an unknown name."""
    row = family_row(family)
    return [name for name, objective in OBJECTIVES.items() if row.can_learn(objective)]


def parts_of(objective: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The terms of a weighted sum; of any other ``objective`` (name and settings) itself."""
    return list(objective.get("terms", [objective]))


def needs_reference(objective: Mapping[str, object]) -> bool:
    """Whether ``objective`` (name and settings) compares the policy with a reference: a sum does where a term does."""
    return any(objective_row(part["name"]).needs_reference for part in parts_of(objective))


def check_terms(terms: object) -> None:
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
        row = objective_row(name)
        if not row.may_be_term:
            fitting = ", ".join(other for other, each in OBJECTIVES.items() if each.may_be_term)
            reason = "looks at more than one pair" if row.is_coupled else "is no loss on pairs of samples"
            problem = f"objective.terms: {name!r} cannot be a term of a sum, as it {reason}"
            raise UserError(problem, f"allowed: {fitting}")
        check_settings("objective", name, {key: value for key, value in term.items() if key not in ("name", "weight")})


# Kinds whose settings stand behind the name, as ",key=value".
_BY_SPEC = frozenset({"scorer", "text_scorer", "pair_judge", "rule"})


def check_settings(kind: str, named: Named, settings: Mapping[str, object]) -> None:
    """Refuse ``settings`` that ``named`` does not consume, and missing ones without a default. Raises UserError."""
    schema, name = settings_of(resolve(kind, named)), name_of(named)
    for key in settings:
        if key not in schema:
            raise UserError(
                f"{kind} {name!r} does not take {key!r}",
                nearest(key, list(schema)) if schema else "it takes no settings",
            )
    for key, parameter in schema.items():
        if parameter.default is inspect.Parameter.empty and key not in settings:
            remedy = f"append ,{key}=..." if kind in _BY_SPEC else f"set {kind}.{key} in the recipe"
            raise UserError(f"{kind} {name!r} needs a value for {key!r}", remedy)
    if kind == "objective" and objective_row(named).has_terms:
        check_terms(settings["terms"])
