"""Which numbers and texts the keys of a recipe may have, key by key; what hangs together is checked elsewhere."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..errors import UserError
from .recipe import SECTIONS, Recipe
from .wording import allowed, is_optional

_INF = math.inf


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from ``low`` to ``high``; ``above`` and ``below`` leave the ends out."""

    low: float = 0
    high: float = _INF
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        return over and (value < self.high if self.below else value <= self.high) and abs(value) <= sys.float_info.max

    def __str__(self) -> str:
        if self.high <= 1:
            return f"{self.low:g} to {'below ' * self.below}{self.high:g}"
        least = f"above {self.low:g}" if self.above else f"{self.low:g} or more"
        if self.high < _INF:
            return f"{least}, {'below' if self.below else 'at most'} {_short(self.high)}"
        return f"{least}, and finite"


def _short(number: float) -> str:
    return "2^63" if number == 2.0**63 else f"{number:,.0f}"


# So much fits into what the libraries count with; and far more than anyone can use.
_STEPS, _SIZE, _TOKENS, _SEED = 100_000_000, 1_000_000, 2**31 - 1, 2.0**63
_SEEDS, _COUNT, _SOME, _SHARE = Range(0, _SEED, below=True), Range(1, _SIZE), Range(0, _SIZE), Range(0, 1)

RANGES: Mapping[str, Range] = {
    "model.lora_rank": Range(1, 65_536),
    "model.lora_alpha": Range(above=True),
    "data.resolution": Range(8, 16_384),
    "data.caption_dropout": _SHARE,
    "data.max_train_pairs": Range(1, 2.0**40),
    "data.max_validation_pairs": Range(1, 2.0**40),
    "training.seed": _SEEDS,
    "training.max_train_steps": Range(1, _STEPS),
    "training.train_batch_size": _COUNT,
    "training.gradient_accumulation_steps": _COUNT,
    "training.learning_rate": Range(),
    "training.lr_warmup_steps": Range(0, _STEPS),
    "training.max_grad_norm": Range(),
    "training.ema_decay": Range(0, 1, below=True),
    "training.timestep_range": _SHARE,
    "training.checkpointing_steps": Range(1, _STEPS),
    "training.checkpoints_total_limit": _COUNT,
    "validation.steps": Range(0, _STEPS),
    "validation.num_prompts": _SOME,
    "validation.seed": _SEEDS,
    "validation.num_inference_steps": Range(1, 1000),  # the noise levels that the schedulers have
    "validation.guidance_scale": Range(0, 1000),
    "text.max_length": Range(2, _TOKENS),
    "text.max_completion_length": Range(1, _TOKENS),
    "text.max_tokens_per_pass": Range(1, _TOKENS),
    "text.tail_weight": _SHARE,
    "rollouts.max_new_tokens": Range(1, _TOKENS),
    "rollouts.temperature": Range(),
    "rollouts.batch_size": _COUNT,
    "rollouts.num_prompts": _COUNT,
    "rollouts.num_generations": _COUNT,
    "rollouts.num_ppo_epochs": _COUNT,
    "rollouts.num_mini_batches": _COUNT,
    "rollouts.missing_eos_penalty": Range(),
    "rollouts.reward_clip": Range(above=True),
    "rollouts.ptx_coef": Range(),
    "rollouts.ptx_batch_size": _COUNT,
    "rounds.num_rounds": Range(0, 10_000),
    "rounds.num_prompts": _COUNT,
    "rounds.num_samples": Range(2, _SIZE),
    "rounds.reference_decay": Range(0, 1, below=True),
    "rounds.num_heldout_prompts": Range(2, _SIZE),
    "rounds.num_heldout_samples": _COUNT,
    "rounds.batch_size": _COUNT,
}
"""Every key that is a number."""

# Texts that may be empty where their default is: nothing is named then.
_EMPTY = "rollouts.reward", "rounds.scorer", "rounds.heldout_prompts", "validation.prompts"


def check_values(recipe: Recipe) -> None:
    """Refuse numbers out of range and texts that name nothing. Raises UserError naming the key."""
    for key, value in _values(recipe):
        if value is None and not is_optional(key):  # the parser lets a key without a value pass
            raise UserError(f"{key}: got nothing", f"allowed: {allowed(key)}; or leave the key out")
        if isinstance(value, str):
            _check_text(key, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            if value not in RANGES[key]:
                raise UserError(f"{key}: got {_written(value)}", f"allowed: {RANGES[key]}")
        elif isinstance(value, list | tuple):
            for each in value:
                if isinstance(each, str):
                    _check_text(key, each)
                elif each not in RANGES[key]:
                    raise UserError(f"{key}: got {value!r}", f"allowed: {RANGES[key]}")


def _values(recipe: Recipe) -> Iterator[tuple[str, object]]:
    yield "output_dir", recipe.output_dir
    for section in SECTIONS:
        for field in dataclasses.fields(SECTIONS[section]):
            yield f"{section}.{field.name}", getattr(getattr(recipe, section), field.name)


def _check_text(key: str, value: str) -> None:
    if not value.strip() and not (value == "" and key in _EMPTY):
        raise UserError(f"{key}: got {value!r}", "name something, or leave the key out")
    if "\0" in value:
        raise UserError(f"{key}: got {value!r}, with a NUL character", "take it out")


def _written(value: float) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} digits)"
