"""CLIP's two towers behind one interface, from a transformers folder or an open_clip checkpoint; each loaded once."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from ..errors import UserError, first_line
from ..records import content_hash, parse_json
from ..types import Scores
from .checkpoints import fill, read_checkpoint, weights_hash
from .scorer import Towers
from .views import CropView, crop_view

VOCABULARY = 49_408
"""Size of OpenAI's byte-pair vocabulary, which open_clip brings along."""

_PROMPTS_AT_ONCE = 64
_WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class PromptTokenizer:
    """Prompts to token ids of one fixed length; what is too long is cut, and its end token kept.

    ``encode`` gives the ids of each prompt, start and end token included; ``id`` is a hash of vocabulary and length.
    """

    id: str
    length: int
    end: int
    padding: int
    encode: Callable[[Sequence[str]], list[list[int]]]

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Ids (N, length) int64. Without the end token a prompt would be read as if it were empty."""
        rows = torch.full((len(prompts), self.length), self.padding)
        for row, ids in zip(rows, self.encode(prompts), strict=True):
            kept = ids if len(ids) <= self.length else [*ids[: self.length - 1], self.end]
            row[: len(kept)] = torch.tensor(kept)
        return rows

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many of ``prompts`` are cut."""
        return sum(len(ids) > self.length for ids in self.encode(prompts))


@dataclass(frozen=True)
class ClipTower:
    """Image and text features of unit length in one space, float32, on ``device``; rows do not depend on each other.

    ``key`` is the end of a recipe id, "fp32/0123456789ab": precision, and a hash of weights as stored, architecture,
    vocabulary and longest prompt. ``logit_scale`` is exp of the model's parameter, ``width`` the length of the features.
    ``image_features`` maps pixels and ``text_features`` token ids to features of any length. ``view`` is how the
    folder says that pictures are cut.
    """

    key: str
    logit_scale: float
    image_size: int
    width: int
    view: CropView
    tokenizer: PromptTokenizer
    image_features: Callable[[Tensor], Tensor]
    text_features: Callable[[Tensor], Tensor]
    device: torch.device
    dtype: torch.dtype

    def encode_images(self, views: Tensor) -> Tensor:
        """Features (N, width) of ``views`` (N, 3, S, S), differentiable with respect to them."""
        features = self.image_features(views.to(self.device, self.dtype))
        return torch.nn.functional.normalize(features.float(), dim=-1)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Features (N, width) of ``prompts``; every prompt is padded to the same length, whatever stands beside it."""
        parts = [
            self.text_features(self.tokenizer(prompts[start : start + _PROMPTS_AT_ONCE]).to(self.device)).float()
            for start in range(0, len(prompts), _PROMPTS_AT_ONCE)
        ]
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


def cosine_scores(scale: float) -> Callable[[Tensor, Tensor], Scores]:
    """A judge of unit vectors (N, D) and (N, D): ``raw`` is their cosine, ``score`` is ``scale`` times that."""

    def judge(images: Tensor, prompts: Tensor) -> Scores:
        raw = (images * prompts).sum(-1).cpu()
        return Scores(scale * raw, raw)

    return judge


def load_clip(source: str, towers: Towers) -> ClipTower:
    """The CLIPModel in the folder ``source``, or under that hub id; loaded once for all scorers of ``towers``.

    Tokenizer and preprocessing are the folder's own; where it brings none, they are CLIP's standard ones.
    Raises UserError where the model cannot be had, is no CLIPModel, does not fit its configuration, or holds code.
    """
    path = Path(source).expanduser()
    if path.is_file():
        raise UserError(f"{source}: is a file", "give the folder of a CLIPModel (config.json, model.safetensors)")
    if not path.is_dir() and not is_hub_id(source):
        raise UserError(f"{source}: no such folder", "give the folder of a CLIPModel, or a hub id")
    place = str(path.resolve()) if path.is_dir() else source
    tower = towers.get(f"transformers:{place}", lambda: _build_clip(place, towers))
    assert isinstance(tower, ClipTower)
    return tower


def load_open_clip(architecture: str, checkpoint: Path, towers: Towers) -> ClipTower:
    """open_clip's ``architecture`` with the weights in the file ``checkpoint``; loaded once for all of ``towers``.

    The weights are mapped from the file and taken as they are; nothing is drawn at random or held twice.
    ``architecture`` is a name that open_clip knows, or "local-dir:FOLDER" with an ``open_clip_config.json``.
    Raises UserError for an unknown or unsupported architecture and for weights that do not fit it.
    """
    key = f"open_clip:{architecture}:{checkpoint.expanduser().resolve()}"
    tower = towers.get(key, lambda: _build_open_clip(architecture, checkpoint.expanduser(), towers))
    assert isinstance(tower, ClipTower)
    return tower


def is_hub_id(source: str) -> bool:
    """Whether ``source`` has the form of a hub id ("owner/name"), and not of a file, and names nothing on this disk."""
    plain = source.count("/") == 1 and not source.startswith((".", "/", "~")) and not source.endswith("/")
    return plain and Path(source).suffix not in _WEIGHT_SUFFIXES and not Path(source).exists()


def hub_file(repository: str, file: str, remedy: str) -> Path:
    """``file`` of a hub repository, from the local cache or downloaded. Raises UserError where it cannot be had."""
    try:
        return Path(hf_hub_download(repository, file))
    except (OSError, ValueError) as error:
        raise UserError(f"{repository}/{file} cannot be had from the hub ({first_line(error)})", remedy) from error


def _build_clip(source: str, towers: Towers) -> ClipTower:
    model = _read_clip(source)
    model.eval().requires_grad_(False)
    config = model.config
    tokenizer = _folder_tokenizer(source, config.text_config)
    parts = {"text": config.text_config, "vision": config.vision_config}
    settings = {
        f"{name}.{key}": getattr(part, key)
        for name, part in parts.items()
        for key in ("hidden_act", "layer_norm_eps", "num_attention_heads")
    }
    identity = _identity(model.state_dict(), settings, tokenizer)
    scale = float(model.logit_scale.float().exp())
    model = model.to(towers.device, towers.dtype)
    image_size = config.vision_config.image_size
    return ClipTower(
        key=f"{towers.precision}/{identity}",
        logit_scale=scale,
        image_size=image_size,
        width=config.projection_dim,
        view=crop_view(_preprocessing(source), image_size, source),
        tokenizer=tokenizer,
        image_features=lambda views: model.visual_projection(model.vision_model(pixel_values=views).pooler_output),
        text_features=lambda ids: model.text_projection(model.text_model(input_ids=ids).pooler_output),
        device=towers.device,
        dtype=towers.dtype,
    )


def _identity(state: Mapping[str, Tensor], settings: Mapping[str, Any], tokenizer: PromptTokenizer) -> str:
    """Weights in their stored precision, what they do not tell of the architecture, and the vocabulary.

    Hashing reads a billion parameters in a few seconds, once a load.
    """
    return content_hash(weights_hash(state), json.dumps(settings, sort_keys=True), tokenizer.id)[:12]


def _read_clip(source: str) -> Any:
    config = _optional_json(source, "config.json")
    if config is None and Path(source).is_dir():
        raise UserError(f"{source}: holds no config.json", "give the folder of a CLIPModel")
    if config is not None and config.get("model_type") != "clip":
        problem = f"{source}: holds a model of type {config.get('model_type')!r}, not 'clip'"
        raise UserError(problem, "give a CLIPModel with both towers")
    try:
        with _quiet():
            # Sizes that do not fit are gathered and named below, in the place of a traceback.
            model, notes = CLIPModel.from_pretrained(
                source, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True
            )
    except Exception as error:  # a stranger's files: configuration and weights may fail in any way
        reason = first_line(error)
        if Path(source).is_dir():
            problem = f"{source}: not a CLIPModel that can be read ({reason})"
            raise UserError(problem, "save it again with save_pretrained (config.json, model.safetensors)") from error
        remedy = "give a local folder with the model: NAME=FOLDER"
        problem = f"{source}: no such folder, and cannot be had from the hub ({reason})"
        raise UserError(problem, remedy) from error
    shapes = [str(part[0]) for part in notes["mismatched_keys"]]
    found = {"of another shape": shapes, "missing": notes["missing_keys"], "unknown": notes["unexpected_keys"]}
    wrong = [f"{len(names)} {what} ({sorted(names)[0]})" for what, names in found.items() if names]
    if wrong:
        problem = f"{source}: weights of another architecture than config.json says: {', '.join(wrong)}"
        raise UserError(problem, "give the folder of a CLIPModel as save_pretrained wrote it")
    return model


def _preprocessing(source: str) -> Mapping[str, Any] | None:
    config = _optional_json(source, "preprocessor_config.json")
    if config is None:
        # Where a whole CLIPProcessor was saved, its parts stand in one file.
        config = (_optional_json(source, "processor_config.json") or {}).get("image_processor")
    return config


def _optional_json(source: str, name: str) -> dict[str, Any] | None:
    path = _optional(source, name)
    if path is None:
        return None
    found = parse_json(path.read_bytes(), str(path), "correct the file, or save the model again")
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds {type(found).__name__}, not an object", "save the model again")
    return found


def _optional(source: str, name: str) -> Path | None:
    """The file ``name`` of a folder or hub repository; None where there is none."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source, name))
    except EntryNotFoundError:  # not there, or not in the cache of a machine without network
        return None
    except (OSError, ValueError) as error:
        problem = f"{source}: no such folder, and cannot be had from the hub ({first_line(error)})"
        raise UserError(problem, "give a local folder: NAME=FOLDER") from error


def _folder_tokenizer(source: str, text: Any) -> PromptTokenizer:
    """The tokenizer beside the weights, or CLIP's standard one for a model of that vocabulary.

    Raises UserError where there is none, and where its ids or its end token are not those that the model knows.
    """
    own = _optional(source, "tokenizer.json") or (_optional(source, "vocab.json") and _optional(source, "merges.txt"))
    if own:
        try:
            with _quiet():
                tokenizer = CLIPTokenizer.from_pretrained(source)
        except Exception as error:  # a stranger's file
            problem = f"{source}: tokenizer cannot be read ({first_line(error)})"
            raise UserError(problem, "save the tokenizer again with save_pretrained") from error
    elif text.vocab_size == VOCABULARY:
        tokenizer = _standard_tokenizer()
    else:
        problem = f"{source}: holds no tokenizer, and its vocabulary of {text.vocab_size} is not CLIP's {VOCABULARY}"
        raise UserError(problem, "save the tokenizer of the model into the folder (tokenizer.json)")
    vocabulary = tokenizer.get_vocab()
    last, end = max(vocabulary.values()), tokenizer.eos_token_id
    if last >= text.vocab_size:
        problem = f"{source}: the tokenizer's ids go to {last}, the model knows {text.vocab_size} tokens"
        raise UserError(problem, "save the tokenizer of this model into the folder")
    # The model reads a prompt at its end token: configurations of before mid-2023 say 2 and mean the highest id.
    if end != text.eos_token_id and not (text.eos_token_id == 2 and end == last):
        problem = f"{source}: prompts end in token {end}, config.json says eos_token_id {text.eos_token_id}"
        raise UserError(problem, "set text_config.eos_token_id to the tokenizer's end token")
    if not isinstance(tokenizer.model_max_length, int) or tokenizer.model_max_length < 3:
        problem = f"{source}: tokenizer_config.json says model_max_length {tokenizer.model_max_length!r}"
        raise UserError(
            problem, f"allowed: 3 or more (start, a word, end); the model reads {text.max_position_embeddings}"
        )
    length = min(text.max_position_embeddings, tokenizer.model_max_length)
    rules = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return PromptTokenizer(
        id=content_hash(json.dumps([sorted(vocabulary.items()), rules, length])),
        length=length,
        end=end,
        padding=end,
        encode=lambda prompts: tokenizer(list(prompts), verbose=False)["input_ids"] if prompts else [],
    )


def _standard_tokenizer() -> Any:
    """CLIPTokenizer over OpenAI's vocabulary, from the copy that open_clip brings along."""
    bundled = open_clip.SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(token, token): number for token, number in bundled.encoder.items()}
    merges = sorted(bundled.bpe_ranks, key=bundled.bpe_ranks.__getitem__)
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def _build_open_clip(architecture: str, checkpoint: Path, towers: Towers) -> ClipTower:
    config = _open_clip_config(architecture)
    try:
        with torch.device("meta"):
            model: Any = open_clip.CLIP(**config)
    except Exception as error:  # a stranger's configuration: its sizes may fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"architecture {architecture!r}: {reason}", "correct its open_clip_config.json") from error
    state = read_checkpoint(checkpoint)
    fill(model, state, str(checkpoint))
    # The one buffer that is in no checkpoint: a prompt's tokens see those before them.
    length = model.context_length
    model.attn_mask = torch.full((length, length), -torch.inf).triu(1)
    model.eval().requires_grad_(False)
    bundled = open_clip.SimpleTokenizer(context_length=length)
    start, end = bundled.sot_token_id, bundled.eot_token_id
    tokenizer = PromptTokenizer(
        id="open_clip",
        length=length,
        end=end,
        padding=0,
        encode=lambda prompts: [[start, *bundled.encode(prompt), end] for prompt in prompts],
    )
    identity = _identity(state, config, tokenizer)
    model = model.to(towers.device, towers.dtype)
    image_size = config["vision_cfg"].get("image_size", 224)
    return ClipTower(
        key=f"{towers.precision}/{identity}",
        logit_scale=float(state["logit_scale"].float().exp()),
        image_size=image_size,
        width=config["embed_dim"],
        view=CropView(image_size, image_size, "nearest"),
        tokenizer=tokenizer,
        image_features=model.encode_image,
        text_features=model.encode_text,
        device=towers.device,
        dtype=towers.dtype,
    )


def _open_clip_config(architecture: str) -> dict[str, Any]:
    try:
        config = open_clip.get_model_config(architecture)
    except (
        OSError,
        ValueError,
        AttributeError,
        RecursionError,
    ) as error:  # a name that is none, or a file of another form
        raise UserError(f"architecture {architecture!r}: {error}", "see open_clip.list_models()") from error
    if config is None:
        close = difflib.get_close_matches(architecture, open_clip.list_models(), n=3)
        remedy = f"near to it: {', '.join(close) or 'none'}; all of them: open_clip.list_models()"
        raise UserError(f"open_clip knows no architecture {architecture!r}", remedy)
    parts = (
        [config, *(config.get(key, {}) for key in ("text_cfg", "vision_cfg"))] if isinstance(config, dict) else [config]
    )
    if not all(isinstance(part, dict) for part in parts):
        problem = f"architecture {architecture!r}: model_cfg, text_cfg and vision_cfg are not all objects"
        raise UserError(problem, "correct its open_clip_config.json")
    _, text, vision = parts
    odd = sorted({*config} - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"})
    odd += sorted(key for key in {*text, *vision} if key.startswith(("hf_", "timm_", "no_causal")))
    if odd or text.get("vocab_size", VOCABULARY) != VOCABULARY:
        problem = f"architecture {architecture!r} is no plain CLIP ({', '.join(odd) or 'vocab_size'})"
        raise UserError(problem, "give one with CLIP's own two towers, such as ViT-H-14")
    return dict(config)


@contextmanager
def _quiet() -> Iterator[None]:
    """No remarks and no bars from transformers; what matters is said by us, once."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
