"""Which prompts a round draws samples of, and under which seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...records import Text, content_hash


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
