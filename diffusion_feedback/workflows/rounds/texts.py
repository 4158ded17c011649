"""Rounds of texts: completions, judges of texts, pairs in TRL's columns, divergence from the initial model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...config import Recipe
from ...data.scores import read_scores, write_scores
from ...errors import UserError
from ...generation import COMPLETIONS, complete_prompts, load_completions
from ...labeling.candidates import join_scores
from ...labeling.pairs import LabelledPair, PairCounts, build_pairs
from ...labeling.panel import LabelPolicy, build_panel
from ...labeling.rules import rule_of
from ...models import causal_lm
from ...records import CompletionRecord, ScoreRecord, Text, atomic_write, content_hash
from ...scorers.texts.loading import load_text_scorer, parse_text_spec
from ..completing import Drawing, Writer, load_writer, read_text_prompts
from ..completion_scores import completion_text, divergence_of, prompt_name, score_records


@dataclass(frozen=True, slots=True)
class TextSide:
    """A ``rounds_run.Side``; ``recipe`` is that of the rounds."""

    recipe: Recipe

    @property
    def pairs_name(self) -> str:
        """File name of the pairs of a round."""
        return "pairs.jsonl"

    def prompts(self, path: str) -> list[Text]:
        """The different prompts of a file; plain ones become turns where the recipe has a chat template."""
        return read_text_prompts(path, in_turns=self.recipe.text.chat_template is not None)

    def _writer(self, model: str) -> Writer:
        rollouts, settings = self.recipe.rollouts, self.recipe.model
        drawing = Drawing(rollouts.max_new_tokens, rollouts.temperature)
        revision = settings.revision if model == settings.pretrained_model_name_or_path else None
        template = self.recipe.text.chat_template
        return load_writer(model, drawing, revision=revision, dtype=settings.dtype, chat_template=template)

    def draw(self, model: str, prompts: Sequence[Text], folder: Path, *, seed: int, num_samples: int) -> int:
        """Completions of every prompt in ``folder``/completions.jsonl."""
        writer = self._writer(model)
        for note in writer.notes(prompts):
            print(f"note: {note}")
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

    def judge(self, spec: str, drawn: Path, output: Path, *, is_main: bool) -> None:
        """Score every completion; equal ones of one prompt once. The main process does it alone."""
        if not is_main:
            return
        device = "cuda" if torch.cuda.is_available() else "cpu"
        scorer = load_text_scorer(spec, device)
        records = load_completions(drawn)
        scores = score_records(scorer, records)
        # The difference of two rewards is a Bradley-Terry logit; other judges have no such scale.
        scale = 1.0 if parse_text_spec(spec).kind == "reward_model" else None
        rows = [
            ScoreRecord(
                f"prompt {record.prompt_index}, sample {record.sample}",
                content_hash(record.completion),
                prompt_name(record.prompt),
                "judge",
                scorer.recipe_id,
                score,
                score,
                scale,
            )
            for record, score in zip(records, scores, strict=True)
        ]
        write_scores(rows, output)

    def pair(self, drawn: Path, scores: Path, output: Path) -> str:
        """Pairs by the recipe's rule, as rows of prompt, chosen, rejected with their scores; ties are left out."""
        rule = rule_of(self.recipe.rounds.rule, "rounds.rule")
        completions, records = load_completions(drawn), read_scores(scores)
        by_name = dict(zip((record.sample for record in records), completions, strict=True))
        # A blank completion cannot be learnt from: there would be no token, or nothing that reads back as it was.
        told = [record for record in records if by_name[record.sample].completion.strip()]
        panel = build_panel(told, LabelPolicy(), None) if told else None
        if panel is None:
            raise UserError(
                f"{drawn}: every completion is blank", "raise rollouts.max_new_tokens, or use another model"
            )
        candidates = join_scores(((r.sample, r.sample_key, r.prompt) for r in told), told, panel)
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


def _rows(pairs: Sequence[LabelledPair], by_name: Mapping[str, CompletionRecord]) -> Iterator[dict[str, Any]]:
    for pair in pairs:
        sides = sorted((pair.first, pair.second), key=lambda candidate: -candidate.raws[0])
        chosen, rejected = (by_name[candidate.name] for candidate in sides)
        yield {
            "prompt": chosen.prompt,
            "chosen": completion_text(chosen),
            "rejected": completion_text(rejected),
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
