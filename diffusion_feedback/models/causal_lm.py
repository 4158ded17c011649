"""Language models (transformers' causal LMs): hidden states and head apart, loading, counted sampling, saving."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import TaskType
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..errors import UserError, first_line
from ..foreign import reading
from ..quiet import quiet
from ..text_folders import (
    NO_LIMIT,
    adapter_config,
    check_vocabulary,
    is_adapter,
    load_network,
    load_tokenizer,
    located,
    positions_of,
    rows_of,
)
from ..types.models import Tokenizer, TokenProcessor
from ..weights import check_complete, check_finite, modules_hash, move
from .end_tokens import closing_token_id
from .lora import save_transformer
from .lora_targets import add_adapters
from .output_heads import check_logits, head_of, hidden_states, trunk_of
from .saving import ADAPTER_FILES, TOKENIZER_FILES, TRANSFORMER_FILES, saving
from .text_sampling import sample_tokens

Read = Callable[[Tensor, nn.Module], Any]
"""Takes hidden states (B, T, H) after the last norm, and the output head; what it returns, the forward pass returns."""

_NOISE = re.compile("dropout|layerdrop|drop_prob|pdrop|jitter")  # names of rates of noise in transformers' models
_WHAT = "a language model"
_FOLDER = "give a folder that save_pretrained wrote for a causal language model, its adapter folder, or a hub id"


class LanguageModel(nn.Module):
    """A transformers causal LM whose output head is called by the reader, so that only what is requested is projected."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, read: Read) -> object:
        """Ids and positions (B, T), mask (B, T) or (B, 1, T, T) bool, to what ``read`` makes of the hidden states."""
        hidden = hidden_states(self.model, input_ids, attention_mask, position_ids)
        return read(hidden, head_of(self.model))


@dataclass(frozen=True, slots=True)
class CausalLM:
    """A language model with its tokenizer; ``network`` is what is trained.

    ``is_merged``: it was read from an adapter's folder, whose adapter now is part of its weights.
    """

    network: LanguageModel
    tokenizer: Tokenizer
    is_merged: bool = False

    @property
    def library_model(self) -> PreTrainedModel:
        """The object of its library that all this is made of."""
        return self.network.model

    def trained_parts(self) -> list[nn.Module]:
        """What full tuning trains: of a multimodal model the part for texts and the output head."""
        trunk = trunk_of(self.library_model)
        return (
            [self.library_model]
            if trunk is self.library_model.base_model
            else [trunk, self.library_model.get_output_embeddings()]
        )

    def add_adapters(
        self,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str],
        seed: int,
        modules_to_save: Sequence[str] = (),
        revision: str | None = None,
    ) -> list[str]:
        """Adapters over the frozen model, and modules trained whole beside them; says in words what is trained."""
        return add_adapters(
            self.library_model,
            rank=rank,
            alpha=alpha,
            targets=targets,
            seed=seed,
            task_type=TaskType.CAUSAL_LM.value,
            heads=modules_to_save,
            revision=revision,
            is_merged=self.is_merged,
        )

    @property
    def window(self) -> int:
        """Longest sequence, prompt and completion, in tokens, that the model holds."""
        return window_of(self.network.model.config, self.tokenizer)

    @property
    def usual_length(self) -> int:
        """How long texts are when nobody says otherwise: as the tokenizer says, at most what the model holds."""
        return int(min(self.window, self.tokenizer.model_max_length))

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion: the tokenizer's own end token first, then those of the generation settings, then
        the one that closes the assistant's turn in the tokenizer's chat template.
        """
        stated = _stated_ends(self.network.model)
        candidates = [self.tokenizer.eos_token_id, *stated, closing_token_id(self.tokenizer)]
        known = rows_of(self.network.model)
        return tuple(dict.fromkeys(token for token in candidates if token is not None and token < known))

    @property
    def unsaid_end_token_ids(self) -> tuple[int, ...]:
        """The end tokens that the model's own generation settings do not name: other readers would run past them."""
        stated = _stated_ends(self.network.model)
        return tuple(token for token in self.end_token_ids if token not in stated)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass."""
        enable_checkpointing(self.network.model)

    def model_hash(self) -> str:
        """Identity of weights, configuration and vocabulary."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return modules_hash(self.network.model, settings=str([vocabulary, self.tokenizer.chat_template]))

    def sample(
        self,
        network: nn.Module,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        processors: Sequence[TokenProcessor] = (),
    ) -> list[list[int]]:
        """One completion (token ids, the end token included where it was drawn) a prompt and seed, in one batch.

        Each depends on its own prompt and seed alone, up to rounding. ``temperature`` 0 takes the likeliest token;
        ``top_k`` 0 and ``top_p`` 1 leave all tokens in. ``processors`` change the scores (N, V) before that. Raises
        UserError for a prompt without tokens, or of tokens that the model does not know, and for one that leaves no room
        for a token.
        """
        assert isinstance(network, LanguageModel)
        model = network.model
        for number, prompt in enumerate(prompts):
            if not 0 < len(prompt) < self.window:
                problem = f"prompt {number}: {len(prompt)} tokens, the model's window holds {self.window}"
                raise UserError(problem, "prompts need at least one token, and leave room for one more")
            if max(prompt) >= rows_of(model):
                problem = f"prompt {number}: token {max(prompt)} is beyond the model's {rows_of(model)} tokens"
                raise UserError(problem, "leave out the words of that token: the model was not trained on it")
        space = self.window - max(map(len, prompts), default=0)
        return sample_tokens(
            model,
            prompts,
            seeds,
            max_new_tokens=min(max_new_tokens, space),
            end_ids=self.end_token_ids,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            processors=processors,
        )

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write weights (or adapters) and tokenizer as plain transformers and peft load them.

        Adapters over a model that was merged itself are merged too: alone they would go with a base that is nowhere.
        Whatever ends a completion here is in the generation settings, so that it does with every reader of the folder.
        """
        assert isinstance(network, LanguageModel)
        settings = network.model.generation_config
        stated = settings.eos_token_id
        with quiet(), saving(folder) as beside:
            if self.unsaid_end_token_ids:
                settings.eos_token_id = list(self.end_token_ids)
            try:
                save_transformer(network.model, beside, is_merged=self.is_merged)
            finally:
                settings.eos_token_id = stated
            self.tokenizer.save_pretrained(beside)

    def written_files(self) -> tuple[str, ...]:
        """Patterns of what ``save`` may write."""
        return (*TRANSFORMER_FILES, *ADAPTER_FILES, *TOKENIZER_FILES)


def _stated_ends(model: PreTrainedModel) -> list[int | None]:
    stated = model.generation_config.eos_token_id
    return list(stated) if isinstance(stated, list) else [stated]


def window_of(config: PreTrainedConfig, tokenizer: Tokenizer) -> int:
    """Longest sequence that the model holds, in tokens; that of its tokenizer where the model states none."""
    positions = positions_of(config)
    return positions if positions < NO_LIMIT else int(min(positions, tokenizer.model_max_length))


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute the activations of ``model`` in the backward pass; frozen weights under adapters pass gradients on."""
    # transformers is changing the name.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.enable_input_require_grads()


def no_dropout(model: nn.Module, path: str) -> None:
    """Switch all dropout off: its draws could not be repeated, and policy and reference would differ.

    Rates that a module reads from its config are set there. Raises UserError for a model at ``path`` whose training
    passes differ all the same.
    """
    modules = list(model.modules())
    for module in modules:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        _silence(module)
    if not _repeats(model):
        configs = (getattr(module, "config", None) for module in modules)
        for config in {id(each): each for each in configs if each}.values():
            _silence(config)
        if not _repeats(model):
            problem = f"{path}: two training passes of a {type(model).__name__} on the same tokens differ"
            raise UserError(problem, "use a model without noise of its own")


def _silence(holder: object) -> None:
    for name, value in list(vars(holder).items()):
        if isinstance(value, float) and _NOISE.search(name):
            setattr(holder, name, 0.0)


@torch.no_grad()
def _repeats(model: PreTrainedModel) -> bool:
    was_training = model.training
    ids = torch.arange(min(16, rows_of(model)), device=model.device)[None]
    trunk = trunk_of(model)
    # The part for text alone of a multimodal model, which in training asks for images too.
    part = trunk if trunk is not model.base_model else model
    model.train()
    with torch.random.fork_rng(devices=[]):
        first, second = (part(input_ids=ids, use_cache=False, return_dict=True)[0] for _ in range(2))
    model.train(was_training)
    return bool(torch.equal(first, second))


def load(
    path: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> CausalLM:
    """Load a causal LM folder or hub id in ``dtype``, eval mode, frozen, without dropout; an adapter is merged.

    Raises UserError for a path that is neither, another kind of model, missing weights, weights that are not finite, a
    tokenizer with more tokens than the model, and models whose logits are not their head's output, scaled or soft capped.
    """
    located(path, _WHAT, _FOLDER)
    if is_adapter(path) and adapter_config(path).task_type == TaskType.SEQ_CLS:
        raise UserError(f"{path}: a reward model or classifier, which writes no texts", _FOLDER)
    with quiet():
        loaded = load_network(
            path, AutoModelForCausalLM, _WHAT, _FOLDER, revision=revision, variant=variant, dtype=dtype
        )
    model = loaded.model
    if "score.weight" in loaded.unexpected:
        raise UserError(f"{path}: a reward model or classifier, which writes no texts", _FOLDER)
    tokenizer = load_tokenizer(path, revision=revision)
    check_complete(path, loaded.missing, _FOLDER)
    return _checked(model, tokenizer, path, device, is_merged=loaded.is_merged)


def over(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> CausalLM:
    """The same of a transformers causal LM that is loaded already, whose weights are used themselves, in ``dtype``.

    It stays on its device unless another is given. Raises UserError as ``load``.
    """
    name = f"the {type(model).__name__}"
    return _checked(model.to(dtype), tokenizer, name, device if device is not None else model.device)


def _checked(
    model: PreTrainedModel, tokenizer: Tokenizer, path: str, device: torch.device | str, *, is_merged: bool = False
) -> CausalLM:
    check_vocabulary(path, tokenizer, model)
    with reading(path, _WHAT, _FOLDER):  # models that take other inputs than tokens fail each in its own way
        prepare(model, path, device)
        check_logits(model, path)
    language_model = CausalLM(LanguageModel(model), tokenizer, is_merged=is_merged)
    if language_model.unsaid_end_token_ids:
        _check_generation(model, path)
    return language_model


def _check_generation(model: PreTrainedModel, path: str) -> None:
    """Settings that transformers does not save once they are changed would stop a run at its very end."""
    try:
        model.generation_config.validate(strict=True)
    except ValueError as error:
        problem = f"{path}: generation_config.json cannot be saved with a result: {first_line(error)}"
        raise UserError(
            problem, 'correct that file (often: set "do_sample": true beside temperature and top_p)'
        ) from error


def prepare(model: PreTrainedModel, path: str, device: torch.device | str) -> None:
    """Freeze ``model``, in eval mode, without dropout, on ``device``. Raises UserError for damaged weights."""
    check_finite(model, path)
    no_dropout(model, path)
    model.requires_grad_(False).eval()
    move(model, device)
