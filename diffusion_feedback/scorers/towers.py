"""CLIP's two towers behind one interface, from a transformers folder or an open_clip checkpoint; each loaded once."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from transformers import CLIPModel

from ..errors import UserError
from ..foreign import is_hub_id, reading
from ..quiet import quiet
from ..records import content_hash
from ..types.images import Scores
from ..weights import state_hash
from .checkpoints import fill, read_checkpoint
from .hub_files import optional_file, optional_json
from .scorer import Scorer, Towers
from .tokens import VOCABULARY, PromptTokenizer, folder_tokenizer
from .views import CropView, LetterboxView, crop_view

_PROMPTS_AT_ONCE = 64


@dataclass(frozen=True)
class ClipTower:
    """Image and text features of unit length in one space, float32, on the device of ``towers``; rows do not depend on each other.

    ``key`` is the end of a recipe id, "fp32/0123456789ab": precision, and a hash of weights as stored, architecture,
    vocabulary and longest prompt. ``logit_scale`` is exp of the model's parameter, ``width`` the length of the features.
    ``image_features`` maps pixels and ``text_features`` token ids to features of any length. ``view`` is how the
    folder says that pictures are cut.
    """

    key: str
    logit_scale: float
    width: int
    view: CropView
    tokenizer: PromptTokenizer
    image_features: Callable[[Tensor], Tensor]
    text_features: Callable[[Tensor], Tensor]
    towers: Towers

    def encode_images(self, views: Tensor) -> Tensor:
        """Features (N, width) of ``views`` (N, 3, S, S)."""
        features = self.image_features(views.to(self.towers.device, self.towers.dtype))
        return torch.nn.functional.normalize(features.float(), dim=-1)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Features (N, width) of ``prompts``; every prompt is padded to the same length, whatever stands beside it."""
        parts = [
            self.text_features(self.tokenizer(prompts[start : start + _PROMPTS_AT_ONCE]).to(self.towers.device)).float()
            for start in range(0, len(prompts), _PROMPTS_AT_ONCE)
        ]
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


def clip_scorer(
    name: str,
    recipe: str,
    tower: ClipTower,
    view: CropView | LetterboxView,
    score: Callable[[Tensor], Tensor],
    logit_scale: float | None = None,
) -> Scorer:
    """The scorer whose ``raw`` is the cosine of image and prompt, and whose ``score`` is made of that.

    ``recipe`` begins its recipe id, which ends in the ids of ``view`` and ``tower``.
    """

    def judge(images: Tensor, prompts: Tensor) -> Scores:
        raw = (images * prompts).sum(-1).cpu()
        return Scores(score(raw), raw)

    return Scorer(
        name=name,
        recipe_id=f"{recipe}/{view.id}/{tower.key}",
        view_key=view.id,
        image_key=tower.key,
        text_key=tower.key,
        logit_scale=logit_scale,
        view=view,
        encode_images=tower.encode_images,
        encode_prompts=tower.encode_prompts,
        judge=judge,
        cuts=tower.tokenizer.cuts,
    )


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
    tower: ClipTower = towers.get(f"transformers:{place}", lambda: _build_clip(place, towers))
    return tower


def load_open_clip(architecture: str, checkpoint: Path, towers: Towers) -> ClipTower:
    """open_clip's ``architecture`` with the weights in the file ``checkpoint``; loaded once for all of ``towers``.

    The weights are mapped from the file and taken as they are; nothing is drawn at random or held twice.
    ``architecture`` is a name that open_clip knows, or "local-dir:FOLDER" with an ``open_clip_config.json``.
    Raises UserError for an unknown or unsupported architecture and for weights that do not fit it.
    """
    key = f"open_clip:{architecture}:{checkpoint.expanduser().resolve()}"
    tower: ClipTower = towers.get(key, lambda: _build_open_clip(architecture, checkpoint.expanduser(), towers))
    return tower


def _build_clip(source: str, towers: Towers) -> ClipTower:
    model = _read_clip(source)
    model.eval().requires_grad_(False)
    config = model.config
    image_size = config.vision_config.image_size
    if not isinstance(image_size, int):
        raise UserError(f"{source}: config.json says image_size {image_size!r}", "give a model of square pictures")
    tokenizer = folder_tokenizer(source, config.text_config)
    parts = {"text": config.text_config, "vision": config.vision_config}
    settings = {
        f"{name}.{key}": getattr(part, key)
        for name, part in parts.items()
        for key in ("hidden_act", "layer_norm_eps", "num_attention_heads")
    }
    identity = _identity(model.state_dict(), settings, tokenizer)
    scale = float(model.logit_scale.float().exp())
    model = model.to(towers.device, towers.dtype)
    return ClipTower(
        key=f"{towers.precision}/{identity}",
        logit_scale=scale,
        width=config.projection_dim,
        view=crop_view(_preprocessing(source), image_size, source),
        tokenizer=tokenizer,
        image_features=lambda views: model.visual_projection(model.vision_model(pixel_values=views).pooler_output),
        text_features=lambda ids: model.text_projection(model.text_model(input_ids=ids).pooler_output),
        towers=towers,
    )


def _identity(state: Mapping[str, Tensor], settings: Mapping[str, object], tokenizer: PromptTokenizer) -> str:
    """Weights in their stored precision, what they do not tell of the architecture, and the vocabulary.

    Hashing reads a billion parameters in a few seconds, once a load.
    """
    return content_hash(state_hash(state), json.dumps(settings, sort_keys=True), tokenizer.id)[:12]


def _read_clip(source: str) -> CLIPModel:
    config = optional_json(source, "config.json")
    if config is None and Path(source).is_dir():
        raise UserError(f"{source}: holds no config.json", "give the folder of a CLIPModel")
    if config is not None and config.get("model_type") != "clip":
        problem = f"{source}: holds a model of type {config.get('model_type')!r}, not 'clip'"
        raise UserError(problem, "give a CLIPModel with both towers")
    _check_stored(source)
    is_here = Path(source).is_dir()
    what = "a CLIPModel" if is_here else "a CLIPModel from the hub, and there is no such folder"
    remedy = "save it again with save_pretrained (config.json, model.safetensors)"
    remedy = remedy if is_here else "check the name, or give a local folder with the model: NAME=FOLDER"
    with quiet(), reading(source, what, remedy):
        # Sizes that do not fit are gathered and named below, in the place of a traceback.
        model, notes = CLIPModel.from_pretrained(
            source, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
        )
    shapes = [str(part[0]) for part in notes["mismatched_keys"]]
    faults = {"of another shape": shapes, "missing": notes["missing_keys"], "unknown": notes["unexpected_keys"]}
    wrong = [f"{len(names)} {what} ({sorted(names)[0]})" for what, names in faults.items() if names]
    if wrong:
        problem = f"{source}: weights of another architecture than config.json says: {', '.join(wrong)}"
        raise UserError(problem, "give the folder of a CLIPModel as save_pretrained wrote it")
    return model


def _check_stored(source: str) -> None:
    """Raise UserError for weights of a kind that is not computed with: integers would be taken as if they were floats."""
    for file in ("model.safetensors", "pytorch_model.bin"):
        path = optional_file(source, file)
        if path is not None:
            state = read_checkpoint(path)
            odd = sorted(n for n, v in state.items() if not (v.is_floating_point() or n.endswith("position_ids")))
            if odd:
                kind = str(state[odd[0]].dtype).removeprefix("torch.")
                problem = f"{path}: not weights as they are computed with: {odd[0]} holds {kind}"
                raise UserError(problem, "give the original weights, not quantized")
            return


def _preprocessing(source: str) -> Mapping[str, Any] | None:
    config = optional_json(source, "preprocessor_config.json")
    if config is None:
        # Where a whole CLIPProcessor was saved, its parts stand in one file.
        config = (optional_json(source, "processor_config.json") or {}).get("image_processor")
    return config


def _build_open_clip(architecture: str, checkpoint: Path, towers: Towers) -> ClipTower:
    config = _open_clip_config(architecture)
    named = f"architecture {architecture!r}"
    with reading(named, "sizes of a CLIP", "correct its open_clip_config.json"), torch.device("meta"):
        model: Any = open_clip.CLIP(**config)
    state = read_checkpoint(checkpoint)
    fill(model, state, str(checkpoint))
    # The one buffer that is in no checkpoint: a prompt's tokens see those before them.
    length = model.context_length
    model.attn_mask = torch.full((length, length), -torch.inf).triu(1)
    model.eval().requires_grad_(False)
    bundled = open_clip.SimpleTokenizer(context_length=length)
    start, end = bundled.sot_token_id, bundled.eot_token_id

    def encode(prompts: Sequence[str]) -> list[list[int]]:
        return [[start, *bundled.encode(prompt), end] for prompt in prompts]

    # It cleans by itself.
    tokenizer = PromptTokenizer("open_clip", length, end, padding=0, encode=encode, encode_cleaned=encode)
    identity = _identity(state, config, tokenizer)
    model = model.to(towers.device, towers.dtype)
    image_size = config["vision_cfg"].get("image_size", 224)
    return ClipTower(
        key=f"{towers.precision}/{identity}",
        logit_scale=float(state["logit_scale"].float().exp()),
        width=config["embed_dim"],
        view=CropView(image_size, image_size, "nearest"),
        tokenizer=tokenizer,
        image_features=model.encode_image,
        text_features=model.encode_text,
        towers=towers,
    )


def _open_clip_config(architecture: str) -> dict[str, Any]:
    with reading(f"architecture {architecture!r}", "a model of open_clip", "see open_clip.list_models()"):
        config = open_clip.get_model_config(architecture)
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
