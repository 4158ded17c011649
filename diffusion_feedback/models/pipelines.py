"""Diffusers pipelines that people bring: loaded whole or refused, every weight counted, every part checked against the others."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import get_args

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin, SchedulerMixin, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from ..catalog.families import family_of_class, pipeline_classes
from ..errors import UserError
from ..folders import expand
from ..foreign import check_exists, check_whole, is_hub_id, reading
from ..noise import DDPMProcess, PredictionType
from ..quiet import quiet
from ..runs import recorded_model
from ..weights import check_finite
from .single_files import family_of_file, is_single_file, load_single_file

FOLDER = "give the folder that DiffusionPipeline.save_pretrained wrote, or a hub id"
_KINDS: Mapping[str, type[ModelMixin | PreTrainedModel]] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model|pytorch_model)(?:\.(\w+?))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
)
# A whole CLIP model saved in the place of its text encoder, and buffers of old versions: no part of what is computed.
_HARMLESS = re.compile(r"position_ids$|^(vision_model|visual_projection|text_projection|logit_scale)")


def load_pipeline(
    pipeline_class: type[DiffusionPipeline],
    path: str,
    *,
    revision: str | None,
    variant: str | None,
    config: str | None = None,
    **components: object,
) -> DiffusionPipeline:
    """Load a diffusers folder, hub id or single file as ``pipeline_class``, every part in float32, in eval mode and frozen.

    ``config`` is the configuration of a single file, as ``load_single_file`` takes it. Code that lies beside the weights is never run. Raises UserError for whatever cannot be read, another kind of
    pipeline, weights that are missing, left over or not finite, and parts that do not belong together.
    """
    if is_single_file(path):
        if revision or variant:
            problem = f"{path}: one file has neither revision nor variant"
            raise UserError(problem, "leave model.revision and model.variant (`revision`, `variant`) out")
        pipeline, folder = load_single_file(pipeline_class, path, config, **components)
        _check_parts(path, folder, pipeline)
        return _prepared(pipeline, f"{path}: ")
    place = _place(path)
    remedy = "check its files, the revision and the variant"
    if place is None:
        remedy = "check the name and the revision, or give a folder; without a network only what was downloaded before is there"
    try:
        with reading(path, f"a {pipeline_class.__name__}", remedy), quiet():
            source = str(place or path)
            index = DiffusionPipeline.load_config(source, revision=revision)
            _check_index(path, index, pipeline_class)
            folder = place or Path(
                pipeline_class.download(path, revision=revision, variant=variant, trust_remote_code=False, **components)
            )
            names = [name for name in _KINDS if name in index]
            chosen = _variants(path, folder, names, variant)
            networks = {name: _network(path, folder / name, _KINDS[name], chosen[name]) for name in names}
            pipeline = pipeline_class.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=False, **networks, **components
            )
            _check_parts(path, folder, pipeline)
    except UserError:
        # What the libraries say of a pointer or an empty file is of no help.
        if place is not None:
            for name in _KINDS:
                check_whole(place / name)
        raise
    return _prepared(pipeline, f"{path}/")


def reuse_pipeline(pipeline: DiffusionPipeline, **components: object) -> DiffusionPipeline:
    """A pipeline of the same weights as ``pipeline``, which somebody has loaded; as ``load_pipeline`` else.

    The weights themselves are put in float32, in eval mode, and frozen. Raises UserError for weights that are not finite.
    """
    with quiet():
        return _prepared(type(pipeline).from_pipe(pipeline, dtype=torch.float32, **components), "the pipeline's ")


def _prepared(pipeline: DiffusionPipeline, where: str) -> DiffusionPipeline:
    for name, module in modules_of(pipeline).items():
        check_finite(module, f"{where}{name}")
        module.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.enable_slicing()  # one image at a time: decoding is what runs out of memory first
    return pipeline


def modules_of(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """The pipeline's networks by name."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def family_at(path: str, revision: str | None) -> str:
    """The family of the pipeline at ``path``, a folder or hub id, by its class; "sd" where its index cannot be read.

    Whoever loads it by that family then says why it cannot. Raises UserError for a single file that holds no whole model.
    """
    folder = expand(path)
    if folder.is_file():
        return family_of_file(path)
    with suppress(Exception), quiet():
        if folder.exists() or is_hub_id(path):
            index = DiffusionPipeline.load_config(str(folder) if folder.exists() else path, revision=revision)
            return family_of_class([index["_class_name"]]) or "sd"
    return "sd"


def _place(path: str) -> Path | None:
    """The folder at ``path``; None for a hub id. Raises UserError for other things, and says what they are."""
    check_exists(path, "no such folder; check the path or the hub id")
    folder = Path(path).expanduser()
    if not folder.exists():
        return None
    single = [file for file in sorted(folder.iterdir()) if file.suffix == ".safetensors" and file.is_file()]
    if (folder / "model_index.json").is_file():
        return folder
    recorded = recorded_model(folder, FOLDER, "pretrained_model_name_or_path")
    if recorded or any("lora" in file.name for file in single):
        base = f"its base is {recorded['pretrained_model_name_or_path']!r}" if recorded else "it has no base of its own"
        remedy = "give the base as the model, and this folder as `lora`; generating and benchmarks take it as it is"
        raise UserError(
            f"{path}: holds no model_index.json: it is a LoRA run or a run that is not finished; {base}", remedy
        )
    if len(single) == 1:
        raise UserError(f"{path}: not a diffusers pipeline but a folder with one file", f"give the file: {single[0]}")
    inner = sorted(file.parent.name for file in folder.glob("*/model_index.json"))
    also = f"; {folder / inner[0]} is one" if inner else ""
    raise UserError(f"{path}: not a diffusers pipeline, it holds no model_index.json{also}", FOLDER)


def _check_index(path: str, index: Mapping[str, object], expected: type[DiffusionPipeline]) -> None:
    """Raise UserError where model_index.json names another pipeline, lacks a part, or has one of another class."""
    where, class_name = f"{path}/model_index.json", index.get("_class_name")
    if class_name != expected.__name__:
        known = ", ".join(f"{family} takes {name}" for family, name in pipeline_classes().items())
        problem = f"{where}: _class_name is {class_name!r}, expected {expected.__name__!r}"
        raise UserError(problem, f"model.family {known}")
    parts = {*_KINDS, *_ENCODERS.values(), "scheduler"}
    for name in [name for name in inspect.signature(expected).parameters if name in parts]:
        entry = index.get(name)
        if not isinstance(entry, (list, tuple)) or len(entry) != 2 or None in entry:
            raise UserError(f"{where}: {name!r} is {entry!r}", "use a pipeline with all of its parts")
        if name in _KINDS and entry[1] != _KINDS[name].__name__:
            remedy = "use the pipeline that its makers published, or say with model.family what it is"
            raise UserError(f"{where}: {name!r} is a {entry[1]!r}, expected {_KINDS[name].__name__!r}", remedy)
        if entry[0] not in ("diffusers", "transformers"):
            problem = f"{where}: {name!r} comes from {entry[0]!r}, code of its own"
            raise UserError(problem, "such code is never run; use a pipeline of diffusers' and transformers' parts")


def _variants(path: str, folder: Path, names: list[str], variant: str | None) -> dict[str, str | None]:
    """Which variant of the weights is loaded for each network. As in diffusers, one that lacks it has its plain weights.

    Raises UserError where none has it, and where there are variants alone and none was requested.
    """
    there: dict[str, set[str | None]] = {}
    for name in names:
        matches = [_WEIGHTS.fullmatch(file.name) for file in (folder / name).glob("*")]
        there[name] = {match[1] for match in matches if match}
    known = sorted({variants for each in there.values() for variants in each if variants})
    if variant is not None and variant not in known:
        has = f"the variants {', '.join(known)}" if known else "no variants"
        raise UserError(
            f"{path}: no weights of variant {variant!r}; it has {has}", "leave variant out, or name one that it has"
        )
    for name, variants in there.items():
        if not variants:
            raise UserError(f"{path}/{name}: holds no weights", "download or copy the folder whole")
        if variant not in variants and None not in variants:
            problem = f"{path}/{name}: has weights of variant {min(filter(None, variants))} alone"
            raise UserError(
                problem, f"give it as variant (model.variant, `variant`); the variants are {', '.join(known)}"
            )
    return {name: variant if variant in variants else None for name, variants in there.items()}


def _network(path: str, folder: Path, kind: type[ModelMixin], variant: str | None) -> nn.Module:
    """The network in ``folder``. Raises UserError unless its weights are those that its config asks for, one by one."""
    remedy = "config.json and weights do not belong together, or a file is cut: download or copy the folder again"
    with reading(f"{path}/{folder.name}", f"a {kind.__name__}", remedy):
        model, notes = kind.from_pretrained(folder, variant=variant, dtype=torch.float32, output_loading_info=True)
    is_encoder = folder.name in _ENCODERS
    left = [key for key in notes["unexpected_keys"] if not (is_encoder and _HARMLESS.search(key))]
    shapes = [str(key) for key in notes["mismatched_keys"]]
    faults = {"missing": notes["missing_keys"], "left over": left, "of another shape": shapes}
    wrong = [f"{len(keys)} {what} ({min(map(str, keys))})" for what, keys in faults.items() if keys]
    if wrong or notes.get("error_msgs"):
        said = ", ".join(wrong) or str(notes["error_msgs"][0])
        raise UserError(
            f"{path}/{folder.name}: weights of another {kind.__name__} than its config.json says: {said}", remedy
        )
    network: nn.Module = model
    return network


def _check_parts(path: str, folder: Path, pipeline: DiffusionPipeline) -> None:
    """Raise UserError where tokenizers, encoders, network and decoder of ``pipeline`` do not belong together."""
    encoders = {name: encoder for name in _ENCODERS if (encoder := getattr(pipeline, name, None)) is not None}
    for name, encoder in encoders.items():
        check_tokenizer(f"{path}/{_ENCODERS[name]}", folder / _ENCODERS[name], pipeline, name, encoder)
    unet, vae = pipeline.unet.config, pipeline.vae.config
    width = sum(int(encoder.config.hidden_size) for encoder in encoders.values())
    expected = unet.cross_attention_dim
    taken = {*expected} if isinstance(expected, (list, tuple)) else {expected}
    problems = {
        f"the text encoders give {width} numbers per token, unet takes {expected}": taken != {width},
        f"vae gives {vae.latent_channels} channels, unet takes {unet.in_channels} and gives {unet.out_channels}": (
            {unet.in_channels, unet.out_channels} != {vae.latent_channels}
        ),
        f"vae/config.json: scaling_factor is {vae.scaling_factor!r}": not _is_positive(vae.scaling_factor),
        f"unet/config.json: sample_size is {unet.sample_size!r}, not one number": not _is_positive(unet.sample_size),
    }
    for problem, is_wrong in problems.items():
        if is_wrong:
            raise UserError(f"{path}: {problem}", "use a text-to-image pipeline as its makers published it")


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def check_tokenizer(where: str, folder: Path, pipeline: DiffusionPipeline, name: str, encoder: PreTrainedModel) -> None:
    """Raise UserError where the tokenizer of the encoder called ``name`` was made up by a library, or is another model's."""
    tokenizer = getattr(pipeline, _ENCODERS[name])
    remedy = "copy the tokenizer's folder again (vocab.json and merges.txt, or tokenizer.json)"
    has_files = (folder / "tokenizer.json").is_file() or all(
        (folder / file).is_file() for file in ("vocab.json", "merges.txt")
    )
    if not has_files:
        raise UserError(f"{where}: holds no vocabulary", remedy)
    vocabulary = tokenizer.get_vocab()
    rows = int(encoder.get_input_embeddings().num_embeddings)
    largest = max(vocabulary.values(), default=-1)
    if largest >= rows or len(vocabulary) < 0.9 * rows:
        problem = f"{where}: {len(vocabulary)} tokens with ids up to {largest}, {name} has an embedding of {rows}"
        raise UserError(problem, "use the tokenizer that the text encoder was trained with")
    positions = int(encoder.config.max_position_embeddings)
    if not 0 < tokenizer.model_max_length <= positions:
        limit = tokenizer.model_max_length if tokenizer.model_max_length < 1e9 else "not set"
        problem = f"{where}/tokenizer_config.json: model_max_length is {limit}, {name} reads {positions} tokens"
        raise UserError(problem, f"set it to {positions}, or copy the file again")


def ddpm_process(scheduler: SchedulerMixin, path: str = "the pipeline") -> DDPMProcess:
    """The forward process that the scheduler of the pipeline at ``path`` describes, in float64. Raises UserError."""
    where, kind = f"{path}/scheduler", type(scheduler).__name__
    abar = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(abar, Tensor) or not len(abar):
        problem = f"{where}: a {kind} has no alphas_cumprod"
        raise UserError(problem, "use a diffusion (DDPM-like) model; flow models are not supported")
    abar = abar.double()
    if not bool(((abar >= 0) & (abar <= 1)).all()) or bool((abar.diff() > 0).any()):
        betas = f"beta_start {scheduler.config.get('beta_start')}, beta_end {scheduler.config.get('beta_end')}"
        problem = f"{where}: alphas_cumprod do not fall from 1 to 0 ({betas})"
        raise UserError(problem, "copy scheduler_config.json again")
    prediction = scheduler.config.get("prediction_type")
    if prediction not in get_args(PredictionType):
        problem = f"{where}: prediction_type is {prediction!r}"
        raise UserError(problem, f"known: {', '.join(get_args(PredictionType))}; flow models are not supported")
    return DDPMProcess(abar, prediction)
