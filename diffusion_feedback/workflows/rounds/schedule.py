"""What rounds are made of: the prompts and seeds of each, pieces of work that are done once, and training runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from ...config.recipe import Recipe
from ...records import Text, content_hash
from ...training.run_folder import RunFolder
from ..training.accelerator import own_accelerate
from ..training.run import run_training


@dataclass(frozen=True, slots=True)
class PromptSchedule:
    """``size`` prompts a round, in an order that is drawn again each time that all ``prompts`` were used."""

    prompts: Sequence[Text]
    size: int
    seed: int

    def of_round(self, number: int) -> list[Text]:
        """The prompts of round ``number``, from 1.

        One that would come twice, as a new order begins within a round, waits for the next round.
        """
        stream = self._stream()
        chosen: dict[str, Text] = {}
        waiting: list[Text] = []
        for _ in range(number):
            chosen = {repr(prompt): prompt for prompt in waiting}
            waiting = []
            while len(chosen) < self.size:
                prompt = next(stream)
                if repr(prompt) in chosen:
                    waiting.append(prompt)
                chosen.setdefault(repr(prompt), prompt)
        return list(chosen.values())

    def _stream(self) -> Iterator[Text]:
        for epoch in itertools.count():
            yield from sorted(self.prompts, key=lambda prompt: content_hash(f"{self.seed}/{epoch}/{prompt!r}"))


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one ``purpose`` of rounds whose recipe has ``seed``."""
    return int(content_hash(f"rounds/{seed}/{purpose}")[:6], 16)


@dataclass(frozen=True, slots=True)
class Stage:
    """``work(output)`` writes ``output`` whole or not at all; where it is there, the work is done.

    ``is_shared``: every process takes part in the work. Else the main process does it, and the others wait.
    """

    output: Path
    work: Callable[[Path], None]
    is_shared: bool = False

    def run(self, state: PartialState) -> Path:
        """Do the work unless it is done; returns the output once it is there for every process."""
        if (self.is_shared or state.is_main_process) and not self.output.exists():
            self.work(self.output)
        state.wait_for_everyone()
        return self.output


def train_to_end(recipe: Recipe, state: PartialState) -> None:
    """Train ``recipe`` to its end, from where it stands. The group of processes goes on."""
    folder = RunFolder(Path(recipe.output_dir))
    state.wait_for_everyone()
    if folder.is_complete():
        return
    with own_accelerate():
        run_training(recipe, resume=(folder.path / "recipe.yaml").exists())
