"""CLIP models (transformers' CLIPModel) as scorers that are trained: PickScore, and what it starts from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from ..errors import UserError
from ..foreign import reading
from ..quiet import quiet
from ..text_folders import located
from ..weights import check_complete, check_finite, modules_hash, move
from .saving import TOKENIZER_FILES, TRANSFORMER_FILES, saving

_BICUBIC = 3
_FOLDER = "give a folder that CLIPModel.save_pretrained wrote, or a hub id"


class Similarity(nn.Module):
    """logit_scale * cosine of prompts and images under ``clip``; the last product in float32, autocast or not."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """Token ids (B, T) and pixels (N, 3, S, S) to logits (B, N) float32.

        No mask is needed: the text tower looks backwards only and is read at the first end token.
        """
        clip = self.clip
        texts = clip.text_projection(clip.text_model(input_ids=tokens).pooler_output)
        images = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
        with torch.autocast(pixels.device.type, enabled=False):
            cosines = normalize(texts.float(), dim=-1) @ normalize(images.float(), dim=-1).T
            logits: Tensor = clip.logit_scale.float().exp() * cosines
        return logits


@dataclass(frozen=True, slots=True)
class ClipScorer:
    """A CLIPModel with its tokenizer and image processor; ``network`` is what is trained."""

    network: Similarity
    tokenizer: Any
    image_processor: Any

    @property
    def resolution(self) -> int:
        """Side of the pictures that the image tower takes, px."""
        return int(self.network.clip.config.vision_config.image_size)

    @property
    def max_tokens(self) -> int:
        """Tokens that the text tower reads, start and end included."""
        positions = int(self.network.clip.config.text_config.max_position_embeddings)
        return min(positions, int(self.tokenizer.model_max_length))

    @property
    def logit_scale(self) -> float:
        """What a cosine is multiplied by to be a Bradley-Terry logit."""
        return float(self.network.clip.logit_scale.detach().float().exp())

    @property
    def library_model(self) -> CLIPModel:
        """The object of its library that all this is made of."""
        return self.network.clip

    def trained_parts(self) -> list[nn.Module]:
        """What full tuning trains: both towers, their projections, and the logit scale."""
        return [self.network]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass."""
        clip = self.network.clip
        # transformers is changing the name.
        enable = getattr(clip, "activation_checkpointing_enable", None) or clip.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (N, T) as long as the longest prompt; longer ones than ``max_tokens`` are cut, end token kept."""
        with quiet():
            encoded = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=self.max_tokens)
        return torch.tensor(encoded.input_ids)

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many ``prompts`` are longer than the text tower reads."""
        lengths = [len(ids) for ids in self.tokenizer(list(prompts), truncation=False, verbose=False).input_ids]
        return sum(length > self.max_tokens for length in lengths)

    def view_id(self) -> str:
        """Names how pictures are cut, for cache keys."""
        return f"shortest edge to {self.image_processor.size['shortest_edge']} by PIL bicubic, centre {self.resolution}"

    def cut(self, image: Image.Image) -> Tensor:
        """An RGB image to the picture (3, S, S) uint8: the processor's own scaling, and the centre square."""
        pixels = self.image_processor(image, do_rescale=False, do_normalize=False).pixel_values[0]
        return torch.from_numpy(np.array(pixels)).to(torch.uint8)

    def normalise(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, S, S) uint8 to what the image tower takes, float32."""
        mean, std = (
            torch.tensor(values, device=pictures.device).view(3, 1, 1)
            for values in (self.image_processor.image_mean, self.image_processor.image_std)
        )
        return (pictures.float() / 255 - mean) / std

    def model_hash(self) -> str:
        """Identity of weights, tokenizer and normalisation."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        processor = [list(self.image_processor.image_mean), list(self.image_processor.image_std)]
        return modules_hash(self.network.clip, settings=str([self.max_tokens, vocabulary, processor]))

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write a CLIPModel folder that plain ``from_pretrained`` loads, with tokenizer and image processor."""
        assert isinstance(network, Similarity)
        with quiet(), saving(folder) as beside:
            network.clip.save_pretrained(beside)
            self.tokenizer.save_pretrained(beside)
            self.image_processor.save_pretrained(beside)

    def written_files(self) -> tuple[str, ...]:
        """Patterns of what ``save`` writes."""
        return (*TRANSFORMER_FILES, *TOKENIZER_FILES, "preprocessor_config.json")


def load(
    path: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> ClipScorer:
    """Load a CLIPModel folder or hub id in ``dtype``, eval mode and frozen.

    Raises UserError for a path that is neither, another kind of model, missing files or weights, weights that are not
    finite, dropout (its draws could not be repeated), and pictures that are not cut as CLIP cuts them.
    """
    path = located(path, "a CLIP model", f"{_FOLDER}; for a pipeline set another model.family")
    with reading(path, "a CLIPModel with its tokenizer", _FOLDER), quiet():
        _check_config(path, revision)
        clip, notes = CLIPModel.from_pretrained(
            path, revision=revision, variant=variant, dtype=dtype, output_loading_info=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(path, revision=revision)
    check_complete(path, notes["missing_keys"], _FOLDER)
    check_finite(clip, path)
    clip.requires_grad_(False).eval()
    scorer = ClipScorer(Similarity(clip), tokenizer, _image_processor(path, revision, clip.config))
    move(scorer.network, device)
    return scorer


def _check_config(path: str, revision: str | None) -> None:
    config, _ = CLIPConfig.get_config_dict(path, revision=revision)
    if config.get("model_type") != "clip":
        problem = f"{path}/config.json: model_type is {config.get('model_type')!r}, expected 'clip'"
        raise UserError(problem, _FOLDER)
    for tower in ("text_config", "vision_config"):
        dropout = (config.get(tower) or {}).get("attention_dropout", 0)
        if dropout:
            problem = f"{path}/config.json: {tower}.attention_dropout is {dropout}; its draws could not be repeated"
            raise UserError(problem, "set it to 0 in a copy of the folder")


def _image_processor(path: str, revision: str | None, config: CLIPConfig) -> CLIPImageProcessorPil:
    """The folder's own processor, or CLIP's where it has none. Raises UserError for one that cuts in another way."""
    side = int(config.vision_config.image_size)
    try:
        with quiet():
            processor = CLIPImageProcessorPil.from_pretrained(path, revision=revision)
    except (OSError, json.JSONDecodeError):
        size, crop = {"shortest_edge": side}, {"height": side, "width": side}
        return CLIPImageProcessorPil(size=size, crop_size=crop)
    crop, switches = processor.crop_size, ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    shortest = int((dict(processor.size) if processor.size else {}).get("shortest_edge") or 0)
    sizes = {
        "crop_size": ((crop["height"], crop["width"]), (side, side)),
        "size.shortest_edge": (shortest, max(shortest, side)),
        "resample": (int(processor.resample), _BICUBIC),
        "rescale_factor": (round(1 / processor.rescale_factor, 3), 255),
        **{name: (bool(getattr(processor, name)), True) for name in switches},
    }
    for name, (value, expected) in sizes.items():
        if value != expected:
            problem = f"{path}/preprocessor_config.json: {name} is {value}, expected {expected}"
            raise UserError(problem, "use a model whose pictures are cut as CLIP's are")
    return processor
