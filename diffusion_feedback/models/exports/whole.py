"""Whole models of images: a folder as diffusers reads it, and one file as Stable Diffusion was published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...errors import UserError
from ...quiet import quiet
from .. import lora
from ..latent_diffusion import LatentDiffusion
from ..pipelines import modules_of
from .probe import image_outputs, relative_error

CONFIG = "config"  # the subfolder with configurations and tokenizers of a single file


class MergedForm:
    """A diffusers folder; adapters on the ``denoiser`` become part of its weights."""

    def __init__(self, denoiser: LatentDiffusion, stem: str) -> None:
        self.denoiser, self.stem = denoiser, stem
        self.truth = image_outputs(denoiser)
        if any(lora.is_adapted(part) for part in modules_of(denoiser.pipeline).values()):
            with quiet():
                denoiser.pipeline.fuse_lora()
                denoiser.pipeline.unload_lora_weights()

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the form, in ``dtype``, to ``folder``: from float32 on, the model is in it."""
        with quiet():
            self.denoiser.pipeline.to(dtype)
            self.denoiser.pipeline.save_pretrained(folder)

    def error(self, folder: Path) -> float:
        """The relative error of the model's output as what ``folder`` holds."""
        return self._error(self.denoiser.family.load(str(folder), device=self.denoiser.pipeline.device))

    def facts(self) -> dict[str, object]:
        """What is said of the form besides: the network's name, the pipeline's class, notes."""
        return {"network": self.denoiser.network_name, "pipeline": type(self.denoiser.pipeline).__name__, "notes": []}

    def _error(self, loaded: LatentDiffusion) -> float:
        return relative_error(image_outputs(loaded), self.truth)


class SingleFileForm(MergedForm):
    """One ``.safetensors`` of all parts in the original's names, and beside it the configurations that it does not hold."""

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        layout = self.denoiser.family.layout
        pipeline = self.denoiser.pipeline
        unnamed = sorted(set(modules_of(pipeline)) - set(layout))
        if unnamed:
            problem = f"{', '.join(unnamed)} of a {type(pipeline).__name__} have no names in a single file"
            raise UserError(problem, "take the format `merged`, which holds any pipeline")
        state: dict[str, Tensor] = {}
        with quiet():
            pipeline.to(dtype)
        for part, names in layout.items():
            module = getattr(pipeline, part)
            own = names.weights(module.state_dict(), _plain(module.config))
            state |= {f"{names.prefix}{name}": value.contiguous().cpu() for name, value in own.items()}
        save_file(state, folder / f"{self.stem}.safetensors", metadata={"format": "pt"})
        with quiet():
            save_configs(pipeline, folder / CONFIG)

    def facts(self) -> dict[str, object]:
        pipeline = self.denoiser.pipeline
        notes = []
        scale, usual = float(pipeline.vae.config.scaling_factor), _USUAL_SCALE.get(type(pipeline).__name__)
        if usual is not None and abs(scale - usual) > 1e-6:
            notes.append(
                f"Its latents are scaled by {scale:g}, not by {usual:g}: tools without the configuration draw wrong images."
            )
        if (kind := self.denoiser.process.prediction_type) != "epsilon":
            notes.append(f"It predicts {kind}, which a tool without the configuration has to be given.")
        return {**super().facts(), "notes": notes}

    def error(self, folder: Path) -> float:
        file, config = folder / f"{self.stem}.safetensors", str(folder / CONFIG)
        return self._error(self.denoiser.family.load(str(file), config=config, device=self.denoiser.pipeline.device))


_USUAL_SCALE = {"StableDiffusionPipeline": 0.18215, "StableDiffusionXLPipeline": 0.13025}  # of latents, as published


def _plain(config: Any) -> Mapping[str, Any]:
    plain: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    return plain


def save_configs(pipeline: Any, folder: Path) -> None:
    """Write all of ``pipeline`` but its weights: configurations, tokenizers, scheduler."""
    pipeline.save_config(folder)
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            config: Any = part.config
            save: Any = getattr(part, "save_config", None) or config.save_pretrained
            save(folder / name)
        elif part is not None:
            part.save_pretrained(folder / name)
