"""Where a language model's hidden states come from, and how its logits are made of them: read from its config, and checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import UserError
from ..text_folders import rows_of, text_config_of
from ..types.heads import ShapedHead

# Keys of configs by which logits are capped (cap tanh(z / cap)), multiplied and divided after the head.
_CAPS = ("final_logit_softcapping", "logits_soft_cap")
_FACTORS = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling",)
# The check lets logits be this large: every cap and offset that there is shows there.
_LOUD = 300.0


def trunk_of(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a transformers ``model`` that makes hidden states of tokens: of a multimodal one, the part for text."""
    is_nested = text_config_of(model.config) is not model.config
    if not is_nested and model.base_model is not model:
        return model.base_model
    decoder = model.get_decoder()
    return decoder if decoder is not model else model.model  # Llama 4 for texts alone names no base


def hidden_states(model: PreTrainedModel, input_ids: Tensor, **seen: Tensor) -> Tensor:
    """States (B, T, H) after the last norm of ids (B, T).

    ``seen``: attention_mask (B, T) or (B, 1, T, T) bool, and position_ids (B, T), where they are not the usual ones.
    """
    hidden: Tensor = trunk_of(model)(input_ids=input_ids, use_cache=False, return_dict=True, **seen).last_hidden_state
    return hidden


def logit_shape(model: PreTrainedModel) -> tuple[float, float | None]:
    """Scale and cap of the logits of ``model``, as ``types.ShapedHead`` takes them, from its config."""
    config = text_config_of(model.config)
    scale = 1.0
    for name in _FACTORS:
        scale *= _number(config, name) or 1.0
    for name in _DIVISORS:
        scale /= _number(config, name) or 1.0
    return scale, next((cap for name in _CAPS if (cap := _number(config, name)) is not None), None)


def _number(config: PreTrainedConfig, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def head_of(model: PreTrainedModel) -> nn.Module:
    """The output head of ``model``: hidden states (..., H) to the logits that the model gives."""
    head: nn.Module = model.get_output_embeddings()
    scale, cap = logit_shape(model)
    return head if scale == 1.0 and cap is None else ShapedHead(head, scale=scale, cap=cap)


@contextmanager
def uncapped(model: PreTrainedModel) -> Iterator[None]:
    """``model`` gives its logits without their cap for the length of the ``with`` block."""
    config = text_config_of(model.config)
    kept = {name: getattr(config, name) for name in _CAPS if _number(config, name) is not None}
    for name in kept:
        setattr(config, name, None)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(config, name, value)


@torch.no_grad()
def check_logits(model: PreTrainedModel, path: str) -> None:
    """Raise UserError where ``model`` from ``path`` sees tokens to come, or its logits are not what ``head_of`` gives.

    Logits are compared as they are, and with hidden states so large that a cap would show, however small they are
    in a model that has just been drawn.
    """
    ids = torch.arange(min(16, rows_of(model)), device=model.device)[None]  # the embedding of one alone may be zero
    hidden = hidden_states(model, ids)
    changed = torch.cat([ids[:, :-1], ids[:, :1]], 1)
    if not _alike(hidden_states(model, changed)[:, :-1], hidden[:, :-1]):
        problem = f"{path}: a {type(model).__name__} whose tokens see those that follow, which predicts nothing"
        raise UserError(problem, "give a causal language model, such as Llama, Qwen, Mistral, Gemma or GPT-2")
    head = model.get_output_embeddings()
    if head is None:
        raise UserError(f"{path}: a {type(model).__name__} without an output head", "give a causal language model")
    size, length = (float(values.abs().max()) for values in (head(hidden), hidden))
    loud = max(1.0, min(_LOUD / size, 1e4 / length)) if size and length else 1.0
    for gain in (1.0, loud):
        with _gained(head, gain, hidden) as same:
            expected = model(input_ids=ids, use_cache=False).logits
        if not all(same) or not _alike(head_of(model)(hidden * gain), expected):
            problem = (
                f"{path}: the logits of a {type(model).__name__} are not its output head's, by a rule unknown here"
            )
            remedy = "use a model whose logits are the head's output, capped or scaled, such as Llama, Qwen or Gemma"
            raise UserError(problem, remedy)


@contextmanager
def _gained(head: nn.Module, gain: float, hidden: Tensor) -> Iterator[list[bool]]:
    """``head`` sees its input times ``gain``; the list tells of each call whether that input was ``hidden``."""
    same: list[bool] = []

    def louder(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        same.append(_alike(inputs[0], hidden))
        return (inputs[0] * gain, *inputs[1:])

    handle = head.register_forward_pre_hook(louder)
    try:
        yield same
    finally:
        handle.remove()


def _alike(own: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-4 if expected.dtype.itemsize > 2 else 3e-2
    gap = (own.float() - expected.float()).abs().max()
    return bool(gap <= tolerance * expected.float().abs().max())
