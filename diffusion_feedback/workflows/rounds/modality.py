"""What rounds ask of texts and of images alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from accelerate import PartialState

from ...records import Text


class RoundJudge(Protocol):
    """Who judges the samples of a round."""

    def of_round(self, number: int, folder: Path, state: PartialState) -> str:
        """The scorer for round ``number`` of the rounds in ``folder``, whose samples are drawn."""
        ...


class Modality(Protocol):
    """How samples are drawn, judged, paired and measured. Every output is written whole or not at all."""

    @property
    def pairs_name(self) -> str:
        """File name of the pairs of a round."""
        ...

    @property
    def judge(self) -> RoundJudge:
        """Who judges in the rounds, by the recipe."""
        ...

    @property
    def heldout_judge(self) -> str:
        """The scorer of the held-out samples, where the recipe names no other."""
        ...

    def check(self) -> None:
        """Raise UserError for settings of the recipe that this modality cannot have."""
        ...

    def prompts(self, path: str) -> list[Text]:
        """The different prompts of a file."""
        ...

    def draw(self, model: str, prompts: Sequence[Text], folder: Path, *, seed: int, num_samples: int) -> int:
        """Draw samples of every prompt into ``folder``; resumable. Returns how many there are."""
        ...

    def score(self, scorer: str, drawn: Path, output: Path) -> None:
        """Write the score of every sample, in order, to the table ``output``; called in every process."""
        ...

    def pair(self, drawn: Path, scores: Path, output: Path) -> None:
        """Write pairs of the samples by the recipe's rule, and log how many. Raises UserError for none."""
        ...

    def merge(self, run: Path, start: str, folder: Path) -> None:
        """Write the model that ``run`` trained from ``start`` as one of its own, adapters merged in."""
        ...

    def average(self, old: str, new: str, share: float, folder: Path) -> None:
        """Write the model whose weights are ``share`` of ``old`` and the rest of ``new``."""
        ...

    def divergence(self, model: str, initial: str, drawn: Path) -> Mapping[str, list[float]]:
        """Estimates of KL(model || initial), one for each sample (or prompt, for ``exact``); empty where there are none."""
        ...

    def samples(self, drawn: Path) -> list[tuple[Text, str | Path]]:
        """Prompt and text, or prompt and image file, of every sample, in order."""
        ...
