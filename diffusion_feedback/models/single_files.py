"""Whole models in one ``.safetensors``, as they are shared for ComfyUI and A1111: read by diffusers, checked, never a pickle.

Such a file holds weights alone. What else a pipeline needs (configurations, tokenizers, scheduler) comes from a folder
beside it or from the hub.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from safetensors import safe_open

from ..catalog.families import family_of_class
from ..errors import UserError, first_line
from ..folders import expand
from ..foreign import check_exists, check_whole, is_hub_id, reading
from ..quiet import quiet
from ..weights import check_complete

_PARTS = {"model.diffusion_model.": "UNet", "first_stage_model.": "VAE"}
# What tells the kinds of files from one another, their family, and whose configuration on the hub is theirs.
_KINDS = (
    ("conditioner.embedders.1.", "sdxl", "stabilityai/stable-diffusion-xl-base-1.0"),
    ("cond_stage_model.model.", "sd", "stabilityai/stable-diffusion-2-1"),
    ("cond_stage_model.transformer.", "sd", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
)
# Whether such a model predicts noise or velocity stands in no weight: the wrong guess draws noise, and trains on it.
_V_PREDICTION = "v_pred"  # how files of XL say that they predict velocity
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_CONFIG_FILES = ["*.json", "*/*.json", "*/*.txt", "*/*.model"]
_REMEDY = "download or copy the file again; it has to be a whole model, with VAE and text encoder"


log = logging.getLogger(__name__)


def is_single_file(path: str) -> bool:
    """Whether ``path`` is a file on this disk."""
    return expand(path).is_file()


def family_of_file(path: str) -> str:
    """The family of the single file ``path`` by its names of weights. Raises UserError for one that holds no whole model."""
    return _kind(path, _names(path))[0]


def load_single_file(
    pipeline_class: type[DiffusionPipeline], path: str, config: str | None, **components: object
) -> tuple[DiffusionPipeline, Path]:
    """The pipeline in the file ``path``, float32, and the folder of its configuration.

    ``config``: folder or hub id of a pipeline of the same kind, of which no weights are read; by default the hub's of this
    kind of file, where that is unambiguous. Raises UserError for pickles, files that hold no whole model or another family's, a configuration that
    does not fit or cannot be had, and weights that are missing.
    """
    names = _names(path)
    kind, usual = _kind(path, names)
    if family_of_class([pipeline_class.__name__]) != kind:
        raise UserError(f"{path}: a model of family {kind}, not a {pipeline_class.__name__}", f"model.family {kind}")
    if config is None:
        _check_prediction(path, names, usual)
        log.warning("note: %s: its configuration is taken to be that of %s (model.config names another)", path, usual)
    folder = _configuration(path, config, usual)
    remedy = f"give as model.config (`model_config`) the folder of a pipeline of the same kind; {folder} was used"
    with reading(path, f"a {pipeline_class.__name__}", remedy), quiet():
        pipeline = pipeline_class.from_single_file(
            str(expand(path)), config=str(folder), dtype=torch.float32, local_files_only=True, **components
        )
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            missing = (key for key, value in part.state_dict().items() if value.is_meta)
            check_complete(f"{path}: {name}", missing, remedy)
    return pipeline, folder


def _names(path: str) -> Collection[str]:
    file = expand(path)
    if file.suffix in _PICKLES:
        remedy = (
            "convert it to .safetensors where you trust whom it is from: torch.load(FILE, weights_only=True), then "
            "safetensors.torch.save_file; most such files are also shared as .safetensors"
        )
        raise UserError(f"{path}: a pickle, which may run any code when it is read; it is not loaded", remedy)
    with reading(path, "a single-file model", _REMEDY):
        check_whole(file)
        with safe_open(file, "pt") as opened:
            return list(opened.keys())


def _kind(path: str, names: Collection[str]) -> tuple[str, str]:
    """Family, and hub id of the usual configuration, of a file whose weights have these ``names``."""
    if any("lora" in name for name in names):
        raise UserError(
            f"{path}: holds a LoRA, not a whole model", "give its base as the model, and the file as `lora`"
        )
    lacking = [what for prefix, what in _PARTS.items() if not _any(names, prefix)]
    kinds = [(family, usual) for prefix, family, usual in _KINDS if _any(names, prefix)]
    if not kinds:
        lacking.append("text encoder of Stable Diffusion 1, 2 or XL")
    if lacking:
        raise UserError(f"{path}: no whole model: it holds no {' and no '.join(lacking)}", _REMEDY)
    return kinds[0]


def _check_prediction(path: str, names: Collection[str], usual: str) -> None:
    """Raise UserError for a file whose ``usual`` configuration may be that of another prediction."""
    is_second, is_velocity = usual.endswith("stable-diffusion-2-1"), _V_PREDICTION in names
    if not (is_second or is_velocity):
        return
    what = f"says that it predicts velocity ({_V_PREDICTION!r})" if is_velocity else "is of Stable Diffusion 2"
    problem = f"{path}: {what}, and no usual configuration is known to fit: it predicts velocity or noise"
    if is_second:
        example = "that of stabilityai/stable-diffusion-2-1 (velocity, 768 px) or of its base (noise, 512 px)"
    else:
        example = "one of XL whose scheduler has prediction_type v_prediction"
    raise UserError(
        problem, f"give as model.config (`model_config`) the folder or hub id of its configuration: {example}"
    )


def _any(names: Collection[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _configuration(path: str, config: str | None, usual: str) -> Path:
    """The folder with the configuration: ``config``, or what the hub has of it or of the ``usual`` one."""
    what = config or usual
    remedy = (
        "give as model.config (`model_config`) the folder of a diffusers pipeline of the same kind: model_index.json, the "
        "config.json of each part and the tokenizers; no weights are needed"
    )
    check_exists(what, remedy)
    folder = expand(what)
    if not folder.exists():
        assert is_hub_id(what)
        try:
            with quiet():
                folder = Path(snapshot_download(what, allow_patterns=_CONFIG_FILES))
        except Exception as error:  # the network's own errors are of many kinds
            problem = f"{path}: its configuration ({what} on the hub) cannot be had: {first_line(error)}"
            raise UserError(problem, remedy) from error
    if not (folder / "model_index.json").is_file():
        raise UserError(f"model.config (`model_config`) {what}: holds no model_index.json", remedy)
    return folder
