"""Completions of held-out prompts after steps of training: what they are worth, how far the policy has gone, and pages to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ...evaluation.statistics import mean_interval
from ...evaluation.trained import DrawnSamples
from ...objectives.returns import k1, per_completion
from ...records import Text, write_text
from ...training.rollouts import Measure
from ...training.run_folder import RunFolder
from ...training.token_rollouts import drawn_sequence
from ...types.texts import TokenSequence
from .drawn import SAMPLES, read_samples, write_samples
from .rollout_prompts import RolloutPrompts
from .rollout_source import CompletionJudge, PolicySampler
from .sample_completions import fenced


@dataclass(frozen=True, slots=True)
class RolloutEvaluation:
    """Draws one completion of each prompt on fixed seeds, judges them, and writes ``samples/step-N.md``."""

    prompts: RolloutPrompts
    sampler: PolicySampler
    judge: CompletionJudge
    measure: Measure[TokenSequence]
    seed: int
    batch_size: int
    pages: int
    source: str

    def __call__(self, step: int, network: nn.Module, folder: RunFolder) -> Mapping[str, float]:
        """Mean score with its 95 % interval, KL to the reference (nats a completion) with its own, share that ended, and length."""
        order = sorted(range(len(self.prompts)), key=lambda index: (-len(self.prompts.ids[index]), index))
        completions: list[list[int]] = [[] for _ in order]
        kl: dict[int, float] = {}
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            drawn = self.sampler([self.prompts.ids[i] for i in part], [self.seed + i for i in part])
            for index, ids in zip(part, drawn, strict=True):
                completions[index] = ids
            kl |= zip(part, self._kl(part, drawn), strict=False)
        scores = self.judge(self.prompts.texts, completions)
        self._write(folder, step, completions, scores)
        of_each = {"scores": scores, **({"kl": [kl[index] for index in sorted(kl)]} if kl else {})}
        folder.log_heldout(step, self.prompts.names, of_each)
        ends = self.sampler.model.end_token_ids
        metrics = {
            "finished": sum(ids[-1] in ends for ids in completions) / len(completions),
            "mean_length": sum(map(len, completions)) / len(completions),
        }
        for name, values in (("scores", scores), ("kl", list(kl.values()))):
            if len(values) > 1:
                interval = mean_interval(values)
                metrics |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
            elif values:  # one value says nothing about the spread
                metrics[name] = values[0]
        return metrics

    def _kl(self, part: Sequence[int], drawn: Sequence[Sequence[int]]) -> list[float]:
        prompts = [self.prompts.ids[index] for index in part]
        sequences = [drawn_sequence(prompt, ids) for prompt, ids in zip(prompts, drawn, strict=True)]
        statistics = self.measure(sequences)
        if statistics.reference is None:
            return []
        lengths = torch.tensor([len(ids) for ids in drawn])
        values: list[float] = per_completion(k1(statistics.logps, statistics.reference), lengths).tolist()
        return values

    def _write(
        self, folder: RunFolder, step: int, completions: Sequence[Sequence[int]], scores: Sequence[float]
    ) -> None:
        shown = [
            _words(self.judge.text(ids, prompt))
            for prompt, ids in zip(self.prompts.texts[: self.pages], completions, strict=False)
        ]
        prompts = [_words(prompt) for prompt in self.prompts.texts[: self.pages]]
        seeds = [self.seed + number for number in range(len(prompts))]
        before = shown if step == 0 else self._before(folder, prompts)
        samples = DrawnSamples(step, self.source, prompts, seeds, before, shown, scores[: self.pages])
        write_samples(folder.path, samples)
        parts = [f"# Step {step}\n"]
        for prompt, completion, score in zip(prompts, shown, scores, strict=False):
            parts.append(f"\n## Reward {score:.4g}\n\n{fenced(prompt)}\n{fenced(completion)}")
        write_text(folder.path / SAMPLES / f"step-{step:06d}.md", "".join(parts))

    def _before(self, folder: RunFolder, prompts: Sequence[str]) -> Sequence[str | Path]:
        """The completions before training of the same prompts; a word on it where there are none."""
        first = read_samples(folder.path, up_to=0).get(0)
        is_known = first is not None and list(first.prompts) == list(prompts)
        return first.after if first is not None and is_known else ["(not drawn before training)"] * len(prompts)


def _words(text: Text) -> str:
    """A text, or what is said in the last turn of a conversation."""
    return text if isinstance(text, str) else str(text[-1]["content"])
