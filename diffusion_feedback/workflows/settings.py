"""The settings of what a user does: the only place of their defaults. The command line makes its flags of them.

Those of exports and of the hub stand in ``sharing_settings``. Each class checks its own values by their types when it is
made, and raises UserError naming the parameter. ``device`` is a name, such as "cuda:1", or a ``torch.device``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from ..errors import UserError, nearest
from ..folders import at_home
from ..labeling.panel import LabelPolicy
from ..values import (
    COUNT,
    GUIDANCE,
    MARGIN,
    NOT_NEGATIVE,
    SEED,
    SEEDS,
    SIDE,
    SOME,
    STRENGTH,
    TOKENS,
    Range,
    checked_by_type,
    hints_of,
)

DType = Literal["float32", "bfloat16", "float16"]
CallT = TypeVar("CallT", bound=Callable[..., object])


def as_list(given: object) -> list[Any]:
    """``given`` as a list, one by itself too; a text is one, and not its letters."""
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def made_of_keywords(keywords: Mapping[str, object], *kinds: type[Any]) -> list[Any]:
    """Settings of each of ``kinds``, made of the ``keywords`` that a call was given; each takes those of its fields.

    Raises UserError for a keyword that none of them has, and as the settings do.
    """
    known = [name for kind in kinds for name in kind.__slots__]
    for name in keywords:
        if name not in known:
            raise UserError(f"`{name}`: is no setting", nearest(name, known))
    return [kind(**{n: v for n, v in keywords.items() if n in kind.__slots__}) for kind in kinds]


def shows(*kinds: type[Any], **defaults: object) -> Callable[[CallT], CallT]:
    """Let ``help`` and notebooks show the fields of ``kinds`` where a call takes ``**settings``.

    With their defaults, but for the call's own ``defaults``.
    """

    def signed(call: CallT) -> CallT:
        own = inspect.signature(call)
        named = {each.name: each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD}
        for kind in kinds:
            hints = hints_of(kind)
            for name, field in inspect.signature(kind).parameters.items():
                default = defaults.get(name, field.default)
                named.setdefault(name, field.replace(annotation=hints[name], default=default))
        call.__signature__ = own.replace(parameters=list(named.values()))  # type: ignore[attr-defined]
        return call

    return signed


def refuse(keywords: Mapping[str, object], names: Iterable[str], why: str, remedy: str = "leave it out") -> None:
    """Raise UserError for the first of ``names`` that is among the ``keywords`` of a call, where it means nothing.

    ``why`` ends the sentence: "for images that are there", "without `tune`".
    """
    for name in names:
        if name in keywords:
            raise UserError(f"`{name}`: means nothing {why}", remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class ImageSettings:
    """Which images of a place are meant: ``prompt`` is the one of all of them; ``split`` and ``revision`` of a data set.

    ``columns`` names the columns of a table of pairs, as for DataSource.
    """

    prompt: str | None = None
    split: str = "train"
    revision: str | None = None
    columns: str | Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        """Raises UserError for an empty prompt."""
        if self.prompt is not None and not self.prompt.strip():
            raise UserError("`prompt`: is empty", "give a prompt of at least one character")


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class ScoringSettings:
    """Where, how exactly and how fast images are scored; ``cache_dir`` None keeps no scores."""

    device: Any = None
    dtype: DType = "float32"
    batch_size: Annotated[int, COUNT] = 16
    workers: Annotated[int, COUNT] = 4
    cache_dir: Annotated[str | None, at_home] = "~/.cache/diffusion-feedback"
    on_bad_image: Literal["error", "skip"] = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class LabelingSettings:
    """How scores become labels, as ``LabelPolicy`` says.

    ``calibration`` is the file of logit scales that a calibration wrote, or {recipe id: logit scale};
    ``max_pairs_per_prompt`` keeps the rule's first pairs of each prompt. ``relabel`` keeps the pairs of the input.
    """

    relabel: bool = False
    ensemble: Literal["mean", "vote", "abstain"] = "mean"
    ties: Literal["drop", "soft", "half"] = "drop"
    tie_margin: float = 0.0
    min_probability: float = 0.5
    calibration: Annotated[str | Mapping[str, float] | None, at_home] = None
    max_pairs_per_prompt: Annotated[int | None, COUNT] = None

    def __post_init__(self) -> None:
        """Raises UserError for values out of range."""
        self.policy  # noqa: B018 (checks itself)

    @property
    def policy(self) -> LabelPolicy:
        """The policy of a panel."""
        return LabelPolicy(self.ensemble, self.ties, self.tie_margin, self.min_probability)


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class CalibrationSettings:
    """Which labelled pairs are read.

    ``ceiling_scorer`` names the scorer that knows the truth: its accuracy is the noise ceiling of the labels.
    ``per_prompt`` shows the mean over prompts of each one's accuracy too, as HPSv2 reports it. ``columns`` as for DataSource.
    """

    ceiling_scorer: str | None = None
    per_prompt: bool = False
    split: str = "train"
    tune_split: str = "train"
    revision: str | None = None
    columns: str | Mapping[str, str] | None = None
    on_bad_row: Literal["error", "skip"] = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class ModelSource:
    """Which weights a model has, besides its folder or hub id.

    ``family`` None: what the recipe of its run says; else what the class of its pipeline, or the files of its folder, tell.
    ``lora_scale`` multiplies what the adapters add, of ``lora`` or of a run that consists of adapters. ``model_config`` is the
    folder or hub id whose configuration a single-file model has; the usual one of its kind, from the hub, by default.
    """

    family: str | None = None
    lora: Annotated[str | None, at_home] = None
    lora_scale: Annotated[float, STRENGTH] = 1.0
    model_config: Annotated[str | None, at_home] = None
    revision: str | None = None
    variant: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class ImageSampling:
    """How images are drawn from a model.

    ``height`` and ``width``, px, are the model's own by default. ``noise`` "seed" starts from the noise of the bare seed, as
    diffusers does, the same for every prompt; "prompt" from noise of its own for each prompt and seed, so that prompts are
    independent.
    """

    num_inference_steps: Annotated[int, COUNT] = 30
    guidance_scale: Annotated[float, GUIDANCE] = 7.5
    negative_prompt: str | None = None
    height: Annotated[int | None, SIDE] = None
    width: Annotated[int | None, SIDE] = None
    noise: Literal["seed", "prompt"] = "seed"

    def __post_init__(self) -> None:
        """Raises UserError for steps, sizes and scales that no sampler takes."""
        if self.negative_prompt and self.guidance_scale <= 1:
            problem = (
                f"`negative_prompt`: means nothing with `guidance_scale` {self.guidance_scale}, which is no guidance"
            )
            raise UserError(problem, "leave it out, or give a scale above 1")


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class CompletionSampling:
    """How completions are drawn from a language model.

    ``top_k`` 0 and ``top_p`` 1 leave all tokens in, ``temperature`` 0 takes the likeliest. ``chat_template`` is a file;
    with it, or ``as_turns``, plain prompts become the user's turn.
    """

    num_samples: Annotated[int, COUNT] = 1
    max_new_tokens: Annotated[int, TOKENS] = 64
    temperature: Annotated[float, NOT_NEGATIVE] = 1.0
    top_k: Annotated[int, SOME] = 0
    top_p: Annotated[float, Range(0, 1, above=True)] = 1.0
    chat_template: Annotated[str | None, at_home] = None
    as_turns: bool = False

    @property
    def wants_turns(self) -> bool:
        """Whether plain prompts are to go through a chat template."""
        return self.as_turns or self.chat_template is not None


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class GenerationSettings:
    """What is drawn of each prompt, and how fast; ``dtype`` None is float32, or that of a model that is loaded already."""

    seeds: Annotated[Sequence[int], SEEDS] = (0,)
    dtype: DType | None = None
    device: Any = None
    batch_size: Annotated[int, COUNT] = 8
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class BenchmarkSettings:
    """What a benchmark asks for.

    ``prompts``: a file, folder or hub id in place of the benchmark's own. Scores that differ by ``tie_margin`` or less, in
    their own unit, count as a tie. ``allow_missing`` goes on without an image for every prompt, ``allow_short`` with another
    number of prompts than the published one. With a model: one image a prompt is drawn under each of ``seeds``,
    ``generation_batch_size`` at once, by a network in ``model_dtype`` (None: float32, or its own where it is loaded).
    """

    prompts: Annotated[str | None, at_home] = None
    tie_margin: Annotated[float, MARGIN] = 0.0
    allow_missing: bool = False
    allow_short: bool = False
    seeds: Annotated[Sequence[int], SEEDS] = (0,)
    model_dtype: DType | None = None
    generation_batch_size: Annotated[int, COUNT] = 8
    overwrite: bool = False

    def generation(self, device: str | None) -> GenerationSettings:
        """How the images are generated on ``device``."""
        return GenerationSettings(
            seeds=self.seeds,
            dtype=self.model_dtype,
            device=device,
            batch_size=self.generation_batch_size,
            overwrite=self.overwrite,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class JudgeSettings:
    """How two language models are compared.

    Scores that differ by ``tie_margin`` or less, in their own unit, count as a tie. Completions are drawn under ``seed``,
    ``batch_size`` at once. ``dtype`` is that of models and judges; None is float32, or that of a model that is loaded.
    ``lora_scale`` multiplies what the adapters of A and of B add, where they consist of adapters.
    """

    tie_margin: Annotated[float, MARGIN] = 0.0
    seed: Annotated[int, SEED] = 0
    batch_size: Annotated[int, COUNT] = 16
    dtype: DType | None = None
    device: Any = None
    lora_scale: Annotated[float, STRENGTH] = 1.0
    overwrite: bool = False

    @property
    def generation(self) -> GenerationSettings:
        """How completions are drawn."""
        return GenerationSettings(seeds=(self.seed,), dtype=self.dtype, device=self.device, batch_size=self.batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
@checked_by_type
class ReportSettings:
    """How benchmark runs are shown: ``names``, one a run, the baseline first, are their folders' by default."""

    baseline: Annotated[str | None, at_home] = None
    names: Sequence[str] = ()
    title: str = ""
    tie_margin: Annotated[float, MARGIN] = 0.0
    overwrite: bool = False
