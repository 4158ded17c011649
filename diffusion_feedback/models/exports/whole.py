"""Whole models of images: a folder as diffusers reads it, and one file as Stable Diffusion was published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from ...errors import UserError
from ...quiet import quiet
from .. import lora
from ..latent_diffusion import LatentDiffusion
from ..pipelines import modules_of
from .probe import image_outputs, relative_error

CONFIG = "config"  # the subfolder with configurations and tokenizers of a single file


class WholeForm:
    """The ``denoiser``, its adapters merged into its weights, in one form; ``stem`` names a file.

    ``writing`` writes it to a folder as it stands, in whatever precision; ``reading`` loads what is there.
    """

    def __init__(self, denoiser: LatentDiffusion, stem: str, writing: Writing, reading: Reading) -> None:
        self.denoiser, self.stem, self.writing, self.reading = denoiser, stem, writing, reading
        self.truth = image_outputs(denoiser)
        if any(lora.is_adapted(part) for part in modules_of(denoiser.pipeline).values()):
            with quiet():
                denoiser.pipeline.fuse_lora()
                denoiser.pipeline.unload_lora_weights()

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the form, in ``dtype``, to ``folder``; from then on the denoiser is in it."""
        with quiet():
            self.denoiser.pipeline.to(dtype)
            self.writing(self.denoiser, folder, self.stem)

    def error(self, folder: Path) -> float:
        """The relative error of the model's output as what ``folder`` holds."""
        return relative_error(image_outputs(self.reading(self.denoiser, folder, self.stem)), self.truth)

    def facts(self) -> dict[str, object]:
        """What is said of the form besides: the network's name, the pipeline's class, notes."""
        pipeline = self.denoiser.pipeline
        notes = _unusual(self.denoiser) if self.writing is _write_file else []
        return {"network": self.denoiser.network_name, "pipeline": type(pipeline).__name__, "notes": notes}


Writing = Callable[[LatentDiffusion, Path, str], None]
Reading = Callable[[LatentDiffusion, Path, str], LatentDiffusion]


def merged_form(denoiser: LatentDiffusion, stem: str) -> WholeForm:
    """A diffusers folder."""
    return WholeForm(denoiser, stem, _write_folder, _read_folder)


def single_file_form(denoiser: LatentDiffusion, stem: str) -> WholeForm:
    """One ``.safetensors`` of all parts in the original's names, and beside it the configurations that it does not hold."""
    return WholeForm(denoiser, stem, _write_file, _read_file)


def _write_folder(denoiser: LatentDiffusion, folder: Path, stem: str) -> None:
    denoiser.pipeline.save_pretrained(folder)


def _read_folder(denoiser: LatentDiffusion, folder: Path, stem: str) -> LatentDiffusion:
    return denoiser.family.load(str(folder), device=denoiser.pipeline.device)


def _write_file(denoiser: LatentDiffusion, folder: Path, stem: str) -> None:
    layout, pipeline = denoiser.family.layout, denoiser.pipeline
    unnamed = sorted(set(modules_of(pipeline)) - set(layout))
    if unnamed:
        problem = f"{', '.join(unnamed)} of a {type(pipeline).__name__} have no names in a single file"
        raise UserError(problem, "take the format `merged`, which holds any pipeline")
    state: dict[str, Tensor] = {}
    for part, names in layout.items():
        module = getattr(pipeline, part)
        config = module.config if isinstance(module.config, Mapping) else module.config.to_dict()
        own = names.weights(module.state_dict(), config)
        state |= {f"{names.prefix}{name}": value.contiguous().cpu() for name, value in own.items()}
    save_file(state, folder / f"{stem}.safetensors", metadata={"format": "pt"})
    save_configs(pipeline, folder / CONFIG)


def _read_file(denoiser: LatentDiffusion, folder: Path, stem: str) -> LatentDiffusion:
    file, config = str(folder / f"{stem}.safetensors"), str(folder / CONFIG)
    return denoiser.family.load(file, config=config, device=denoiser.pipeline.device)


_USUAL_SCALE = {"StableDiffusionPipeline": 0.18215, "StableDiffusionXLPipeline": 0.13025}  # of latents, as published


def _unusual(denoiser: LatentDiffusion) -> list[str]:
    """What a tool that reads the file alone would take wrongly."""
    notes, pipeline = [], denoiser.pipeline
    scale, usual = float(pipeline.vae.config.scaling_factor), _USUAL_SCALE.get(type(pipeline).__name__)
    if usual is not None and abs(scale - usual) > 1e-6:
        notes.append(
            f"Its latents are scaled by {scale:g}, not {usual:g}: tools without the configuration draw wrong images."
        )
    if (kind := denoiser.process.prediction_type) != "epsilon":
        notes.append(f"It predicts {kind}, which a tool without the configuration has to be given.")
    return notes


def save_configs(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Write all of ``pipeline`` but its weights: configurations, tokenizers, scheduler."""
    pipeline.save_config(folder)
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            config: Any = part.config
            save: Any = getattr(part, "save_config", None) or config.save_pretrained
            save(folder / name)
        elif part is not None:
            part.save_pretrained(folder / name)
