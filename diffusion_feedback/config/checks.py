"""Which recipes make sense: values in range, settings that do not contradict each other, and none that mean nothing."""

from __future__ import annotations

import inspect

from ..catalog import resolve
from ..errors import UserError
from .recipe import Recipe


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
