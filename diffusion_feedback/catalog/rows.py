"""What the rows of the catalog say: one for each objective, one for each family of models."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import UserError
from .sources import calling

Kind = Literal["pairwise", "unpaired", "pointwise", "ranking", "reward", "policy_gradient", "value_learning"]
Examples = Literal["pairs", "chosen", "labels", "rollouts", "trajectories"]
ON_SAMPLES: tuple[Kind, ...] = ("pairwise", "unpaired", "pointwise")

_EXAMPLES: Mapping[Kind, Examples] = {
    "pairwise": "pairs",
    "ranking": "pairs",
    "reward": "pairs",
    "pointwise": "chosen",
    "unpaired": "labels",
    "policy_gradient": "rollouts",
    "value_learning": "trajectories",
}
# What an objective may be handed besides log-probabilities.
_INPUTS: Mapping[Kind, frozenset[str]] = {
    "pairwise": frozenset({"chosen_probability", "margin", "mean_log_ratio", "population", "positions"}),
    "unpaired": frozenset({"kl"}),
    "ranking": frozenset({"chosen_probability"}),
    "reward": frozenset({"chosen_probability", "margin"}),
}
_WHOLE_BATCH = frozenset({"population", "kl"})
_BEYOND_THE_EXAMPLE = _WHOLE_BATCH | {"mean_log_ratio"}


@dataclass(frozen=True, slots=True)
class ObjectiveRow:
    """An objective: where it stands, what it learns from, and where it means nothing. Called, it is the objective.

    Args:
        path: The function, or "module:attribute" of it. Its keyword-only parameters are its settings; those before are
            its log-probabilities and ``inputs``. It returns losses (B,), never their mean.
        kind: What it learns from, and is given. pairwise: chosen and rejected samples (``PairLogps``); unpaired: single
            samples with a label (``UnpairedLogps``); pointwise: chosen samples, (B,); ranking: logits of prompts against
            images (B, 2B); reward: rewards of chosen and rejected texts (``PairLogps``). policy_gradient is a class of
            the form of ``objectives.policy_gradient.PolicyGradient``, value_learning a loss on ``ActionValues``.
        inputs: What it is handed besides, by the names and in the order of its parameters, which have a default: it stands
            where there is nothing to hand over. Of the example: chosen_probability (soft labels, (B,) in [0.5, 1]), margin
            ((B,), texts alone). Beyond it, one of: mean_log_ratio, a mean over earlier updates; population and positions,
            the pairs of the whole batch and the place of each of these in it; kl, an estimate of the divergence over the
            whole batch. The last two compare with a reference.
        reference: Whether it compares the policy with a reference; of pairwise and unpaired ones alone.
        rewards: Whether its implicit reward is beta times the sum of a sample's log-probabilities, or times their mean.
        images: Why it means nothing for models of images; None where it does mean something.
        in_batch: Whether its loss on one example depends on the others of the same forward pass.
        has_terms: Whether it is a sum of other objectives, its setting ``terms``.
    """

    path: str | Callable[..., Any]
    kind: Kind = "pairwise"
    inputs: tuple[str, ...] = ()
    reference: bool = True
    rewards: Literal["sum", "mean"] = "sum"
    images: str | None = None
    in_batch: bool = False
    has_terms: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for an unknown kind, and inputs that its kind is not handed, or not together."""
        label, inputs = f"objective {name_of(self)}", set(self.inputs)
        if self.kind not in _EXAMPLES:
            raise UserError(f"{label}: unknown kind {self.kind!r}", f"known: {', '.join(_EXAMPLES)}")
        unknown = sorted(inputs - _INPUTS.get(self.kind, frozenset()))
        if unknown:
            known = ", ".join(sorted(_INPUTS.get(self.kind, ()))) or "none"
            raise UserError(f"{label}: unknown input {unknown[0]!r} of kind {self.kind!r}", known)
        beyond = sorted(inputs & _BEYOND_THE_EXAMPLE)
        if len(beyond) > 1:
            raise UserError(
                f"{label}: has the inputs {' and '.join(beyond)}", "of those beyond the example it may have one"
            )
        if len(inputs & {"population", "positions"}) == 1:
            raise UserError(f"{label}: has one of the inputs population and positions", "they go together: name both")
        if self.looks_ahead and not self.reference:
            raise UserError(
                f"{label}: {beyond[0]} compares with a reference", "leave reference=False out, or the input"
            )

    @property
    def function(self) -> Callable[..., Any]:
        """The objective itself."""
        return import_path(self.path)

    def __call__(self, *given: object, **settings: object) -> Any:
        return self.function(*given, **settings)

    def check_losses(self, *given: object, examples: int, **settings: object) -> None:
        """Call it once, on ``examples`` examples: settings out of range are refused before the work begins.

        Raises UserError as the function does, and where it fails or does not return one loss for each example.
        """
        label = f"objective {name_of(self)}"
        with calling(label):
            losses = self.function(*given, **settings)
        shape = tuple(getattr(losses, "shape", ()))
        if shape != (examples,):
            problem = f"{label}: returned {type(losses).__name__} of shape {shape} for {examples} examples"
            raise UserError(problem, "return a tensor of one loss for each example, never their mean")

    @property
    def needs_reference(self) -> bool:
        """Whether it compares the policy with a reference."""
        return self.reference and self.kind in ("pairwise", "unpaired")

    @property
    def learns_from(self) -> Examples:
        """Which examples it takes."""
        return _EXAMPLES[self.kind]

    @property
    def sees_both(self) -> bool:
        """Whether it sees both samples of a pair in one pass, under a policy."""
        return self.kind == "pairwise"

    @property
    def trains_judge(self) -> bool:
        """Whether what it trains judges samples, and makes none."""
        return self.kind in ("ranking", "reward")

    @property
    def looks_ahead(self) -> bool:
        """Whether it needs metrics of the whole batch before the first loss."""
        return not _WHOLE_BATCH.isdisjoint(self.inputs)

    @property
    def is_coupled(self) -> bool:
        """Whether its loss on one example depends on the others: of the forward pass, or of the whole update."""
        return self.in_batch or self.looks_ahead

    @property
    def may_be_term(self) -> bool:
        """Whether it can be a term of a sum: a loss on pairs, or on their chosen samples, one by one."""
        return self.kind in ("pairwise", "pointwise") and not self.is_coupled and not self.has_terms

    def check_signature(self, label: str) -> None:
        """Raise UserError unless the function takes log-probabilities, then the inputs, then settings by keyword alone."""
        if self.kind == "policy_gradient":
            return
        taken = [p for p in _parameters(self.function) if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if not taken:
            problem = f"{label}: takes no log-probabilities, or has no signature"
            raise UserError(problem, "give a function of them, and settings after a *")
        first, *others = taken
        if tuple(each.name for each in others) != self.inputs:
            problem = f"{label}: takes ({first.name}, {', '.join(each.name for each in others)}), and is called with "
            remedy = (
                "put settings behind a *; what else it is handed, its row says: ObjectiveRow(function, inputs=(...))"
            )
            raise UserError(f"{problem}({', '.join((first.name, *self.inputs))})", remedy)
        for each in others:
            if each.default is each.empty:
                remedy = f"write {each.name}=None: it stands where there is nothing to hand over, as with hard labels"
                raise UserError(f"{label}: its input {each.name!r} has no default", remedy)


@dataclass(frozen=True, slots=True)
class Family:
    """A family of models: how one is loaded, and what it can be tuned by.

    Args:
        load: The function, or "module:attribute" of it, called with the path of a model and by keyword revision, variant,
            dtype and device; it returns a ``types.models.Denoiser``, or for texts a
            ``models.text_network.TokenModel``.
        modality: What the models make or judge.
        kinds: Kinds of objectives that they can be tuned by.
        refused_settings: Settings of objectives that mean nothing for them, and why.
        classes: Their classes in diffusers or transformers; "*" stands for the beginning of a name.
        from_loaded: What makes the same of such an object that is loaded already, as ``load``.
    """

    load: str | Callable[..., Any]
    modality: Literal["image", "text"] = "image"
    kinds: tuple[Kind, ...] = ON_SAMPLES
    refused_settings: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    from_loaded: str | Callable[..., Any] | None = None

    @property
    def function(self) -> Callable[..., Any]:
        """What loads a model."""
        return import_path(self.load)

    @property
    def reads_text(self) -> bool:
        """Whether the models learn from texts, not from images."""
        return self.modality == "text"

    def why_not(self, row: ObjectiveRow) -> str | None:
        """Why an objective of a fitting kind means nothing for these models; None where it means something."""
        return None if self.reads_text else row.images

    def can_learn(self, row: ObjectiveRow) -> bool:
        """Whether the models can be tuned by an objective."""
        return row.kind in self.kinds and self.why_not(row) is None


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An optimizer: "module:attribute" of it, and how many bytes of state it keeps of a trained parameter."""

    path: str
    state_bytes: float


def name_of(named: object) -> str:
    """What a message, a file or a hash calls ``named``: its name, or "module:attribute" of what was handed in."""
    if isinstance(named, ObjectiveRow | Family):
        named = named.path if isinstance(named, ObjectiveRow) else named.load
    while isinstance(named, functools.partial):
        named = named.func
    if isinstance(named, str):
        return named
    return f"{named.__module__}:{getattr(named, '__qualname__', type(named).__qualname__)}"


def import_path(path: str | Callable[..., object]) -> Callable[..., object]:
    """What a path of ours, "module:attribute", names; what is no path, as it is."""
    if callable(path):
        return path
    module, _, attribute = path.partition(":")
    value = getattr(importlib.import_module(module), attribute)
    assert callable(value)
    return value  # type: ignore[no-any-return]


def settings_of(function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of ``function``: its recipe schema."""
    return {p.name: p for p in _parameters(function) if p.kind is p.KEYWORD_ONLY}


def _parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # some built-in ones tell nothing of themselves
        return []
