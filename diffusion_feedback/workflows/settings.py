"""The settings of what a user does: the only place of their defaults. The command line makes its flags of them.

Each class checks its own values when it is made, and raises UserError naming the parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import UserError, nearest
from ..labeling.panel import LabelPolicy

DType = Literal["float32", "bfloat16", "float16"]
_LARGEST = 8192  # px
_STRONGEST = 1000  # of guidance: beyond, all pictures are noise


def at_least(smallest: int, **values: int | None) -> None:
    """Raise UserError for the first of ``values``, by name, that is below ``smallest``; None stands for a default."""
    for name, value in values.items():
        if value is not None and value < smallest:
            raise UserError(f"`{name}`: got {value}", f"allowed: {smallest} or more")


def check_choices(settings: object) -> None:
    """Raise UserError for the first field of ``settings`` whose value is none of those that its Literal allows."""
    for name, hint in get_type_hints(type(settings)).items():
        value, kinds = getattr(settings, name), get_args(hint) if type(None) in get_args(hint) else (hint,)
        for kind in kinds:
            if get_origin(kind) is Literal and value not in (*get_args(kind), *([None] if len(kinds) > 1 else [])):
                raise UserError(f"`{name}`: got {value!r}", nearest(str(value), list(get_args(kind))))


def _as_floats(settings: object, *names: str) -> None:
    """Make the fields ``names`` floats, as they are recorded alike whether 2 or 2.0 was given."""
    for name in names:
        object.__setattr__(settings, name, float(getattr(settings, name)))


def made_of_keywords(keywords: Mapping[str, object], *kinds: type[Any]) -> list[Any]:
    """Settings of each of ``kinds``, made of the ``keywords`` that a call was given; each takes those of its fields.

    Raises UserError for a keyword that none of them has, and as the settings do.
    """
    known = {field.name: kind for kind in kinds for field in fields(kind)}
    for name in keywords:
        if name not in known:
            raise UserError(f"`{name}`: is no setting", nearest(name, list(known)))
    names = [{field.name for field in fields(kind)} for kind in kinds]
    return [kind(**{n: v for n, v in keywords.items() if n in own}) for kind, own in zip(kinds, names, strict=True)]


def refuse(keywords: Mapping[str, object], names: Iterable[str], why: str, remedy: str = "leave it out") -> None:
    """Raise UserError for the first of ``names`` that is among the ``keywords`` of a call, where it means nothing."""
    for name in names:
        if name in keywords:
            raise UserError(f"`{name}`: means nothing, as {why}", remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """Which images of a place are meant: ``prompt`` is the one of all of them; ``split`` and ``revision`` of a data set."""

    prompt: str | None = None
    split: str = "train"
    revision: str | None = None

    def __post_init__(self) -> None:
        """Raises UserError for an empty prompt."""
        if self.prompt is not None and not self.prompt.strip():
            raise UserError("`prompt`: is empty", "give a prompt of at least one character")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringSettings:
    """Where, how exactly and how fast images are scored; ``cache_dir`` None keeps no scores."""

    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = 16
    workers: int = 4
    cache_dir: str | None = "~/.cache/diffusion-feedback"
    on_bad_image: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        """Raises UserError for sizes below 1, and values that are none of those allowed."""
        check_choices(self)
        at_least(1, batch_size=self.batch_size, workers=self.workers)


@dataclass(frozen=True, slots=True, kw_only=True)
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
    calibration: str | Mapping[str, float] | None = None
    max_pairs_per_prompt: int | None = None

    def __post_init__(self) -> None:
        """Raises UserError for values out of range."""
        check_choices(self)
        at_least(1, max_pairs_per_prompt=self.max_pairs_per_prompt)
        self.policy  # noqa: B018 (checks itself)

    @property
    def policy(self) -> LabelPolicy:
        """The policy of a panel."""
        return LabelPolicy(self.ensemble, self.ties, self.tie_margin, self.min_probability)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    """Which labelled pairs are read.

    ``ceiling_scorer`` names the scorer that knows the truth: its accuracy is the noise ceiling of the labels.
    ``per_prompt`` shows the mean over prompts of each one's accuracy too, as HPSv2 reports it.
    """

    ceiling_scorer: str | None = None
    per_prompt: bool = False
    split: str = "train"
    tune_split: str = "train"
    revision: str | None = None
    on_bad_row: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        """Raises UserError for values that are none of those allowed."""
        check_choices(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """Which data set is checked; texts in the tokens of ``tokenizer``, at most ``max_length`` of them in an example."""

    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    tokenizer: str | None = None
    max_length: int | None = None
    max_completion_length: int | None = None
    chat_template: str | None = None

    @property
    def where(self) -> dict[str, Any]:
        """What readers take."""
        return {"split": self.split, "revision": self.revision, "streaming": self.streaming}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertSettings:
    """Which data set is converted; ``each_answer`` makes a row of each answer of a conversation, of texts."""

    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    on_bad_row: Literal["error", "skip"] = "error"
    each_answer: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for values that are none of those allowed."""
        check_choices(self)

    @property
    def where(self) -> dict[str, Any]:
        """What readers take."""
        return {"split": self.split, "revision": self.revision, "streaming": self.streaming}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Which weights a model has, besides its folder or hub id; ``family`` None is recognised by the files of the folder."""

    family: str | None = None
    lora: str | None = None
    revision: str | None = None
    variant: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSampling:
    """How images are drawn from a model.

    ``height`` and ``width``, px, are the model's own by default. ``noise`` "seed" starts from the noise of the bare seed, as
    diffusers does, the same for every prompt; "prompt" from noise of its own for each prompt and seed, so that prompts are
    independent.
    """

    num_inference_steps: int = 30
    guidance_scale: float = 7.5
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    noise: Literal["seed", "prompt"] = "seed"

    def __post_init__(self) -> None:
        """Raises UserError for steps, sizes and scales that no sampler takes."""
        check_choices(self)
        _as_floats(self, "guidance_scale")
        at_least(1, num_inference_steps=self.num_inference_steps)
        for name, value in (("height", self.height), ("width", self.width)):
            if value is not None and (not 8 <= value <= _LARGEST or value % 8):
                raise UserError(f"`{name}`: got {value}", f"allowed: multiples of 8, up to {_LARGEST}")
        if not 0 <= self.guidance_scale <= _STRONGEST:
            problem = f"`guidance_scale`: got {self.guidance_scale}"
            raise UserError(problem, f"allowed: 0 to {_STRONGEST}; 1 and less is no guidance, 7.5 is usual")
        if self.negative_prompt and self.guidance_scale <= 1:
            problem = (
                f"`negative_prompt`: means nothing with `guidance_scale` {self.guidance_scale}, which is no guidance"
            )
            raise UserError(problem, "leave it out, or give a scale above 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionSampling:
    """How completions are drawn from a language model.

    ``top_k`` 0 and ``top_p`` 1 leave all tokens in, ``temperature`` 0 takes the likeliest. ``chat_template`` is a file;
    with it, or ``as_turns``, plain prompts become the user's turn.
    """

    num_samples: int = 1
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    chat_template: str | None = None
    as_turns: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for values out of range."""
        _as_floats(self, "temperature", "top_p")
        at_least(1, num_samples=self.num_samples, max_new_tokens=self.max_new_tokens)
        at_least(0, top_k=self.top_k)
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"`temperature`: got {self.temperature}", "allowed: 0 or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"`top_p`: got {self.top_p}", "allowed: above 0, up to 1")

    @property
    def wants_turns(self) -> bool:
        """Whether plain prompts are to go through a chat template."""
        return self.as_turns or self.chat_template is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """What is drawn of each prompt, and how fast; ``dtype`` None is float32, or that of a model that is loaded already."""

    seeds: Sequence[int] = (0,)
    dtype: DType | None = None
    device: str | None = None
    batch_size: int = 8
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for a size below 1, and seeds that are repeated or negative."""
        check_choices(self)
        at_least(1, batch_size=self.batch_size)
        check_seeds(self.seeds)


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise UserError for no ``seeds``, and repeated or negative ones."""
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"`seeds`: got {list(seeds)}", "allowed: distinct numbers, 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSettings:
    """What a benchmark asks for.

    ``prompts``: a file, folder or hub id in place of the benchmark's own. Scores that differ by ``tie_margin`` or less, in
    their own unit, count as a tie. ``allow_missing`` goes on without an image for every prompt, ``allow_short`` with another
    number of prompts than the published one. With a model: one image a prompt is drawn under each of ``seeds``,
    ``generation_batch_size`` at once, by a network in ``model_dtype`` (None: float32, or its own where it is loaded).
    """

    prompts: str | None = None
    tie_margin: float = 0.0
    allow_missing: bool = False
    allow_short: bool = False
    seeds: Sequence[int] = (0,)
    model_dtype: DType | None = None
    generation_batch_size: int = 8
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for values out of range."""
        check_choices(self)
        check_tie_margin(self.tie_margin)
        at_least(1, generation_batch_size=self.generation_batch_size)
        check_seeds(self.seeds)

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
class JudgeSettings:
    """How two language models are compared.

    Scores that differ by ``tie_margin`` or less, in their own unit, count as a tie. Completions are drawn under ``seed``,
    ``batch_size`` at once. ``dtype`` is that of models and judges; None is float32, or that of a model that is loaded.
    """

    tie_margin: float = 0.0
    seed: int = 0
    batch_size: int = 16
    dtype: DType | None = None
    device: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for values out of range."""
        check_choices(self)
        _as_floats(self, "tie_margin")
        check_tie_margin(self.tie_margin)
        at_least(1, batch_size=self.batch_size)
        at_least(0, seed=self.seed)

    @property
    def generation(self) -> GenerationSettings:
        """How completions are drawn."""
        return GenerationSettings(seeds=(self.seed,), dtype=self.dtype, device=self.device, batch_size=self.batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSettings:
    """How benchmark runs are shown: ``names``, one a run, the baseline first, are their folders' by default."""

    baseline: str | None = None
    names: Sequence[str] = ()
    title: str = ""
    tie_margin: float = 0.0
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for a negative margin."""
        check_tie_margin(self.tie_margin)


def check_tie_margin(tie_margin: float) -> None:
    """Raise UserError unless ``tie_margin`` is 0 or more."""
    if not tie_margin >= 0:
        raise UserError(f"`tie_margin`: got {tie_margin}", "allowed: 0 or more, in the unit of the scores")
