"""From a recipe to what a run on texts is made of: model, reference, likelihood, step, passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ...catalog import needs_reference, objective_row, resolve
from ...config import Recipe
from ...data.cache import TensorCache
from ...data.reference_logps import ReferenceLogps
from ...data.token_index import TokenIndex
from ...errors import UserError
from ...likelihoods.conversations import read_template
from ...likelihoods.tokenization import Tokenization
from ...likelihoods.tokens import TokenLikelihood
from ...models import lora_targets
from ...models.reference import AdaptersOff, FrozenCopy, FrozenModel
from ...scorers.texts.checking import quote
from ...text_folders import NO_LIMIT, rows_of, unknown_tokens
from ...training.order import PairOrder
from ...training.preference import PreferenceStep
from ...training.sources import under_budget
from ...training.steps import PointwiseStep, StepParts
from ...training.text_heldout import token_metrics
from ...types import GenerativeTextModel, Reference, TextBatch, TextModel, TokenExample, Tokenizer, UnpairedBatch
from .memory import weight_bytes


def load_model(recipe: Recipe, path: str, device: torch.device) -> GenerativeTextModel:
    """The language model of the recipe's family at ``path``, frozen, in the recipe's precision."""
    model: GenerativeTextModel = resolve("family", recipe.model.family)(path, **_precision(recipe, device))
    return model


def load_judge(recipe: Recipe, path: str, device: torch.device) -> TextModel:
    """The reward model of the recipe's family at ``path``; a head that it lacks is drawn from the recipe's seed."""
    settings = _precision(recipe, device)
    model: TextModel = resolve("family", recipe.model.family)(path, **settings, seed=recipe.training.seed)
    return model


def _precision(recipe: Recipe, device: torch.device) -> dict[str, object]:
    model = recipe.model
    dtype = getattr(torch, model.dtype)
    return {"revision": model.revision, "variant": model.variant, "dtype": dtype, "device": device}


def make_trainable(recipe: Recipe, loaded: TextModel) -> list[str]:
    """Adapters over the frozen model, or the whole of it; returns lines on what the adapters are.

    The model's heads are trained, and saved, in full beside adapters, as are the recipe's modules.
    """
    model = recipe.model
    lines = []
    if model.tuning == "lora":
        alpha = model.lora_alpha if model.lora_alpha is not None else float(model.lora_rank)
        lines = lora_targets.add_adapters(
            loaded.transformer,
            rank=model.lora_rank,
            alpha=alpha,
            targets=model.lora_targets,
            seed=recipe.training.seed,
            task_type=loaded.task_type,
            heads=[*loaded.head_names, *model.lora_modules_to_save],
            revision=model.revision,
        )
        if loaded.is_merged:
            size = sum(4 * parameter.numel() for parameter in loaded.transformer.parameters()) / 2**20
            lines.append(
                f"over another adapter, which is merged: the result is a whole model, {size:,.0f} MiB in float32"
            )
    else:
        for part in loaded.trained_parts():
            part.requires_grad_(True)
    if model.gradient_checkpointing:
        loaded.enable_gradient_checkpointing()
    return [f"adapters         {line}" for line in lines]


def describe_tokenizer(loaded: TextModel) -> list[str]:
    """Lines on tokens that the model does not know, on a length that is the tokenizer's, and on what ends a completion."""
    tokenizer, model = loaded.tokenizer, loaded.transformer
    lines = []
    if unknown := unknown_tokens(tokenizer, model):
        first = ", ".join(map(repr, unknown[:3]))
        lines.append(
            f"{len(unknown)} tokens are beyond the model's embedding ({first}): texts that use them are refused"
        )
    if loaded.usual_length < loaded.window < NO_LIMIT:
        lines.append(
            f"texts are cut at {loaded.usual_length} tokens, as the tokenizer says (model_max_length); the model holds "
            f"{loaded.window}: set text.max_length for more"
        )
    if unsaid := getattr(loaded, "unsaid_end_token_ids", ()):
        words = ", ".join(repr(tokenizer.convert_ids_to_tokens(token)) for token in unsaid)
        lines.append(f"{words} ends a completion too, and is saved as an end token in generation_config.json")
    return [f"note             {line}" for line in lines]


def set_chat_template(recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Make the recipe's chat template, where it has one, the tokenizer's own: it is saved with the result.

    Raises UserError for a template that cannot be read.
    """
    if recipe.text.chat_template is not None:
        tokenizer.chat_template = read_template(recipe.text.chat_template)


def length_of(recipe: Recipe, loaded: TextModel) -> int:
    """Longest example in tokens: the recipe's text.max_length, else as long as tokenizer and model both take.

    Raises UserError for a length beyond the model's window.
    """
    length, window = recipe.text.max_length, loaded.window
    if length is not None and length > window:
        raise UserError(f"text.max_length: got {length}", f"the model's window holds {window} tokens")
    return length or int(loaded.usual_length)


def build_tokenization(recipe: Recipe, loaded: TextModel) -> Tokenization:
    """How the recipe's texts become tokens, by its chat template where it has one.

    Raises UserError for a length beyond the model's window, and a template that cannot be read.
    """
    text = recipe.text
    length = length_of(recipe, loaded)
    set_chat_template(recipe, loaded.tokenizer)
    return Tokenization(
        loaded.tokenizer,
        length,
        max_completion_length=text.max_completion_length,
        vocab_size=rows_of(loaded.transformer),
    )


@dataclass(frozen=True, slots=True)
class FrozenReference:
    """A reference, the hash of its weights, and the bytes that it takes besides the policy."""

    give: Reference
    weights_hash: str
    num_bytes: int = 0

    def released(self) -> FrozenReference:
        """The same without the model itself, for when all of its answers are kept."""
        return FrozenReference(_itself, self.weights_hash)


def _itself(policy: nn.Module) -> AbstractContextManager[nn.Module]:
    return nullcontext(policy)


def build_reference(recipe: Recipe, loaded: TextModel, base_hash: str, device: torch.device) -> FrozenReference | None:
    """What the policy is compared with; None for objectives that know no reference. Raises as ``frozen_reference``."""
    return frozen_reference(recipe, loaded, base_hash, device) if needs_reference(recipe.objective) else None


def frozen_reference(recipe: Recipe, loaded: TextModel, base_hash: str, device: torch.device) -> FrozenReference:
    """The recipe's reference: another model, the adapters switched off, or a copy.

    With cached values the whole model need not be copied: it is asked before the first update, while it is the reference.
    Raises UserError for a reference with another vocabulary.
    """
    model = recipe.model
    if model.reference_model_name_or_path is not None:
        other = load_model(recipe, model.reference_model_name_or_path, device)
        if other.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
            problem = f"{model.reference_model_name_or_path}: its tokenizer has another vocabulary than the policy's"
            raise UserError(problem, "a reference must read the policy's tokens: use a model of the same tokenizer")
        size = weight_bytes(other.network.parameters())
        return FrozenReference(FrozenModel(other.network), other.model_hash(), size)
    if model.tuning == "lora":
        return FrozenReference(AdaptersOff(), base_hash)
    if recipe.text.cache_reference:
        return FrozenReference(_itself, base_hash)
    size = weight_bytes(loaded.network.parameters())
    return FrozenReference(FrozenCopy(loaded.network), base_hash, size)


def build_likelihood(recipe: Recipe, device: torch.device) -> TokenLikelihood:
    """log p(completion | prompt) as the recipe says."""
    return TokenLikelihood(device, share_prompt=recipe.text.share_prompt, tail_weight=recipe.text.tail_weight)


def build_reference_cache(
    recipe: Recipe,
    reference: FrozenReference,
    likelihood: TokenLikelihood,
    network: nn.Module,
    accelerator: Accelerator,
) -> ReferenceLogps:
    """The reference's log-probabilities on disk; the namespace holds all that they depend on but the tokens."""
    namespace: dict[str, str | int | float] = {
        "reference": reference.weights_hash,
        "tail_weight": recipe.text.tail_weight,
        "share_prompt": int(recipe.text.share_prompt),
        "dtype": recipe.model.dtype,
        "mixed_precision": recipe.training.mixed_precision,
    }

    def compute(batch: TextBatch) -> Tensor:
        with torch.no_grad(), accelerator.autocast(), reference.give(network) as frozen:
            return likelihood.logps(frozen, likelihood.prepare(batch))

    root = Path(recipe.data.cache_dir).expanduser()
    return ReferenceLogps(
        TensorCache(root / "reference_logps", namespace, parts=("logps",)), compute, accelerator.device
    )


def build_step(
    recipe: Recipe,
    likelihood: TokenLikelihood,
    reference: FrozenReference | None,
    cached: ReferenceLogps | None,
    base_hash: str,
    accelerator: Accelerator,
) -> Any:
    """The step of the recipe's objective."""
    objective = objective_row(recipe.objective["name"])
    # Where the reference's answers are kept, the step never asks it, and must not keep it in memory.
    asked = reference.released() if reference is not None and cached is not None else reference
    parts = StepParts(
        likelihood=likelihood,
        reference=None if asked is None else asked.give,
        objective=objective,
        settings={key: value for key, value in recipe.objective.items() if key != "name"},
        soft_labels=recipe.data.soft_labels,
        weighted=recipe.data.prompt_weights,
        autocast=accelerator.autocast,
        unwrap=accelerator.unwrap_model,
        reference_logps=cached,
        starts_at_reference=reference is not None and reference.weights_hash == base_hash,
        # A sum that counts tails less says nothing a token: what is known of held-out texts is measured apart then.
        pair_figures=token_metrics if recipe.text.tail_weight == 1 else lambda logps: {},
    )
    return PointwiseStep(parts) if objective.learns_from == "chosen" else PreferenceStep.of(parts)


@dataclass(frozen=True)
class Rotated:
    """Labelled completions, each prompt beside a completion of the next other prompt of the index, around its end.

    Which one that is depends on the index alone, not on passes. Where all prompts are one, it is the next completion's.
    """

    index: TokenIndex

    @cached_property
    def partners(self) -> Sequence[int]:
        """Of each example, the number of the one whose completion its prompt meets."""
        prompts = [each.chosen.ids[: each.chosen.prompt_length].tobytes() for each in self.index.examples]
        number = len(prompts)
        found = [(place + 1) % number for place in range(number)]
        if len(set(prompts)) == 1:
            return found
        following = next(place for place in range(number) if prompts[place] != prompts[-1])
        for place in reversed(range(number)):
            after = found[place]
            following = after if prompts[after] != prompts[place] else following
            found[place] = following
        return found

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, indices: Sequence[int], draw: int) -> UnpairedBatch:
        """The completions at ``indices``."""
        return self.index.unpaired(indices, [self.partners[index] for index in indices], draw)


def lengths_of(index: TokenIndex, *, share_prompt: bool) -> list[int]:
    """Tokens that each example takes in a pass: both sides of a pair, padded to the longer one."""

    def length(example: TokenExample) -> int:
        if example.rejected is None:
            return len(example.chosen)
        if share_prompt:
            return len(example.chosen) + len(example.rejected) - example.chosen.prompt_length
        return 2 * example.length

    return [length(example) for example in index.examples]


def budget_of(recipe: Recipe, lengths: Sequence[int]) -> int:
    """Tokens of one pass: ``train_batch_size`` examples as long as the longest, unless the recipe gives a number."""
    return recipe.text.max_tokens_per_pass or recipe.training.train_batch_size * max(lengths)


def passes_of(indices: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """``indices`` in passes of like lengths."""
    by_length = sorted(indices, key=lambda index: (-lengths[index], index))
    return under_budget(by_length, lengths, max_tokens)


def num_tokens(index: TokenIndex, order: PairOrder, steps: int) -> list[int]:
    """Tokens seen up to each of the first ``steps`` updates, that one included, padding not counted."""
    sizes = [len(each.chosen) + (len(each.rejected) if each.rejected is not None else 0) for each in index.examples]
    per_step = [sum(sizes[i] for i in order.indices(step)) for step in range(steps)]
    return [int(total) for total in np.cumsum(per_step)]


def names_of_texts(train: TokenIndex, tokenizer: Tokenizer) -> Callable[[str], str]:
    """The pair of an id by the words that it begins with, for a message: its row is not kept."""

    def name(pair_id: str) -> str:
        example = next(each for each in train.examples if each.pair_id == pair_id)
        return f"pair {pair_id}, {quote(tokenizer.decode(example.chosen.ids[:64].tolist(), skip_special_tokens=True))}"

    return name


def describe_tokens(index: TokenIndex, budget: int, lengths: Sequence[int], tokenization: Tokenization) -> list[str]:
    """Lines on lengths, passes (``lengths`` are what examples take in one), and what was cut."""
    longest = max(example.length for example in index.examples)
    mean = sum(example.length for example in index.examples) / len(index)
    most = max(budget, *lengths)  # an example that is longer than the budget is a pass alone
    lines = [f"tokens           {longest:,} in the longest example, {mean:.0f} on average; {most:,} a pass at most"]
    return [*lines, *(f"note             {note}" for note in tokenization.counts.notes())]
