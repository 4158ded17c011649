"""ImageReward v1.0 (arXiv:2304.05977): BLIP reads the prompt with the image before its eyes, a head says how good it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import BertTokenizer

from ..errors import UserError
from ..foreign import reading
from ..records import content_hash
from ..types.images import Scores
from ..weights import state_hash
from .affine_head import affine_head
from .blip import Blip, load_blip
from .checkpoints import read_checkpoint
from .hub_files import hub_file, weights_file
from .scorer import Scorer, Towers
from .views import CropView

HUB_ID = "THUDM/ImageReward"
WEIGHTS_FILE = "ImageReward.pt"
VOCABULARY_HUB_ID = "bert-base-uncased"
VOCABULARY_FILE = "vocab.txt"
TOKENS = 35
"""Longest prompt, [CLS] and [SEP] included; the published scorer cuts what is longer."""

# The mean and the standard deviation of the raw reward over the authors' data: published scores are standardised.
MEAN, STD = 0.16717362830052426, 1.0333394966054072

# Parts of the published file that no score depends on: BLIP's contrastive heads, and BERT's count of places.
UNUSED = frozenset(
    {
        "blip.vision_proj.weight",
        "blip.vision_proj.bias",
        "blip.text_proj.weight",
        "blip.text_proj.bias",
        "blip.text_encoder.embeddings.position_ids",
    }
)
_HEAD = "mlp.layers."


def load(weights: str | None, towers: Towers) -> Scorer:
    """ImageReward from its file, from a folder that holds ``ImageReward.pt``, or from the hub (``weights`` None).

    The vocabulary of bert-base-uncased is read from ``vocab.txt`` beside the weights, else from the hub. ``raw`` is
    the head's output, a Bradley-Terry logit as trained: ``logit_scale`` is 1; ``score`` = (raw - MEAN) / STD.
    Raises UserError where a file cannot be had or holds other weights or another vocabulary.
    """
    path = weights_file(weights, HUB_ID, WEIGHTS_FILE)
    state = {name: value for name, value in read_checkpoint(path).items() if name not in UNUSED}
    blip = load_blip({name: value for name, value in state.items() if not name.startswith(_HEAD)}, str(path))
    head = {name: value for name, value in state.items() if name.startswith(_HEAD)}
    affine = affine_head(head, blip.text.config.hidden_size, str(path), _HEAD)
    weight, bias = (part.to(towers.device) for part in affine)
    tokenizer = _tokenizer(_vocabulary_file(path), blip)
    blip = blip.to(towers.device, towers.dtype)
    view = CropView(blip.image_size, blip.image_size, centre="nearest")  # torchvision's, as published
    identity = content_hash(state_hash(state), json.dumps(sorted(tokenizer.get_vocab().items())))[:12]
    recipe = f"imagereward.1.0/{view.id}/{towers.precision}/{identity}"

    def encode_prompts(prompts: Sequence[str]) -> Tensor:
        """Token ids and mask, (N, 2, 35) int64."""
        tokens = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        return torch.stack([tokens.input_ids, tokens.attention_mask], 1).to(towers.device)

    def judge(images: Tensor, prompts: Tensor) -> Scores:
        first = blip.read(prompts[:, 0], prompts[:, 1], images)
        raw = (first.float() @ weight + bias).cpu()
        return Scores((raw - MEAN) / STD, raw)

    return Scorer(
        name="imagereward",
        recipe_id=recipe,
        view_key=view.id,
        image_key=recipe,
        text_key=recipe,
        logit_scale=1.0,
        view=view,
        encode_images=blip.encode_images,
        encode_prompts=encode_prompts,
        judge=judge,
        cuts=lambda prompts: [len(ids) > TOKENS for ids in tokenizer(list(prompts)).input_ids] if prompts else [],
    )


def _vocabulary_file(weights: Path) -> Path:
    beside = weights.parent / VOCABULARY_FILE
    if beside.is_file():
        return beside
    remedy = f"put the {VOCABULARY_FILE} of {VOCABULARY_HUB_ID} beside the weights: {beside}"
    return hub_file(VOCABULARY_HUB_ID, VOCABULARY_FILE, remedy)


def _tokenizer(vocabulary: Path, blip: Blip) -> BertTokenizer:
    """BERT's WordPiece, lower case, with BLIP's two tokens at the end. Raises UserError for another vocabulary."""
    with reading(vocabulary, "a vocabulary", f"give the {VOCABULARY_FILE} of {VOCABULARY_HUB_ID}"):
        tokenizer = BertTokenizer(vocab=str(vocabulary))
    tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
    if len(tokenizer) != blip.vocabulary:
        problem = f"{vocabulary}: holds {len(tokenizer) - 2} tokens, the weights know {blip.vocabulary - 2}"
        raise UserError(problem, f"give the {VOCABULARY_FILE} of {VOCABULARY_HUB_ID}")
    return tokenizer
