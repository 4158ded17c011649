"""Rounds of texts: completions, judges of texts, pairs in TRL's columns, divergence from the initial model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..config import Recipe
from ..data.scores import read_scores, write_scores
from ..errors import UserError
from ..generation import COMPLETIONS, complete_prompts, load_completions
from ..labeling.candidates import join_scores
from ..labeling.pairs import LabelledPair, PairCounts, build_pairs
from ..labeling.panel import Policy, convene
from ..likelihoods.divergence import exact_divergence, num_prefixes, sampled_divergence
from ..likelihoods.tokens import TokenLikelihood
from ..models import causal_lm
from ..records import CompletionRecord, ScoreRecord, Text, atomic_write, content_hash
from ..scorers.texts.loading import load_text_scorer, parse_text_spec
from ..types import TokenSequence
from .completing import Drawing, Writer, load_writer, read_text_prompts
from .rounds_checks import rule_of

_MOST_PREFIXES = 20_000  # of one prompt; beyond it a divergence is estimated on samples alone


@dataclass(frozen=True, slots=True)
class TextSide:
    """A ``rounds_run.Side``; ``recipe`` is that of the rounds."""

    recipe: Recipe

    @property
    def pairs_name(self) -> str:
        """File name of the pairs of a round."""
        return "pairs.jsonl"

    def prompts(self, path: str) -> list[Text]:
        """The different prompts of a file."""
        return read_text_prompts(path)

    def _writer(self, model: str) -> Writer:
        rollouts, settings = self.recipe.rollouts, self.recipe.model
        drawing = Drawing(rollouts.max_new_tokens, rollouts.temperature)
        revision = settings.revision if model == settings.pretrained_model_name_or_path else None
        template = self.recipe.text.chat_template
        return load_writer(model, drawing, revision=revision, dtype=settings.dtype, chat_template=template)

    def draw(self, model: str, prompts: Sequence[Text], folder: Path, *, seed: int, num_samples: int) -> int:
        """Completions of every prompt in ``folder``/completions.jsonl."""
        writer = self._writer(model)
        records = complete_prompts(
            prompts,
            folder / COMPLETIONS,
            sampler=writer,
            seeds=[seed],
            num_samples=num_samples,
            model_hash=writer.model.model_hash(),
            settings=writer.settings,
            batch_size=self.recipe.rollouts.batch_size,
        )
        return len(records)

    def judge(self, spec: str, drawn: Path, output: Path) -> None:
        """Score every completion; equal ones of one prompt once."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        scorer = load_text_scorer(spec, device)
        records = load_completions(drawn)
        keys = [(prompt_name(record.prompt), content_hash(record.completion)) for record in records]
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        asked = sorted(first.values())
        found = scorer.score(
            [records[place].prompt for place in asked], [completion_of(records[place]) for place in asked]
        )
        scores = {keys[place]: score for place, score in zip(asked, found, strict=True)}
        # The difference of two rewards is a Bradley-Terry logit; other judges have no such scale.
        scale = 1.0 if parse_text_spec(spec).kind == "reward_model" else None
        rows = [
            ScoreRecord(
                f"prompt {record.prompt_index}, sample {record.sample}",
                key[1],
                key[0],
                "judge",
                scorer.recipe_id,
                scores[key],
                scores[key],
                scale,
            )
            for record, key in zip(records, keys, strict=True)
        ]
        write_scores(rows, output)

    def pair(self, drawn: Path, scores: Path, output: Path) -> str:
        """Pairs by the recipe's rule, as rows of prompt, chosen, rejected with their scores; ties are left out."""
        rule = rule_of(self.recipe.rounds.rule)
        completions, records = load_completions(drawn), read_scores(scores)
        by_name = dict(zip((record.image for record in records), completions, strict=True))
        # A blank completion cannot be learnt from: there would be no token, or nothing that reads back as it was.
        told = [record for record in records if by_name[record.image].completion.strip()]
        panel = convene(told, Policy(), None) if told else None
        if panel is None:
            raise UserError(
                f"{drawn}: every completion is blank", "raise rollouts.max_new_tokens, or use another model"
            )
        candidates = join_scores(((r.image, r.image_key, r.prompt) for r in told), told, panel)
        pairs, counts = build_pairs(candidates, panel, rule)
        if not pairs:
            problem = f"{scores}: no pair to learn from ({_counts(counts, len(records) - len(told))})"
            raise UserError(problem, "raise rounds.num_samples, or use a judge that tells completions apart")
        with atomic_write(output) as file:
            file.write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(pairs, by_name)), "utf-8"
            )
        return _counts(counts, len(records) - len(told))

    def merge(self, run: Path, start: str, folder: Path) -> None:
        """The adapters of ``run`` merged into the model that it started from, in float32."""
        model = causal_lm.load(str(run))
        model.save(model.network, folder)

    def divergence(self, model: str, initial: str, drawn: Path) -> Mapping[str, list[float]]:
        """KL(model || initial): estimated on the held-out completions, exact too where all can be gone through."""
        records = load_completions(drawn)
        writer, other = self._writer(model), self._writer(initial)
        return divergence_of(writer, other.model.network, records)

    def samples(self, drawn: Path) -> list[tuple[Text, str | Path]]:
        """Prompt and completion of every sample."""
        return [(record.prompt, record.completion) for record in load_completions(drawn)]


def average(old: str, new: str, share: float, folder: Path) -> None:
    """Write the language model whose weights are ``share`` of ``old`` and the rest of ``new``, in float32."""
    kept, model = causal_lm.load(old), causal_lm.load(new)
    before = kept.network.state_dict()
    with torch.no_grad():
        for name, weight in model.network.state_dict().items():
            if weight.is_floating_point():
                weight.copy_(share * before[name] + (1 - share) * weight)
    model.save(model.network, folder)


def join_lines(files: Sequence[Path], output: Path) -> None:
    """Write all lines of ``files`` to one file."""
    with atomic_write(output) as file:
        file.write_text("".join(part.read_text("utf-8") for part in files), "utf-8")


def divergence_of(writer: Writer, reference: nn.Module, records: Sequence[CompletionRecord]) -> dict[str, list[float]]:
    """Estimates of KL(writer || reference) on completions that ``writer`` drew with all tokens allowed, nats.

    ``log_ratio`` and ``token_kl`` for every completion, ``exact`` for every prompt where there are few enough.
    """
    model, drawing = writer.model, writer.drawing
    device = next(model.network.parameters()).device
    prompts = writer.encode([record.prompt for record in records])
    sequences = [sequence_of(prompt, record.token_ids) for prompt, record in zip(prompts, records, strict=True)]
    likelihood = TokenLikelihood(device, temperature=drawing.temperature)
    found = sampled_divergence(model.network, reference, sequences, likelihood=likelihood)
    figures = {"log_ratio": found.log_ratio.tolist(), "token_kl": found.token_kl.tolist()}
    vocabulary, ends = int(model.network.model.config.vocab_size), model.end_token_ids
    if num_prefixes(vocabulary, len(ends), drawing.max_new_tokens) <= _MOST_PREFIXES:
        different = dict(zip((record.prompt_index for record in records), prompts, strict=True))
        figures["exact"] = [
            exact_divergence(
                model.network,
                reference,
                prompt,
                max_new_tokens=drawing.max_new_tokens,
                end_ids=ends,
                temperature=drawing.temperature,
                device=device,
            )
            for _, prompt in sorted(different.items())
        ]
    return figures


def sequence_of(prompt: Sequence[int], completion: Sequence[int]) -> TokenSequence:
    """The tokens as they were drawn: nothing is decoded and read again."""
    scored = np.zeros(len(prompt) + len(completion), np.bool_)
    scored[len(prompt) :] = True
    return TokenSequence(np.array([*prompt, *completion], np.int32), scored, len(prompt))


def prompt_name(prompt: Text) -> str:
    """A prompt as one text, by which a table of scores knows it."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, default=dict, sort_keys=True)


def completion_of(record: CompletionRecord) -> Text:
    """The completion as its prompt stands: a text, or the assistant's turn."""
    if isinstance(record.prompt, str):
        return record.completion
    return ({"role": "assistant", "content": record.completion},)


def _rows(pairs: Sequence[LabelledPair], by_name: Mapping[str, CompletionRecord]) -> Iterator[dict[str, Any]]:
    for pair in pairs:
        sides = sorted((pair.image_0, pair.image_1), key=lambda candidate: -candidate.raws[0])
        chosen, rejected = (by_name[candidate.name] for candidate in sides)
        yield {
            "prompt": chosen.prompt,
            "chosen": completion_of(chosen),
            "rejected": completion_of(rejected),
            "score_chosen": sides[0].scores[0],
            "score_rejected": sides[1].scores[0],
            "weight": pair.weight,
        }


def _counts(counts: PairCounts, blank: int) -> str:
    parts = [f"{counts.prompts:,} prompts", f"{counts.candidates:,} completions"]
    parts += [f"{counts.identical:,} of them identical"] * bool(counts.identical)
    parts += [f"{blank:,} blank ones left out"] * bool(blank)
    parts += [f"{counts.ties_dropped:,} ties left out"] * bool(counts.ties_dropped)
    return ", ".join([*parts, f"{counts.pairs:,} pairs"])
