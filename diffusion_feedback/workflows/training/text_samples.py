"""Completions of fixed prompts on fixed seeds, before training and at every look, for people to read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from torch import nn

from ...config import Recipe
from ...documents import read_object
from ...foreign import reading
from ...likelihoods.tokenization import Tokenization
from ...records import Text, atomic_write
from ...training.run_folder import RunFolder
from ...types import GenerativeTextModel
from .text_examples import TextData

_BEFORE = "before.json"


def sample_prompts(recipe: Recipe, tokenization: Tokenization, data: TextData, window: int) -> list[list[int]]:
    """Token ids of the recipe's own prompts, or of the first held-out ones; those that leave room for a completion.

    Where the data are conversations, a prompt of the recipe is the user's first turn.
    """
    validation = recipe.validation
    if validation.prompts:
        texts: list[Text] = [
            ({"role": "user", "content": prompt},) if data.is_conversational else prompt
            for prompt in validation.prompts
        ]
        found = [list(ids) for ids in tokenization.encode_prompts(texts)]
    elif data.heldout is not None:
        whole = {
            tuple(example.chosen.ids[: example.chosen.prompt_length].tolist()) for example in data.heldout.examples
        }
        found = [list(ids) for ids in sorted(whole) if ids][: validation.num_prompts]
    else:
        found = []
    return [ids for ids in found if 0 < len(ids) < window]


class Samples:
    """Draws and writes ``samples/step-N.md``; the completions before the first update stand in ``samples/before.json``."""

    def __init__(
        self, recipe: Recipe, model: GenerativeTextModel, folder: RunFolder, prompts: Sequence[Sequence[int]]
    ) -> None:
        self.recipe, self.model, self.prompts = recipe, model, prompts
        self.folder = folder.path / "samples"

    def draw(self, step: int, network: nn.Module) -> None:
        """Complete all prompts with ``network``; nothing is done where there are none."""
        if not self.prompts:
            return
        after = self._complete(network)
        if step == 0:
            told = {"prompts": [list(map(int, ids)) for ids in self.prompts], "completions": after}
            with atomic_write(self.folder / _BEFORE) as file:
                file.write_text(json.dumps(told, ensure_ascii=False) + "\n", "utf-8")
            return
        before = self._before()
        with atomic_write(self.folder / f"step-{step:06d}.md") as file:
            file.write_text(self._page(step, before, after), "utf-8")

    def _before(self) -> list[str]:
        """The completions before training; where they are of other prompts, or were never drawn, a word on that."""
        path, unknown = self.folder / _BEFORE, ["(not drawn before training)"] * len(self.prompts)
        if not path.exists():
            return unknown
        remedy = "remove the file; pages then say that they are missing"
        with reading(path, "the completions before training", remedy):
            told = read_object(path, remedy)
            if told["prompts"] != [list(map(int, ids)) for ids in self.prompts]:
                return unknown
            return [str(text) for text in told["completions"]]

    def _complete(self, network: nn.Module) -> list[str]:
        rollouts, first = self.recipe.rollouts, self.recipe.validation.seed
        seeds = [first + number for number in range(len(self.prompts))]
        # One at a time: the longest prompt decides how many tokens a whole batch has room for.
        drawn = [
            self.model.sample(
                network,
                [prompt],
                [seed],
                max_new_tokens=rollouts.max_new_tokens,
                temperature=rollouts.temperature,
            )[0]
            for prompt, seed in zip(self.prompts, seeds, strict=True)
        ]
        return [self._text(ids) for ids in drawn]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.model.tokenizer.decode(ids, skip_special_tokens=True))

    def _page(self, step: int, before: Sequence[str], after: Sequence[str]) -> str:
        rollouts = self.recipe.rollouts
        parts = [
            f"# Step {step}\n\nTemperature {rollouts.temperature:g}, at most {rollouts.max_new_tokens} tokens, "
            f"seeds from {self.recipe.validation.seed} on.\n"
        ]
        for prompt, old, new in zip(self.prompts, before, after, strict=True):
            asked = str(self.model.tokenizer.decode(prompt, skip_special_tokens=False))
            parts.append(
                f"\n## Prompt\n\n{fenced(asked)}\nBefore:\n\n{fenced(old)}\nAfter {step} steps:\n\n{fenced(new)}"
            )
        return "".join(parts)


def fenced(text: str) -> str:
    """``text`` as a Markdown block that ends where the text does, whatever it holds."""
    longest = max((len(run) for run in re.findall("~+", text)), default=0)
    fence = "~" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}\n"
