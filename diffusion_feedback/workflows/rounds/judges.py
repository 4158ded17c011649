"""Who judges the samples of a round: the recipe's scorer, or a reward model that is trained in every round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import PartialState

from ...config.parsing import load_recipe
from ...config.recipe import Recipe
from ...records import write_text
from .modality import Modality
from .stages import Stage
from .training_runs import train_to_end


@dataclass(frozen=True, slots=True)
class NamedJudge:
    """A scorer that stays as it is."""

    scorer: str

    def of_round(self, number: int, folder: Path, state: PartialState) -> str:
        """The scorer."""
        return self.scorer


@dataclass(frozen=True, slots=True)
class LearntJudge:
    """A reward model trained in every round, by ``rounds.reward_recipe``, on what was labelled in all rounds so far."""

    recipe: Recipe
    modality: Modality

    def of_round(self, number: int, folder: Path, state: PartialState) -> str:
        """Label the round's samples, train on the pairs of all rounds up to this one; the reward model that results."""
        place = folder / f"round-{number}"
        rounds, name = self.recipe.rounds, self.modality.pairs_name
        assert rounds.reward_recipe is not None
        score = partial(self.modality.score, str(rounds.labels_from), place / "samples")
        labels = Stage(place / "labels-scores.parquet", score, is_shared=True).run(state)
        pair = partial(self.modality.pair, place / "samples", labels)
        labelled = Stage(place / f"labelled-{name}", pair).run(state)
        parts = [folder / f"round-{earlier}" / labelled.name for earlier in range(1, number + 1)]
        joined = Stage(place / f"reward-{name}", partial(_join_lines, parts)).run(state)
        own = {"data.train": joined, "output_dir": place / "reward"}
        train_to_end(load_recipe(rounds.reward_recipe, own), state)
        return f"reward_model={place / 'reward'}"


def _join_lines(files: Sequence[Path], output: Path) -> None:
    write_text(output, "".join(part.read_text("utf-8") for part in files))
