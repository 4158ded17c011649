"""Folders and hub ids of transformers' models that people bring: their models, adapters and tokenizers.

One place for whatever reads texts, language models and judges alike. Code that a folder holds never runs, a path that is not
there is never requested from the hub, and every failure is one UserError.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from transformers import AutoConfig, AutoTokenizer

from .errors import UserError
from .folders import expand
from .foreign import is_hub_id, reading
from .quiet import quiet
from .types.models import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_ADAPTER = "adapter_config.json"
_TOKENIZER = (
    "give a folder with tokenizer.json, tokenizer.model or vocab.txt, as the model was trained with, or a hub id"
)
# Files that hold a vocabulary; without one transformers makes up a tokenizer of its own.
_VOCABULARY = re.compile(
    r"tokenizer\.json|tekken\.json|merges\.txt|spm_char\.model|.*\.(model|tiktoken|spm|bpe)|.*vocab.*"
)
# Longest sequence by the names that architectures have for it.
_POSITIONS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_sequence_length", "max_target_positions",
    "context_length",
)  # fmt: skip
NO_LIMIT = 10**9  # tokenizers and models without a limit of their own


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, what transformers said of its weights, and whether an adapter is merged into them."""

    model: PreTrainedModel
    missing: frozenset[str]
    unexpected: frozenset[str]
    is_merged: bool


def located(path: str, what: str, remedy: str) -> str:
    """``path`` with ~ resolved. Raises UserError where it is neither a folder with a ``what`` nor a possible hub id."""
    folder = expand(path)
    if not folder.exists():
        if is_hub_id(path):
            return path
        raise UserError(f"{path}: no such folder", f"check the path, or {remedy}")
    if not folder.is_dir():
        raise UserError(f"{path}: a file, and not the folder of {what}", remedy)
    if not any((folder / name).is_file() for name in ("config.json", _ADAPTER)):
        is_pipeline = (folder / "model_index.json").is_file()
        fault = "is a diffusers pipeline" if is_pipeline else "has no config.json"
        raise UserError(f"{path}: not {what}, it {fault}", remedy)
    return str(folder)


def _place(path: str) -> str:
    """What transformers is given: a folder here with ~ resolved, or the name of a hub id."""
    folder = expand(path)
    return str(folder) if folder.is_dir() else path


def is_adapter(path: str) -> bool:
    """Whether ``path`` is the folder of an adapter."""
    return (expand(path) / _ADAPTER).is_file()


def load_tokenizer(path: str, *, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a folder or hub id. Raises UserError where there is none, or it needs code of its own."""
    folder = expand(path)
    if folder.is_dir():
        if not any(_VOCABULARY.fullmatch(file.name) for file in folder.iterdir()):
            raise UserError(f"{path}: holds no tokenizer, no file with a vocabulary", _TOKENIZER)
    elif not is_hub_id(path):
        raise UserError(f"{path}: {'a file, and not a folder' if folder.exists() else 'no such folder'}", _TOKENIZER)
    with quiet(), _explained(path, "a tokenizer", _TOKENIZER, "tokenizer_config.json"):
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(_place(path), revision=revision, trust_remote_code=False)
        words = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
        # transformers makes up an empty vocabulary where it finds none.
        if not words or not tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]:
            raise UserError(f"{path}: its tokenizer knows no words: files of its vocabulary are missing", _TOKENIZER)
        return tokenizer


def load_network(
    path: str,
    auto: type[PreTrainedModel],
    what: str,
    remedy: str,
    *,
    revision: str | None = None,
    is_trained: bool = True,
    lora_scale: float = 1.0,
    **settings: object,
) -> LoadedModel:
    """The model at ``path`` by the auto class ``auto``; ``settings`` go to its ``from_pretrained``. An adapter counts in, times
    ``lora_scale``.

    Raises UserError, which ends in ``remedy``, where it is no ``what``, needs code of its own, or is quantised and
    ``is_trained`` or not to be read without another library.
    """
    with quiet(), _explained(path, what, remedy, "config.json"):
        if is_adapter(path):
            return _adapted(path, auto, what, remedy, settings, is_trained=is_trained, scale=lora_scale)
        model, notes = auto.from_pretrained(
            _place(path), revision=revision, output_loading_info=True, trust_remote_code=False, **settings
        )
        is_quantised = bool(getattr(model, "is_quantized", False))
        # A way of quantising that transformers does not know leaves its mark in the config, and weights without their scales.
        if (is_quantised and is_trained) or (not is_quantised and getattr(model.config, "quantization_config", None)):
            raise UserError(f"{path}: {_quantisation(path) or 'its weights are quantised'}", _WHOLE_WEIGHTS)
        return LoadedModel(model, frozenset(notes["missing_keys"]), frozenset(notes["unexpected_keys"]), False)


def load_config(path: str, what: str, remedy: str, *, revision: str | None = None) -> PreTrainedConfig:
    """transformers' configuration of the model at ``path``. Raises UserError as ``load_network``."""
    with quiet(), _explained(path, what, remedy, "config.json"):
        return AutoConfig.from_pretrained(_place(path), revision=revision, trust_remote_code=False)


def adapter_config(path: str) -> PeftConfig:
    """peft's configuration of the adapter in the folder ``path``. Raises UserError for a damaged one."""
    with _explained(path, "an adapter", "give the folder that the adapter was saved in, whole", _ADAPTER):
        return PeftConfig.from_pretrained(str(expand(path)))


def scaled_adapter(path: str, scale: float) -> PeftConfig:
    """``adapter_config`` of an adapter that adds ``scale`` times as much. Raises UserError for one that cannot be scaled."""
    config = adapter_config(path)
    if scale == 1:
        return config
    whole = ", ".join(getattr(config, "modules_to_save", None) or ())
    if config.peft_type.value != "LORA" or whole:
        what = f"{whole} was trained whole" if whole else f"an adapter of kind {config.peft_type.value}"
        raise UserError(f"`lora_scale`: means nothing for {path}, where {what}", "leave it out")
    return scale_adapter(config, scale)


def scale_adapter(config: PeftConfig, scale: float) -> PeftConfig:
    """The LoRA's ``config``, changed so that it adds ``scale`` times as much."""
    if scale != 1:
        config.lora_alpha *= scale
        config.alpha_pattern = {layer: alpha * scale for layer, alpha in config.alpha_pattern.items()}
    return config


def base_of(path: str, config: PeftConfig) -> str:
    """The base of the adapter in ``path``: a folder on this disk, or a hub id.

    A relative path is looked up from here, then from the adapter's folder. Raises UserError where it is neither.
    """
    base = config.base_model_name_or_path
    if not base:
        raise UserError(f"{path}: {_ADAPTER} names no base", f"set base_model_name_or_path in {_ADAPTER}")
    for folder in (Path(base).expanduser(), expand(path) / base):
        if folder.is_dir():
            return str(folder)
    if is_hub_id(base):
        return str(base)
    problem = f"{path}: the adapter's base {base!r} ({_ADAPTER}, base_model_name_or_path) is not there"
    raise UserError(problem, "put the base there, or write the path where it lies into that key")


def _adapted(
    path: str,
    auto: type[PreTrainedModel],
    what: str,
    remedy: str,
    settings: dict[str, object],
    *,
    is_trained: bool,
    scale: float,
) -> LoadedModel:
    """The base of an adapter with the adapter: merged in where it ``is_trained`` further, else beside weights that others
    may share. All of the adapter's weights must have found a place.
    """
    config = scaled_adapter(path, scale)
    base = located(base_of(path, config), f"the base of {path}", f"see base_model_name_or_path in {_ADAPTER}")
    if is_adapter(base):
        raise UserError(f"{path}: its base {base} is an adapter itself", "merge that one into its own base first")
    folder = expand(path)
    if not any((folder / name).is_file() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        raise UserError(f"{path}: the adapter's weights are not there ({SAFETENSORS_WEIGHTS_NAME})", _WHOLE_ADAPTER)
    loaded = load_network(base, auto, what, remedy, revision=config.revision, is_trained=is_trained, **settings)  # type: ignore[arg-type]
    wrap = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
    config.inference_mode = True
    adapted = wrap(loaded.model, config)
    notes = adapted.load_adapter(str(folder), "default", torch_device="cpu")
    odd = sorted(notes.missing_keys) or sorted(notes.unexpected_keys)
    if odd:
        kind = "are missing" if notes.missing_keys else "have no place in its base"
        raise UserError(f"{path}: {len(odd)} weights of the adapter {kind}, the first is {odd[0]!r}", _WHOLE_ADAPTER)
    whole = {key for key in loaded.missing if not any(_ends(key, name) for name in config.modules_to_save or ())}
    if not isinstance(adapted.base_model, BaseTuner):
        raise UserError(
            f"{path}: an adapter of kind {config.peft_type.value}, whose layers are no part of the model", remedy
        )
    if not is_trained:
        return LoadedModel(adapted.get_base_model(), frozenset(whole), loaded.unexpected, False)
    with warnings.catch_warnings():
        # Adapters on an embedding and on the head that is one tensor with it would be merged into it twice.
        warnings.filterwarnings("error", message=".*tie_word_embeddings=True", category=UserWarning)
        model = adapted.merge_and_unload()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:  # trained apart: a copy that ties them would lose one
        text_config_of(model.config).tie_word_embeddings = model.config.tie_word_embeddings = False
    return LoadedModel(model, frozenset(whole), loaded.unexpected, True)


def _ends(key: str, module: str) -> bool:
    return f".{key}".rpartition(".")[0].endswith(f".{module}")


_WHOLE_ADAPTER = "use the base that the adapter was trained on, and copy the adapter's folder whole"
_WHOLE_WEIGHTS = "use the model that it was made from, in bf16, fp16 or fp32: quantised weights are not trained here"
_CODE = "use a model of an architecture that transformers has: code that comes with a folder never runs here"


@contextmanager
def _explained(path: str, what: str, remedy: str, config_name: str) -> Iterator[None]:
    """Failures to read ``path`` as one UserError, which says so where the cause is quantisation or code in the folder."""
    try:
        with reading(path, what, remedy):
            yield
    except UserError as error:
        if isinstance(error.__cause__, Exception):
            if (quantisation := _quantisation(path)) is not None:
                raise UserError(f"{path}: {quantisation}", _WHOLE_WEIGHTS) from error
            if "trust_remote_code" in str(error.__cause__) or "auto_map" in _json(path, config_name):
                raise UserError(
                    f"{path}: {what} that needs code of its own ({config_name}, auto_map)", _CODE
                ) from error
        raise


def _quantisation(path: str) -> str | None:
    """What the folder's config.json says of quantised weights; None where it says nothing."""
    quantisation = _json(path, "config.json").get("quantization_config")
    if not isinstance(quantisation, dict):
        return None
    method = quantisation.get("quant_method", "an unnamed method")
    bits = quantisation.get("bits") or (
        4 if quantisation.get("load_in_4bit") else 8 if quantisation.get("load_in_8bit") else None
    )
    return f"its weights are quantised ({method}{f', {bits} bit' if bits else ''}; quantization_config in config.json)"


def _json(path: str, name: str) -> dict[str, Any]:
    try:
        content = json.loads((expand(path) / name).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def rows_of(model: PreTrainedModel) -> int:
    """How many tokens ``model`` has an embedding for."""
    return int(model.get_input_embeddings().weight.shape[0])


def check_vocabulary(path: str, tokenizer: Tokenizer, model: PreTrainedModel) -> None:
    """Raise UserError where ``tokenizer`` gives ids that ``model`` has no embedding for.

    Added tokens may be beyond it, as Gemma 3's for images are: a text that uses one is refused.
    """
    known = rows_of(model)
    added = getattr(tokenizer, "added_tokens_decoder", {})
    largest = max((number for number in tokenizer.get_vocab().values() if number not in added), default=-1)
    if largest >= known:
        problem = f"{path}: the tokenizer's ids go to {largest}, the model knows {known} tokens"
        raise UserError(problem, "use the tokenizer that the model was trained with")


def unknown_tokens(tokenizer: Tokenizer, model: PreTrainedModel) -> list[str]:
    """The tokens of ``tokenizer`` that ``model`` has no embedding for, in the order of their ids."""
    known = rows_of(model)
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= known}
    return [beyond[number] for number in sorted(beyond)]


def text_config_of(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a model's ``config`` that is about texts; the whole of it where it is about nothing else."""
    return config if config.is_encoder_decoder else config.get_text_config(decoder=True)


def positions_of(config: PreTrainedConfig) -> int:
    """Longest sequence that a model of ``config`` holds, in tokens; ``NO_LIMIT`` where it states none."""
    text = text_config_of(config)
    stated = (getattr(text, name, None) for name in _POSITIONS)
    return next((int(value) for value in stated if isinstance(value, int) and value > 0), NO_LIMIT)
