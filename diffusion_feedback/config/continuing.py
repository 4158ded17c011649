"""What a run may change when it goes on from a checkpoint, and what makes it another run: one table of all keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import shown
from ..output_folders import Key, flat
from .meaning import default_of, is_required
from .recipe import plain
from .wording import known_keys

Change = Literal["beside", "course", "rounding", "passes", "meaning"]
"""What a change of a setting touches.

beside: neither data, draws nor updates.
course: the updates that follow; what was computed stays as it is.
rounding: sums of the same terms in another order or precision.
passes: the same, where the loss of an example does not depend on the others of its pass.
meaning: what was computed already, or what it stands for.
"""
MAY_CHANGE: tuple[Change, ...] = ("beside", "course", "rounding")
# By key, or by section where all keys of it are alike; whoever adds a key says here what a change of it means.
CHANGES: Mapping[str, Change] = {
    "output_dir": "beside",
    "model": "meaning",
    "model.gradient_checkpointing": "rounding",
    "data": "meaning",
    "data.cache": "rounding",
    "data.cache_dir": "beside",
    "data.cache_dtype": "rounding",
    "objective": "meaning",
    "optimizer": "meaning",  # a checkpoint holds its state, and its settings within
    "training.seed": "meaning",
    "training.max_train_steps": "course",
    "training.num_train_epochs": "course",
    "training.train_batch_size": "passes",
    "training.gradient_accumulation_steps": "passes",
    "training.learning_rate": "course",
    "training.lr_scheduler": "course",
    "training.lr_warmup_steps": "course",
    "training.lr_num_cycles": "course",
    "training.lr_power": "course",
    "training.lr_end": "course",
    "training.max_grad_norm": "course",
    "training.mixed_precision": "rounding",
    "training.ema_decay": "meaning",  # the average is of all steps so far
    "training.timestep_range": "meaning",
    "training.checkpointing_steps": "beside",
    "training.checkpoints_total_limit": "beside",
    "training.global_batch_size": "beside",
    "training.report_to": "beside",
    "validation": "beside",
    "text": "meaning",
    "text.max_tokens_per_pass": "passes",
    "text.share_prompt": "rounding",
    "text.cache_reference": "rounding",
    "rollouts": "meaning",
    "rollouts.batch_size": "rounding",
    "rounds": "meaning",
}
LENGTH = (
    "training.max_train_steps", "training.num_train_epochs", "validation.early_stopping",
    "validation.early_stopping_patience", "validation.early_stopping_min_delta",
)  # fmt: skip


def change_of(key: str) -> Change:
    """What a change of ``key``, such as objective.beta, means. Raises KeyError for a key that no row speaks of."""
    return CHANGES[key] if key in CHANGES else CHANGES[key.partition(".")[0]]


@dataclass(frozen=True, slots=True)
class ChangedSetting:
    """A setting of a run that goes on: its name (a key of the recipe, or "effective batch"), and both values."""

    name: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.name}: {shown(self.old)} -> {shown(self.new)}"


@dataclass(frozen=True, slots=True)
class Changes:
    """What a run that goes on changes: what it may, and what would make it another run."""

    accepted: tuple[ChangedSetting, ...] = ()
    refused: tuple[ChangedSetting, ...] = ()

    @property
    def is_longer_or_shorter(self) -> bool:
        """Whether the number of steps is another one."""
        return any(each.name in LENGTH for each in self.accepted)


def compare_recipes(old: Mapping[str, object], new: Mapping[str, object], *, has_coupled_passes: bool) -> Changes:
    """The settings in which the recipe ``new`` differs from ``old``, both as nested plain values.

    ``has_coupled_passes``: the loss of an example depends on the others of its pass. What one of the two does not say, as
    it is older than the key, has its default.
    """
    allowed = MAY_CHANGE if has_coupled_passes else (*MAY_CHANGE, "passes")
    changed = list(_differences(flat(old), flat(new)))
    free = [change_of(each.name) in allowed for each in changed]
    return Changes(
        tuple(each for each, is_free in zip(changed, free, strict=True) if is_free),
        tuple(each for each, is_free in zip(changed, free, strict=True) if not is_free),
    )


def _differences(old: Mapping[Key, object], new: Mapping[Key, object]) -> Iterator[ChangedSetting]:
    for key in sorted({*old, *new}):
        name = ".".join(key)
        before, now = (side[key] if key in side else _default(name) for side in (old, new))
        if before != now:
            yield ChangedSetting(name, before, now)


def _default(key: str) -> object:
    """The default of ``key`` as a file holds it; None where there is none, as of the settings of an objective."""
    return None if key not in known_keys() or is_required(key) else plain(default_of(key))
