"""Completions of fixed prompts on fixed seeds, before and during training, for people to read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ...config.recipe import Recipe
from ...documents import read_object
from ...evaluation.trained import DrawnSamples
from ...foreign import reading
from ...models.causal_lm import CausalLM
from ...records import Text, write_text
from ...training.run_folder import RunFolder
from .drawn import evenly_spread, source_of_prompts, write_samples
from .token_batches import TokenBatches

_BEFORE = "before.json"


def _prompts(texts: TokenBatches, window: int) -> list[list[int]]:
    """Token ids of the recipe's own prompts, else of held-out ones, else of training prompts, spread evenly over all.

    Those alone that leave room for a completion.

    Where the data are conversations, a prompt of the recipe is the user's first turn.
    """
    validation, data = texts.setup.recipe.validation, texts.data
    if validation.prompts:
        said: list[Text] = [
            ({"role": "user", "content": prompt},) if data.is_conversational else prompt
            for prompt in validation.prompts
        ]
        prompts = [list(ids) for ids in texts.tokenization.encode_prompts(said)]
    else:
        index = data.train if data.heldout is None else data.heldout
        sequences = [example.chosen for example in index.examples] if validation.num_prompts else []
        whole = {tuple(each.ids[: each.prompt_length].tolist()) for each in sequences}
        prompts = [list(ids) for ids in evenly_spread(sorted(ids for ids in whole if ids), validation.num_prompts)]
    return [ids for ids in prompts if 0 < len(ids) < window]


@dataclass(frozen=True, slots=True)
class CompletionSamples:
    """Draws and writes ``samples/step-N.md``; the completions before the first update stand in ``samples/before.json``."""

    recipe: Recipe
    model: CausalLM
    prompts: Sequence[Sequence[int]]
    source: str

    @classmethod
    def of(cls, model: CausalLM, texts: TokenBatches) -> CompletionSamples:
        """Completions of the prompts that the recipe names, else of held-out ones, else of training prompts."""
        recipe = texts.setup.recipe
        prompts = _prompts(texts, model.window)
        source = source_of_prompts(recipe, len(prompts), has_heldout=texts.data.heldout is not None)
        return cls(recipe, model, prompts, source)

    def notes(self) -> list[str]:
        """What is drawn, in a line."""
        return [f"samples          of {self.source}"] if self.prompts else []

    def draw(self, step: int, network: nn.Module, run: RunFolder) -> None:
        """Complete all prompts with ``network``; nothing is done where there are none."""
        if not self.prompts:
            return
        folder, after = run.path / "samples", self._complete(network)
        if step == 0:
            drawn = {"prompts": [list(map(int, ids)) for ids in self.prompts], "completions": after}
            write_text(folder / _BEFORE, json.dumps(drawn, ensure_ascii=False) + "\n")
            return
        before = self._before(folder / _BEFORE)
        write_text(folder / f"step-{step:06d}.md", self._page(step, before, after))
        seeds = [self.recipe.validation.seed + number for number in range(len(self.prompts))]
        write_samples(run.path, DrawnSamples(step, self.source, self._prompt_texts(), seeds, before, after))

    def _before(self, path: Path) -> list[str]:
        """The completions before training; where they are of other prompts, or were never drawn, a word on that."""
        unknown = ["(not drawn before training)"] * len(self.prompts)
        if not path.exists():
            return unknown
        remedy = "remove the file; pages then say that they are missing"
        with reading(path, "the completions before training", remedy):
            recorded = read_object(path, remedy)
            if recorded["prompts"] != [list(map(int, ids)) for ids in self.prompts]:
                return unknown
            return [str(text) for text in recorded["completions"]]

    def _complete(self, network: nn.Module) -> list[str]:
        rollouts, first = self.recipe.rollouts, self.recipe.validation.seed
        # One at a time: the longest prompt decides how many tokens a whole batch has room for.
        drawn = [
            self.model.sample(
                network,
                [prompt],
                [first + number],
                max_new_tokens=rollouts.max_new_tokens,
                temperature=rollouts.temperature,
            )[0]
            for number, prompt in enumerate(self.prompts)
        ]
        return [str(self.model.tokenizer.decode(ids, skip_special_tokens=True)) for ids in drawn]

    def _page(self, step: int, before: Sequence[str], after: Sequence[str]) -> str:
        rollouts = self.recipe.rollouts
        parts = [
            f"# Step {step}\n\nTemperature {rollouts.temperature:g}, at most {rollouts.max_new_tokens} tokens, "
            f"seeds from {self.recipe.validation.seed} on.\n"
        ]
        for prompt_text, old, new in zip(self._prompt_texts(), before, after, strict=True):
            parts.append(
                f"\n## Prompt\n\n{fenced(prompt_text)}\nBefore:\n\n{fenced(old)}\nAfter {step} steps:\n\n{fenced(new)}"
            )
        return "".join(parts)

    def _prompt_texts(self) -> list[str]:
        return [str(self.model.tokenizer.decode(prompt, skip_special_tokens=False)) for prompt in self.prompts]


def fenced(text: str) -> str:
    """``text`` as a Markdown block that ends where the text does, whatever it holds."""
    longest = max((len(run) for run in re.findall("~+", text)), default=0)
    fence = "~" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}\n"
