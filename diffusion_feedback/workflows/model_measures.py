"""Language models that are compared, and what is measured of each alone: perplexity, divergence from a reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..data.texts import open_texts
from ..errors import UserError
from ..evaluation.judged import Distance, Fluency
from ..evaluation.judging import clustered_mean, perplexity, standard_error
from ..generation.completions import COMPLETIONS
from ..likelihoods.divergence import exact_divergence, num_prefixes, sampled_divergence
from ..likelihoods.tokenization import UNCUT, Tokenization
from ..likelihoods.tokens import TokenLikelihood
from ..records import CompletionRecord, TextRecord
from ..text_folders import is_adapter
from ..training.token_rollouts import drawn_sequence
from ..types.models import Tokenizer
from ..types.texts import TokenSequence
from .sampling import TextSampler, adapts_object, folder_or_id, open_text_sampler
from .settings import CompletionSampling, JudgeSettings, ModelSource
from .verdicts import prompt_name

_MOST_PREFIXES = 20_000  # of one prompt; beyond it a divergence is estimated on samples alone


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """A language model by the ``name`` that a comparison gives it, or completions that one has drawn.

    ``model``: a folder or hub id, completions, or a transformers model that is loaded, with its ``tokenizer``.
    """

    name: str
    model: object
    tokenizer: Tokenizer | None
    sampling: CompletionSampling
    settings: JudgeSettings

    @classmethod
    def of(cls, given: object, name: str, sampling: CompletionSampling, settings: JudgeSettings) -> ComparedModel:
        """``given``: a path or hub id, the result of a run, or (model, tokenizer)."""
        if isinstance(given, tuple) and len(given) == 2:
            model, tokenizer = given
            return cls(name, model, tokenizer, sampling, settings)
        if adapts_object(given):
            problem = f"{name}: a run that has tuned, by adapters, a model that was handed in"
            raise UserError(problem, "compare completions that generating has drawn from it, or train it by a path")
        path = folder_or_id(given)
        if path is None:
            problem = f"{name}: a {type(given).__name__}, which is no path, and comes without its tokenizer"
            raise UserError(problem, "give (model, tokenizer)")
        return cls(name, path, None, sampling, settings)

    @property
    def path(self) -> str | None:
        """Where it lies; None for a model that is loaded."""
        return self.model if isinstance(self.model, str) else None

    @property
    def holds_completions(self) -> bool:
        """Whether these are completions, not a model."""
        if self.path is None:
            return False
        given = Path(self.path)
        has_model = any((given / name).is_file() for name in ("config.json", "adapter_config.json"))
        return given.suffix == ".jsonl" or (not has_model and (given / COMPLETIONS).is_file())

    @property
    def is_adapted(self) -> bool:
        """Whether it is an adapter in a folder, which can be scaled."""
        return self.path is not None and is_adapter(self.path)

    def open(self) -> TextSampler:
        """The model, ready to draw; loaded at each call, so that two need not be in memory at once."""
        scale = self.settings.lora_scale if self.is_adapted else 1.0
        source, generation = ModelSource(lora_scale=scale), self.settings.generation
        return open_text_sampler(self.model, source, self.sampling, generation, tokenizer=self.tokenizer)


def read_texts(path: str | None) -> list[TextRecord]:
    """The texts of ``path``; none where it is None. Raises UserError for fewer than two, or bad ones."""
    records = list(open_texts(path)) if path else []
    if len(records) == 1:
        raise UserError(f"`texts`: {path} holds one text", "give two or more: one gives no interval")
    return records


def measure_fluency(
    models: Sequence[ComparedModel], records: Sequence[TextRecord]
) -> tuple[dict[str, Fluency], list[str]]:
    """Perplexity of each model on ``records``, and what should be known of it."""
    if not records:
        return {}, []
    fluency: dict[str, Fluency] = {}
    notes: list[str] = []
    vocabularies = []
    for model in models:
        sampler, template = model.open(), model.sampling.chat_template
        tokenizer = sampler.model.tokenizer
        tokenization = Tokenization(tokenizer, sampler.model.window, None, template)
        sequences = [example.chosen for example in tokenization.encode(records)]
        losses, tokens = _losses(sampler, sequences, model.settings.batch_size)
        whole = Tokenization(tokenizer, UNCUT, None, template).encode(records)
        size = sum(
            len(
                sampler.decode(sequence.ids[sequence.scored].tolist()).encode()
            )  # what was scored of a text that was cut
            if sequence.num_scored < example.chosen.num_scored
            else sum(len(text.encode()) for text in _scored_texts(record))
            for record, sequence, example in zip(records, sequences, whole, strict=True)
        )
        fluency[model.name] = Fluency(perplexity(losses, tokens), sum(losses) / size / math.log(2), sum(tokens))
        notes += [f"{model.name}: {note}" for note in tokenization.counts.notes()]
        vocabularies.append(tokenizer.get_vocab())
    if vocabularies[0] != vocabularies[1]:
        notes.append("note: the two tokenizers differ: compare bits per byte, not perplexities per token")
    return fluency, notes


def _losses(sampler: TextSampler, sequences: Sequence[TokenSequence], batch_size: int) -> tuple[list[float], list[int]]:
    """Negative log-likelihood of each completion, nats, and its number of tokens."""
    likelihood = TokenLikelihood(next(sampler.model.network.parameters()).device)
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    losses = [0.0] * len(sequences)
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            inputs = likelihood.prepare_sequences([sequences[index] for index in chunk])
            logps = likelihood.logps(sampler.model.network, inputs).double().tolist()
            for index, logp in zip(chunk, logps, strict=True):
                losses[index] = -logp
    return losses, [sequence.num_scored for sequence in sequences]


def _scored_texts(record: TextRecord) -> list[str]:
    """What of a record is predicted: its completion, or what the assistant says in it."""
    if isinstance(record.chosen, str):
        return [record.chosen]
    return [str(turn["content"]) for turn in record.chosen if turn["role"] == "assistant"]


def measure_distance(
    models: Sequence[ComparedModel], completions: Sequence[Sequence[CompletionRecord]], reference: ComparedModel | None
) -> dict[str, Distance]:
    """KL of each model from ``reference`` on its own ``completions``."""
    if reference is None:
        return {}
    origin = reference.open()
    distance: dict[str, Distance] = {}
    for model, records in zip(models, completions, strict=True):
        sampler = model.open()
        if sampler.model.tokenizer.get_vocab() != origin.model.tokenizer.get_vocab():
            problem = f"`reference`: {reference.name} and {model.path or model.name} have different tokenizers"
            raise UserError(problem, "measure against a model with the same tokens")
        prompts = [prompt_name(record.prompt) for record in records]
        estimates = divergence_of(sampler, origin.model.network, records)
        token_kl, log_ratio, exact = (estimates.get(key, []) for key in ("token_kl", "log_ratio", "exact"))
        distance[model.name] = Distance(
            clustered_mean(token_kl, prompts),
            standard_error(token_kl, prompts),
            clustered_mean(log_ratio, prompts).value,
            standard_error(log_ratio, prompts),
            sum(exact) / len(exact) if exact else None,
        )
    return distance


def divergence_of(
    sampler: TextSampler, reference: nn.Module, records: Sequence[CompletionRecord]
) -> dict[str, list[float]]:
    """Estimates of KL(sampler || reference) on completions that ``sampler`` drew with all tokens allowed, nats.

    ``log_ratio`` and ``token_kl`` for every completion, ``exact`` for every prompt where there are few enough.
    """
    model, sampling = sampler.model, sampler.sampling
    device = next(model.network.parameters()).device
    prompts = sampler.encode([record.prompt for record in records])
    sequences = [drawn_sequence(prompt, record.token_ids) for prompt, record in zip(prompts, records, strict=True)]
    likelihood = TokenLikelihood(device, temperature=sampling.temperature)
    sampled = sampled_divergence(model.network, reference, sequences, likelihood=likelihood)
    estimates = {"log_ratio": sampled.log_ratio.tolist(), "token_kl": sampled.token_kl.tolist()}
    vocabulary, ends = int(model.library_model.get_output_embeddings().weight.shape[0]), model.end_token_ids
    if num_prefixes(vocabulary, len(ends), sampling.max_new_tokens) <= _MOST_PREFIXES:
        different = dict(zip((record.prompt_index for record in records), prompts, strict=True))
        estimates["exact"] = [
            exact_divergence(
                model.network,
                reference,
                prompt,
                max_new_tokens=sampling.max_new_tokens,
                end_ids=ends,
                temperature=sampling.temperature,
                device=device,
            )
            for _, prompt in sorted(different.items())
        ]
    return estimates
