"""What ``dfb judge`` measures of each model alone: perplexity on texts, divergence from a reference."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..data.texts import open_texts
from ..errors import UserError
from ..evaluation.judged import Distance, Fluency
from ..evaluation.judging import clustered_mean, perplexity, standard_error
from ..generation import COMPLETIONS
from ..likelihoods.tokenization import UNCUT, Tokenization
from ..likelihoods.tokens import TokenLikelihood
from ..records import CompletionRecord, TextRecord
from ..types import TokenSequence
from .completing import TextSampler, open_text_sampler
from .completion_scores import divergence_of, prompt_name
from .settings import CompletionSampling, GenerationSettings, ModelSource


def holds_completions(path: str) -> bool:
    """Whether ``path`` holds completions, not a model."""
    given = Path(path)
    has_model = any((given / name).is_file() for name in ("config.json", "adapter_config.json"))
    return given.suffix == ".jsonl" or (not has_model and (given / COMPLETIONS).is_file())


def sampling_of(arguments: argparse.Namespace) -> CompletionSampling:
    """How completions are drawn, as the arguments say."""
    return CompletionSampling(**{name: getattr(arguments, name) for name in CompletionSampling.__slots__})


def load_model(path: str, arguments: argparse.Namespace) -> TextSampler:
    """The language model at ``path``, drawing as the arguments say."""
    generation = GenerationSettings(dtype=arguments.dtype, device=arguments.device)
    return open_text_sampler(path, ModelSource(), sampling_of(arguments), generation)


def check_models(arguments: argparse.Namespace) -> None:
    """Raise UserError where a model is to be measured, and completions were given."""
    for path in (arguments.a, arguments.b):
        for flag in ("texts", "reference"):
            if getattr(arguments, flag) and holds_completions(path):
                problem = f"--{flag}: {path} holds completions, not a model"
                raise UserError(problem, f"leave --{flag} out, or give the model")


def read_texts(arguments: argparse.Namespace) -> list[TextRecord]:
    """The texts of ``--texts``; none where it is not given. Raises UserError for fewer than two, or bad ones."""
    records = list(open_texts(arguments.texts)) if arguments.texts else []
    if len(records) == 1:
        raise UserError(f"--texts: {arguments.texts} holds one text", "give two or more: one gives no interval")
    return records


def measure_fluency(
    arguments: argparse.Namespace, called: Sequence[str], records: Sequence[TextRecord]
) -> tuple[dict[str, Fluency], list[str]]:
    """Perplexity of each model on ``records``, and what should be known of it."""
    if not records:
        return {}, []
    found: dict[str, Fluency] = {}
    notes: list[str] = []
    vocabularies = []
    for name, path in zip(called, (arguments.a, arguments.b), strict=True):
        writer = load_model(path, arguments)
        tokenization = Tokenization(writer.model.tokenizer, writer.model.window, None, arguments.chat_template)
        sequences = [example.chosen for example in tokenization.encode(records)]
        losses, tokens = _losses(writer, sequences, arguments.batch_size)
        whole = Tokenization(writer.model.tokenizer, UNCUT, None, arguments.chat_template).encode(records)
        size = sum(
            len(_kept_text(writer, sequence).encode())
            if sequence.num_scored < example.chosen.num_scored
            else sum(len(text.encode()) for text in _scored_texts(record))
            for record, sequence, example in zip(records, sequences, whole, strict=True)
        )
        found[name] = Fluency(perplexity(losses, tokens), sum(losses) / size / math.log(2), sum(tokens))
        notes += [f"{name}: {note}" for note in tokenization.counts.notes()]
        vocabularies.append(writer.model.tokenizer.get_vocab())
    if vocabularies[0] != vocabularies[1]:
        notes.append("note: the two tokenizers differ: compare bits a byte, not perplexities a token")
    return found, notes


def _losses(writer: TextSampler, sequences: Sequence[TokenSequence], batch_size: int) -> tuple[list[float], list[int]]:
    """Negative log-likelihood of each completion, nats, and its number of tokens."""
    likelihood = TokenLikelihood(next(writer.model.network.parameters()).device)
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    losses = [0.0] * len(sequences)
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            inputs = likelihood.prepare_sequences([sequences[index] for index in chunk])
            logps = likelihood.logps(writer.model.network, inputs).double().tolist()
            for index, logp in zip(chunk, logps, strict=True):
                losses[index] = -logp
    return losses, [sequence.num_scored for sequence in sequences]


def _kept_text(writer: TextSampler, sequence: TokenSequence) -> str:
    """What was scored of a text that was cut."""
    kept = sequence.ids[sequence.scored].tolist()
    return str(writer.model.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _scored_texts(record: TextRecord) -> list[str]:
    """What of a record is predicted: its completion, or what the assistant says in it."""
    if isinstance(record.chosen, str):
        return [record.chosen]
    return [str(turn["content"]) for turn in record.chosen if turn["role"] == "assistant"]


def measure_distance(
    arguments: argparse.Namespace, called: Sequence[str], sides: Sequence[Sequence[CompletionRecord]]
) -> dict[str, Distance]:
    """KL of each model from ``--reference`` on its own completions."""
    if not arguments.reference:
        return {}
    reference = load_model(arguments.reference, arguments)
    found: dict[str, Distance] = {}
    for name, path, records in zip(called, (arguments.a, arguments.b), sides, strict=True):
        writer = load_model(path, arguments)
        if writer.model.tokenizer.get_vocab() != reference.model.tokenizer.get_vocab():
            problem = f"--reference: {arguments.reference} and {path} have different tokenizers"
            raise UserError(problem, "measure against a model with the same tokens")
        prompts = [prompt_name(record.prompt) for record in records]
        figures = divergence_of(writer, reference.model.network, records)
        found[name] = _as_distance(figures, prompts)
    return found


def _as_distance(figures: Mapping[str, Sequence[float]], prompts: Sequence[str]) -> Distance:
    exact = figures.get("exact")
    return Distance(
        clustered_mean(figures["token_kl"], prompts),
        standard_error(figures["token_kl"], prompts),
        clustered_mean(figures["log_ratio"], prompts).value,
        standard_error(figures["log_ratio"], prompts),
        sum(exact) / len(exact) if exact else None,
    )
