"""What a stranger's LoRA file holds: which file of a folder is meant, its tensors, and the strength that it states.

Adapters lie about in many forms: diffusers', peft's, kohya's, bare state dicts, and the checkpoints of our own runs.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME, LORA_WEIGHT_NAME_SAFE
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import Tensor

from ..documents import read_object
from ..errors import UserError, first_line, is_out_of_memory
from ..foreign import check_exists, check_whole, is_hub_id, is_unreachable, reading
from ..runs import recorded_model, weights_of

logger = logging.getLogger(__name__)

FOLDER = "give the folder or file of a LoRA: pytorch_lora_weights.safetensors of a run, or another tool's .safetensors"
_METADATA = "lora_adapter_metadata"  # where diffusers keeps peft's settings in the header of a file
# The names of the weights in a folder, the best first; "average" is what a run with an average gives out.
_NAMES = (
    LORA_WEIGHT_NAME_SAFE, SAFETENSORS_WEIGHTS_NAME, "average.safetensors", "policy.safetensors", LORA_WEIGHT_NAME,
)  # fmt: skip
_ADAPTER_NAME = re.compile(r"(\.lora_[AB])\.\w+(\.weight|\.bias)$")  # peft's name of the adapter within a live network
_PEFT = "base_model.model."


@dataclass(frozen=True, slots=True)
class LoraFile:
    """Tensors by their keys as they stand in ``path``, and what the file says of their strength.

    ``settings`` are peft's, by part ("unet.r") or bare ("r"); ``alpha`` holds for all layers; ``alphas`` are stated by
    layer, under the key of the layer's tensors without their ending. Nothing of the three: alpha is the rank.
    """

    path: str
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] | None = None
    alpha: float | None = None
    alphas: Mapping[str, float] | None = None


def read_lora(path: str) -> LoraFile:
    """The LoRA in folder, file or hub id ``path``, or that a run's step has. Raises UserError for whatever else ``path`` is."""
    path = weights_of(path)
    check_exists(path, FOLDER)
    place = Path(path).expanduser()
    with reading(path, "LoRA weights", FOLDER):
        file = place if place.is_file() else _in_folder(path, place) if place.is_dir() else _from_hub(path)
        check_whole(file)
        tensors, header = _tensors(file)
        alphas = {key.removesuffix(".alpha"): float(value) for key, value in tensors.items() if key.endswith(".alpha")}
        tensors = {key: value for key, value in tensors.items() if not key.endswith(".alpha")}
        if not any("lora" in key for key in tensors):
            raise UserError(f"{path}: {len(tensors)} tensors, and none of a LoRA among them", FOLDER)
        if any(_ADAPTER_NAME.search(key) for key in tensors):
            tensors.pop("updates", None)  # how often the average was updated
            bare = {_ADAPTER_NAME.sub(r"\1\2", key): value for key, value in tensors.items()}
            return LoraFile(path, bare, alpha=_alpha_of_run(path, file))
        if all(key.startswith(_PEFT) for key in tensors):
            bare = {key.removeprefix(_PEFT): value for key, value in tensors.items()}
            return LoraFile(path, bare, settings=_peft_settings(path, file))
        settings = json.loads(header[_METADATA]) if _METADATA in header else None
        return LoraFile(path, tensors, settings=settings, alphas=alphas)


def _in_folder(path: str, folder: Path) -> Path:
    if (folder / "model_index.json").is_file():
        raise UserError(f"{path}: a whole pipeline, no LoRA", "give it as the model itself")
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    return folder / _choose(path, names)


def _from_hub(path: str) -> Path:
    assert is_hub_id(path)
    try:
        names = [name for name in HfApi().list_repo_files(path) if "/" not in name]
    except Exception as error:  # the network's own errors are of many kinds
        if not is_unreachable(error):  # no such repository, or no right to see it: a copy would hide that
            raise
        try:
            folder = Path(snapshot_download(path, local_files_only=True))  # what was fetched before
        except LocalEntryNotFoundError:
            raise error from None
        logger.warning(
            "note: %s: the hub cannot be reached (%s); the copy that was fetched before is used",
            path,
            first_line(error),
        )
        return folder / _choose(path, sorted(file.name for file in folder.iterdir()))
    chosen = _choose(path, names)
    if chosen == SAFETENSORS_WEIGHTS_NAME:
        hf_hub_download(path, CONFIG_NAME)
    return Path(hf_hub_download(path, chosen))


def _choose(path: str, names: Sequence[str]) -> str:
    """The one of ``names`` that holds the weights. Raises UserError where there is none, or no telling."""
    for name in _NAMES:
        if name in names:
            return name
    files = [name for name in names if name.endswith(".safetensors")]
    if len(files) != 1:
        what = f"holds {len(files)} of them ({', '.join(files[:3])})" if files else "holds no .safetensors file"
        raise UserError(f"{path}: which file is the LoRA? It {what}", "give the file itself")
    return files[0]


def _tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of ``file`` by key, and the header's remarks."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        problem = f"{file}: neither safetensors nor plain tensors; code in it is never run"
        raise UserError(problem, "convert it to .safetensors where you trust it") from error
    content = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(content):
        raise UserError(f"{file}: holds other things than tensors", FOLDER)
    return tensors, {}


def _alpha_of_run(path: str, file: Path) -> float:
    """Alpha of the run that the checkpoint ``file`` belongs to: the weights themselves do not say it."""
    model = recorded_model(file.resolve().parent, FOLDER, "lora_rank")
    if model is None:
        problem = f"{path}: a training checkpoint, whose strength (alpha) only the recipe.yaml of its run says"
        raise UserError(problem, "give it where it lies in its run: runs/NAME/checkpoints/step-N")
    return float(model["lora_alpha"] if model.get("lora_alpha") is not None else model["lora_rank"])


def _peft_settings(path: str, file: Path) -> dict[str, object]:
    config, remedy = file.with_name(CONFIG_NAME), "give the whole folder that peft's save_pretrained wrote"
    if not config.is_file():
        raise UserError(
            f"{path}: no {CONFIG_NAME} beside it, which says the strength (alpha) of a peft adapter", remedy
        )
    return read_object(config, remedy)
