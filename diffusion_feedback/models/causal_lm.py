"""Language models (transformers' causal LMs): hidden states and head apart, loading, counted sampling, saving."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..errors import UserError, first_line
from .latent_diffusion import check_finite, weights_hash
from .lora import save_transformer
from .quiet import quiet
from .text_sampling import complete

Read = Callable[[Tensor, nn.Module], Any]
"""Takes hidden states (B, T, H) after the last norm, and the output head; what it returns, the forward pass returns."""

_NOISE = re.compile("dropout|layerdrop|drop_prob|pdrop|jitter")  # names of rates of noise in transformers' models
_FOLDER = "give a folder that save_pretrained wrote for a causal language model, its adapter folder, or a hub id"


class LanguageModel(nn.Module):
    """A transformers causal LM whose output head is called by the reader, so that only what is asked is projected."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, read: Read) -> Any:
        """Ids and positions (B, T), mask (B, T) or (B, 1, T, T) bool, to what ``read`` makes of the hidden states."""
        trunk = self.model.base_model
        hidden = trunk(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            return_dict=True,
        ).last_hidden_state
        return read(hidden, self.model.get_output_embeddings())


@dataclass(frozen=True, slots=True)
class CausalLM:
    """A language model with its tokenizer; ``network`` is what is trained.

    ``is_merged``: it was read from an adapter's folder, whose adapter now is part of its weights.
    """

    network: LanguageModel
    tokenizer: Any
    is_merged: bool = False

    @property
    def window(self) -> int:
        """Longest sequence, prompt and completion, in tokens."""
        return window_of(self.network.model.config, self.tokenizer)

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion: the tokenizer's own end token first, then those of the generation settings."""
        stated = self.network.model.generation_config.eos_token_id
        found = [self.tokenizer.eos_token_id, *(stated if isinstance(stated, list) else [stated])]
        vocabulary = self.network.model.config.vocab_size
        return tuple(dict.fromkeys(token for token in found if token is not None and token < vocabulary))

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass."""
        enable_checkpointing(self.network.model)

    def model_hash(self) -> str:
        """Identity of weights, configuration and vocabulary."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return weights_hash(self.network.model, settings=str([vocabulary, self.tokenizer.chat_template]))

    def sample(
        self,
        network: LanguageModel,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        processors: Sequence[Callable[[Tensor, Tensor], Tensor]] = (),
    ) -> list[list[int]]:
        """One completion (token ids, the end token included where it was drawn) a prompt and seed, in one batch.

        Each depends on its own prompt and seed alone, up to rounding. ``temperature`` 0 takes the likeliest token;
        ``top_k`` 0 and ``top_p`` 1 leave all tokens in. ``processors`` change the scores (N, V) before that. Raises
        UserError for a prompt without tokens, and for one that leaves no room for a token.
        """
        model = network.model
        for number, prompt in enumerate(prompts):
            if not 0 < len(prompt) < self.window:
                problem = f"prompt {number}: {len(prompt)} tokens, the model's window holds {self.window}"
                raise UserError(problem, "prompts need at least one token, and leave room for one more")
        room = self.window - max(map(len, prompts), default=0)
        return complete(
            model,
            prompts,
            seeds,
            max_new_tokens=min(max_new_tokens, room),
            end_ids=self.end_token_ids,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            processors=processors,
        )

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write weights (or adapters) and tokenizer as plain transformers and peft load them.

        Adapters over a model that was merged itself are merged too: alone they would go with a base that is nowhere.
        """
        assert isinstance(network, LanguageModel)
        with quiet():
            save_transformer(network.model, folder, is_merged=self.is_merged)
            self.tokenizer.save_pretrained(folder)


def window_of(config: Any, tokenizer: Any) -> int:
    """Longest sequence that both model and tokenizer know, in tokens."""
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(min(positions or 10**9, tokenizer.model_max_length))


def enable_checkpointing(model: Any) -> None:
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
        for config in {id(found): found for module in modules if (found := getattr(module, "config", None))}.values():
            _silence(config)
        if not _repeats(model):
            problem = f"{path}: two training passes of a {type(model).__name__} on the same tokens differ"
            raise UserError(problem, "use a model without noise of its own")


def _silence(holder: Any) -> None:
    for name, value in list(vars(holder).items()):
        if isinstance(value, float) and _NOISE.search(name):
            setattr(holder, name, 0.0)


@torch.no_grad()
def _repeats(model: Any) -> bool:
    was_training = model.training
    ids = torch.arange(min(16, model.config.get_text_config().vocab_size))[None]
    model.train()
    with torch.random.fork_rng(devices=[]):
        first, second = (model(input_ids=ids, use_cache=False).logits for _ in range(2))
    model.train(was_training)
    return bool(torch.equal(first, second))


def load_tokenizer(path: str, *, revision: str | None = None) -> Any:
    """The tokenizer of a folder or hub id. Raises UserError where there is none."""
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{path}: no tokenizer could be loaded: {first_line(error)}"
        raise UserError(problem, "give a folder with tokenizer.json, or a hub id") from error


def check_path(path: str) -> None:
    """Raise UserError for a local path without a transformers model or an adapter."""
    folder = Path(path)
    if folder.exists() and not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        is_pipeline = (folder / "model_index.json").is_file()
        what = "is a diffusers pipeline" if is_pipeline else "has no config.json"
        raise UserError(f"{path}: not a language model, it {what}", _FOLDER)
    if not folder.exists() and (path.count("/") > 1 or path.startswith((".", "/"))):
        raise UserError(f"{path}: no such folder", "check model.pretrained_model_name_or_path")


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
    tokenizer with more tokens than the model, and models whose logits are not their head's output (soft caps, scales).
    """
    check_path(path)
    try:
        with quiet():
            if is_adapter(path):
                model, missing = AutoPeftModelForCausalLM.from_pretrained(path, dtype=dtype).merge_and_unload(), set()
            else:
                model, found = AutoModelForCausalLM.from_pretrained(
                    path, revision=revision, variant=variant, dtype=dtype, output_loading_info=True
                )
                missing = set(found["missing_keys"])
                if "score.weight" in found["unexpected_keys"]:
                    raise UserError(f"{path}: a reward model or classifier, which writes no texts", _FOLDER)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(f"{path}: could not be loaded as a language model: {first_line(error)}", _FOLDER) from error
    tokenizer = load_tokenizer(path, revision=revision)
    if missing:
        raise UserError(f"{path}: {len(missing)} weights are missing, the first is {min(missing)!r}", _FOLDER)
    check_vocabulary(path, tokenizer, model)
    prepare(model, path, device)
    _check_head(model, path)
    return CausalLM(LanguageModel(model), tokenizer, is_merged=is_adapter(path))


def is_adapter(path: str) -> bool:
    """Whether ``path`` is the folder of an adapter."""
    return (Path(path) / "adapter_config.json").is_file()


def check_vocabulary(path: str, tokenizer: Any, model: Any) -> None:
    """Raise UserError where ``tokenizer`` gives ids that ``model`` has no embedding for."""
    largest, known = max(tokenizer.get_vocab().values(), default=-1), model.get_input_embeddings().num_embeddings
    if largest >= known:
        problem = f"{path}: the tokenizer's ids go to {largest}, the model knows {known} tokens"
        raise UserError(problem, "use the tokenizer that the model was trained with")


def prepare(model: Any, path: str, device: torch.device | str) -> None:
    """Freeze ``model``, in eval mode, without dropout, on ``device``. Raises UserError for damaged weights."""
    check_finite(model, path)
    no_dropout(model, path)
    model.requires_grad_(False).eval()
    try:
        model.to(device)
    except (AssertionError, RuntimeError) as error:  # torch's two ways to say that there is no such device
        raise UserError(f"device {device}: {first_line(error)}", "use another device") from error


@torch.no_grad()
def _check_head(model: Any, path: str) -> None:
    # Several tokens, since the embedding of a padding token may be zero.
    ids = torch.arange(min(16, model.config.vocab_size), device=model.device)[None]
    hidden = model.base_model(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state
    if not torch.allclose(
        model.get_output_embeddings()(hidden).float(), model(ids).logits.float(), atol=1e-4, rtol=1e-4
    ):
        problem = f"{path}: the logits of a {type(model).__name__} are not its output head's (a soft cap, or a scale)"
        raise UserError(
            problem, "use a model whose logits are the head's output, such as Llama, Qwen, Mistral or GPT-2"
        )
