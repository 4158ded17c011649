"""Recipes: YAML plus flags to typed dataclasses. Every key is checked; an unknown one is an error with the nearest name."""

from __future__ import annotations

import argparse
import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from .catalog import check_settings, nearest, resolve, settings_of
from .errors import UserError


@dataclass(frozen=True)
class ModelConfig:
    """Which model is tuned, and how.

    Args:
        pretrained_model_name_or_path: Diffusers folder or hub id.
        family: Name from the catalog: sd or sdxl.
        revision: Branch, tag or commit on the hub.
        variant: Weight variant, such as fp16.
        tuning: lora trains adapters over the frozen base; full trains the whole network beside a frozen copy.
        lora_rank: Rank of the adapters.
        lora_alpha: Scale of the adapters is alpha / rank; the rank when not given.
        lora_targets: Groups (attention, feed_forward, convolutions) or endings of layer names.
        dtype: Precision of the frozen base weights under lora; full tuning keeps float32 master weights.
        gradient_checkpointing: Recompute activations in the backward pass, to save memory.
    """

    pretrained_model_name_or_path: str
    family: str = "sd"
    revision: str | None = None
    variant: str | None = None
    tuning: Literal["lora", "full"] = "lora"
    lora_rank: int = 8
    lora_alpha: float | None = None
    lora_targets: list[str] = field(default_factory=lambda: ["attention"])
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class DataConfig:
    """Which preference pairs are learnt from.

    Args:
        train: Parquet file, glob, directory, image folder, twin folders, or hub id.
        validation: Held-out pairs, in any of the same forms; none when not given.
        split: Split of the training data, where the source has splits.
        validation_split: Split of the validation data.
        revision: Branch, tag or commit on the hub.
        streaming: Read hub data as a stream; needs the cache.
        resolution: Side of the square training images, px; the model's own when not given.
        ties: drop leaves tied pairs out, soft keeps them with probability one half.
        soft_labels: Use vote shares as label probabilities (dpo only); else the majority decides.
        prompt_weights: Weigh each pair by 1 / num_example_per_prompt, where the data has that column.
        on_bad_row: error stops at the first bad row, skip leaves bad rows out and lists them.
        cache: Keep latents and text embeddings on disk.
        cache_dir: Where the cache lies.
        cache_dtype: Precision of cached tensors.
        random_flip: Mirror half of the pairs, both images alike.
        random_crop: Crop at random instead of at the centre, both images alike; needs cache false.
        caption_dropout: Share of pairs trained with the empty caption, in [0, 1].
        max_train_pairs: Use only so many training pairs.
        max_validation_pairs: Use only so many validation pairs.
    """

    train: str
    validation: str | None = None
    split: str = "train"
    validation_split: str = "validation"
    revision: str | None = None
    streaming: bool = False
    resolution: int | None = None
    ties: Literal["drop", "soft"] = "drop"
    soft_labels: bool = False
    prompt_weights: bool = True
    on_bad_row: Literal["error", "skip"] = "error"
    cache: bool = True
    cache_dir: str = "~/.cache/diffusion-feedback"
    cache_dtype: Literal["float32", "float16"] = "float32"
    random_flip: bool = False
    random_crop: bool = False
    caption_dropout: float = 0.0
    max_train_pairs: int | None = None
    max_validation_pairs: int | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how fast, and with what.

    Args:
        seed: Seed of every draw: order, timesteps, noise, flips, crops, caption dropout, adapter start.
        max_train_steps: Number of optimizer steps.
        train_batch_size: Pairs in one forward pass of one process.
        gradient_accumulation_steps: Forward passes of each process in one optimizer step.
        learning_rate: Peak learning rate.
        lr_scheduler: Course of the learning rate after the warm-up.
        lr_warmup_steps: Steps of linear warm-up.
        max_grad_norm: Gradient norm is clipped to this; 0 leaves it.
        mixed_precision: Autocast precision of forward passes.
        ema_decay: Decay of the moving average of the trained weights, which is then the result; 0 for none.
        timestep_range: Part of the scheduler's range that timesteps are drawn from.
        checkpointing_steps: Write a checkpoint every so many steps.
        checkpoints_total_limit: Keep so many checkpoints.
        report_to: Trackers of accelerate (tensorboard, wandb, ...), beside metrics.jsonl.
    """

    seed: int = 0
    max_train_steps: int = 1000
    train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-5
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    lr_warmup_steps: int = 0
    max_grad_norm: float = 1.0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    ema_decay: float = 0.0
    timestep_range: tuple[float, float] = (0.0, 1.0)
    checkpointing_steps: int = 100
    checkpoints_total_limit: int = 2
    report_to: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ValidationConfig:
    """What is looked at while training.

    Args:
        steps: Look every so many steps; 0 only at the end.
        prompts: Prompts of the sample grid; the first held-out ones when empty.
        num_prompts: How many held-out prompts are taken when prompts is empty.
        seed: Seed of the first sample, and of the held-out draws.
        num_inference_steps: Steps of the sampler.
        guidance_scale: Classifier-free guidance.
    """

    steps: int = 0
    prompts: list[str] = field(default_factory=list)
    num_prompts: int = 8
    seed: int = 0
    num_inference_steps: int = 30
    guidance_scale: float = 7.5


@dataclass(frozen=True)
class Recipe:
    """One training run.

    Args:
        model: Which model is tuned, and how.
        data: Which pairs are learnt from.
        output_dir: The run's folder.
        objective: Name of the objective and its settings, such as {name: dpo, beta: 5000}.
        optimizer: Name of the optimizer and its settings, such as {name: adamw, weight_decay: 0.01}.
        training: How long, how fast, and with what.
        validation: What is looked at while training.
    """

    model: ModelConfig
    data: DataConfig
    output_dir: str
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "dpo", "beta": 5000.0})
    optimizer: dict[str, Any] = field(default_factory=lambda: {"name": "adamw"})
    training: TrainingConfig = field(default_factory=TrainingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)


SECTIONS: Mapping[str, type[Any]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "validation": ValidationConfig,
}
_CATALOGUED = ("objective", "optimizer")


def known_keys() -> list[str]:
    """All recipe keys with their sections, such as training.learning_rate."""
    sections = [f"{name}.{item.name}" for name, section in SECTIONS.items() for item in dataclasses.fields(section)]
    return [item.name for item in dataclasses.fields(Recipe)] + sections


class _HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows types and defaults, and leaves the lines of the examples as they are."""


def build_parser(prog: str, description: str, epilog: str = "") -> ArgumentParser:
    """A parser with ``--config`` and every recipe key as a flag."""
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} --config RECIPE.yaml [--SECTION.KEY VALUE ...]",
        description=description,
        epilog=epilog,
        exit_on_error=False,
        print_config=None,  # our own prints the resolved recipe alone
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--config", action="config", help="Recipe file (YAML); flags override it.")
    parser.add_class_arguments(Recipe)
    return parser


def parse(parser: ArgumentParser, argv: Sequence[str]) -> tuple[Recipe, Namespace]:
    """Parse flags and recipe files into a checked Recipe, and the namespace with the command's own flags.

    Raises UserError for unknown keys (with the nearest name), wrong types, missing keys, and unreadable files.
    """
    argv = [_with_underscores(argument) for argument in argv]
    _check_files(argv)
    try:
        namespace = parser.parse_args(list(argv))
    except ArgumentError as error:
        raise UserError(*_explain(str(error))) from error
    parts = {name: section(**vars(namespace[name])) for name, section in SECTIONS.items()}
    objective, optimizer = (_coerce(kind, dict(namespace[kind])) for kind in _CATALOGUED)
    recipe = Recipe(output_dir=namespace.output_dir, objective=objective, optimizer=optimizer, **parts)
    check(recipe)
    return recipe, namespace


def _with_underscores(argument: str) -> str:
    """Flags may be written with dashes as well, as in --training.learning-rate."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument


def _config_files(argv: Sequence[str]) -> list[str]:
    following = [argv[i + 1] for i, argument in enumerate(argv[:-1]) if argument == "--config"]
    return following + [argument.partition("=")[2] for argument in argv if argument.startswith("--config=")]


def _check_files(argv: Sequence[str]) -> None:
    """Refuse recipe files that cannot be read or hold unknown keys, naming file, key and the nearest known key."""
    for file in _config_files(argv):
        path = Path(file)
        if not path.is_file():
            raise UserError(f"{file}: no such recipe file", "recipes lie under configs/")
        try:
            content = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise UserError(f"{file}: not valid YAML: {error}", "mend the file") from error
        if not isinstance(content, dict):
            raise UserError(f"{file}: a recipe is a mapping of keys, found {type(content).__name__}", "see configs/")
        top = [item.name for item in dataclasses.fields(Recipe)]
        for key, value in content.items():
            if key not in top:
                raise UserError(f"{file}: unknown key {key!r}", nearest(str(key), known_keys()))
            inner = [item.name for item in dataclasses.fields(SECTIONS[key])] if key in SECTIONS else []
            for name in value if key in SECTIONS and isinstance(value, dict) else []:
                if name not in inner:
                    raise UserError(f"{file}: unknown key '{key}.{name}'", nearest(str(name), inner))


def _explain(message: str) -> tuple[str, str]:
    """Turn the parser's message into (problem, remedy)."""
    unknown = re.search(r"unrecognized arguments: (?:--)?([\w.\-]+)|[Kk]ey \"?([\w.]+)\"? is not expected", message)
    if unknown:
        name = unknown.group(1) or unknown.group(2)
        section = name.partition(".")[0] + "."
        known = known_keys()
        near = [key for key in known if key.startswith(section)] or [key for key in known if "." not in key]
        return f"unknown option {name!r}", nearest(name, near)
    missing = re.search(r"arguments are required: (.+)", message)
    if missing:
        return f"missing: {missing.group(1)}", "give it as a flag, or name a recipe with --config configs/....yaml"
    return message, "see --help"


def _coerce(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Check ``settings`` against the signature that ``name`` stands for, and bring numbers to their declared type."""
    name = settings.get("name")
    if not isinstance(name, str):
        raise UserError(f"{kind}.name is missing", f"set {kind}.name, for example in {kind}: {{name: ...}}")
    own = {key: value for key, value in settings.items() if key != "name"}
    check_settings(kind, name, own)
    function = resolve(kind, name)
    hints = typing.get_type_hints(function)
    for key in settings_of(function):
        if hints.get(key) is float and key in own:
            try:
                own[key] = float(own[key])
            except (TypeError, ValueError) as error:
                raise UserError(f"{kind}.{key}: expected a number, got {own[key]!r}", "give a number") from error
    return {"name": name, **own}


def _require(condition: bool, key: str, value: object, allowed: str) -> None:
    if not condition:
        raise UserError(f"{key}: got {value!r}", f"allowed: {allowed}")


def check(recipe: Recipe) -> None:
    """Refuse values out of range and settings that contradict each other. Raises UserError naming the key."""
    training, data, model = recipe.training, recipe.data, recipe.model
    positive = ("max_train_steps", "train_batch_size", "gradient_accumulation_steps", "checkpointing_steps")
    for key in (*positive, "checkpoints_total_limit"):
        _require(getattr(training, key) >= 1, f"training.{key}", getattr(training, key), "1 or more")
    for key in ("learning_rate", "lr_warmup_steps", "max_grad_norm", "seed"):
        value = getattr(training, key)
        _require(0 <= value < float("inf"), f"training.{key}", value, "0 or more")
    _require(0 <= training.ema_decay < 1, "training.ema_decay", training.ema_decay, "0 (none) to below 1")
    low, high = training.timestep_range
    _require(0 <= low < high <= 1, "training.timestep_range", training.timestep_range, "0 <= low < high <= 1")
    _require(0 <= data.caption_dropout <= 1, "data.caption_dropout", data.caption_dropout, "0 to 1")
    _require(model.lora_rank >= 1, "model.lora_rank", model.lora_rank, "1 or more")
    _require(
        data.resolution is None or (data.resolution >= 8 and data.resolution % 8 == 0),
        "data.resolution",
        data.resolution,
        "multiples of 8",
    )
    for key in ("max_train_pairs", "max_validation_pairs"):
        _require(getattr(data, key) is None or getattr(data, key) >= 1, f"data.{key}", getattr(data, key), "1 or more")
    steps = recipe.validation.num_inference_steps
    _require(steps >= 1, "validation.num_inference_steps", steps, "1 or more")
    half = model.dtype == "float32" or training.mixed_precision != "no"
    _require(half, "training.mixed_precision", "no", f"bf16 or fp16, as model.dtype is {model.dtype}")
    if data.random_crop and data.cache:
        raise UserError("data.random_crop: random crops cannot be cached", "set data.cache: false, or drop random_crop")
    if data.streaming and not data.cache:
        raise UserError("data.streaming: streamed images are seen once", "set data.cache: true")
    if model.tuning == "full" and model.dtype != "float32":
        raise UserError(
            f"model.dtype: {model.dtype} weights under full tuning lose small updates",
            "use float32 and training.mixed_precision",
        )
    _check_labels(recipe)


def _check_labels(recipe: Recipe) -> None:
    import inspect

    name = recipe.objective["name"]
    takes_soft = "chosen_probability" in inspect.signature(resolve("objective", name)).parameters
    if recipe.data.soft_labels and not takes_soft:
        raise UserError(
            f"data.soft_labels: objective {name!r} takes hard labels only", "use objective dpo, or soft_labels false"
        )
    if recipe.data.ties == "soft" and not recipe.data.soft_labels:
        raise UserError("data.ties: soft needs data.soft_labels: true", "a tie has no majority; or use ties: drop")


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as plain nested values, in the order of the sections."""
    return typing.cast("dict[str, Any]", _plain(dataclasses.asdict(recipe)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that ``--config`` reads back."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True)
