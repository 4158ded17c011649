"""Adapters of images in the forms of diffusers, peft, kohya and ComfyUI: written, and read back as these read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...errors import UserError
from ...quiet import quiet
from .. import lora
from ..latent_diffusion import LatentDiffusion
from .low_rank import LowRank, config_of, layers_of, merged_by_hand
from .original_names import text_layer
from .probe import image_outputs, relative_error


class AdapterForm:
    """Adapters taken off the ``denoiser``, which is its bare base from then on, in one form.

    Raises UserError where there are none, and for those that the form has no place for.
    """

    def __init__(self, denoiser: LatentDiffusion, stem: str) -> None:
        self.denoiser, self.stem = denoiser, stem
        self.truth = image_outputs(denoiser)
        self.parts: dict[str, dict[str, LowRank]] = {}
        for name, part in denoiser.pipeline.components.items():
            if isinstance(part, nn.Module) and lora.is_adapted(part):
                self.parts[name] = layers_of(part)
                lora.remove(part)
        if not self.parts:
            raise UserError("the result is a whole model, not adapters over one", "take `merged` or `single_file`")

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the form, in ``dtype``, to ``folder``."""
        raise NotImplementedError

    def loaded(self, folder: Path) -> AbstractContextManager[None]:
        """Within this, the adapters in ``folder`` are on the base, read as the form's own tool reads them."""
        raise NotImplementedError

    def error(self, folder: Path) -> float:
        """The relative error of the model's output with what ``folder`` holds."""
        with quiet(), self.loaded(folder):
            return relative_error(image_outputs(self.denoiser), self.truth)

    def facts(self) -> dict[str, object]:
        """What is said of the form besides: the network's name, the pipeline's class, notes."""
        return {"network": self.denoiser.network_name, "pipeline": type(self.denoiser.pipeline).__name__, "notes": []}

    def _taken_off(self) -> None:
        for name in self.parts:
            lora.remove(getattr(self.denoiser.pipeline, name))


def _in_files(part: str, name: str) -> str:
    """What diffusers' files call the layer ``name`` of ``part``."""
    return text_layer(name) if part.startswith("text_encoder") else name


class DiffusersForm(AdapterForm):
    """``pytorch_lora_weights.safetensors``: the strength is within the factors, so that alpha is the rank in every layer.

    A reader that knows the file's metadata, and one that does not, apply the same.
    """

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        given: dict[str, object] = {}
        for part, layers in self.parts.items():
            folded = {name: layer.folded() for name, layer in layers.items()}
            named = {_in_files(part, name): layer for name, layer in folded.items()}
            state = {
                f"{name}.lora_{letter}.weight": value
                for name, layer in named.items()
                for letter, value in zip("AB", (layer.to(dtype).down, layer.to(dtype).up), strict=True)
            }
            metadata = config_of(named).to_dict()
            given[f"{part}_lora_layers"] = state
            given[f"{part}_lora_adapter_metadata"] = {
                key: sorted(value) if isinstance(value, set) else value for key, value in metadata.items()
            }
        self.denoiser.pipeline.save_lora_weights(folder, **given)

    @contextmanager
    def loaded(self, folder: Path) -> Iterator[None]:
        # diffusers puts adapters on text encoders by a call of transformers, which asks for the newest peft.
        if set(self.parts) == {self.denoiser.network_name}:
            self.denoiser.pipeline.load_lora_weights(folder, weight_name=LORA_WEIGHT_NAME_SAFE)
        else:
            self.denoiser.load_lora(str(folder))
        try:
            yield
        finally:
            self._taken_off()

    def error(self, folder: Path) -> float:
        return max(super().error(folder), self._error_without_metadata(folder))

    def _error_without_metadata(self, folder: Path) -> float:
        """The error of a reader that adds the product of the factors as they stand."""
        state = load_file(folder / LORA_WEIGHT_NAME_SAFE)
        bare: dict[str, dict[str, LowRank]] = {}
        for part, layers in self.parts.items():
            for name in layers:
                stem = f"{part}.{_in_files(part, name)}"
                down, up = (state[f"{stem}.lora_{letter}.weight"] for letter in "AB")
                bare.setdefault(part, {})[name] = LowRank(down, up, float(len(down)))
        with merged_by_hand(self.denoiser.pipeline, bare):
            return relative_error(image_outputs(self.denoiser), self.truth)


class PeftForm(AdapterForm):
    """peft's folder: ``adapter_config.json`` with r and lora_alpha, and ``adapter_model.safetensors``.

    Where more than the denoiser is adapted, each part has a subfolder of its name.
    """

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        for part, layers in self.parts.items():
            place = self._place(folder, part)
            place.mkdir(exist_ok=True)
            state = {
                f"base_model.model.{name}.lora_{letter}.weight": value
                for name, layer in layers.items()
                for letter, value in zip("AB", (layer.to(dtype).down, layer.to(dtype).up), strict=True)
            }
            save_file(state, place / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
            config = config_of(layers)
            config.inference_mode = True
            config.save_pretrained(place)

    def _place(self, folder: Path, part: str) -> Path:
        return folder if len(self.parts) == 1 else folder / part

    @contextmanager
    def loaded(self, folder: Path) -> Iterator[None]:
        pipeline = self.denoiser.pipeline
        own = {part: getattr(pipeline, part) for part in self.parts}
        try:
            for part, network in own.items():
                PeftModel.from_pretrained(network, self._place(folder, part))
            yield
        finally:
            self._taken_off()


class KohyaForm(AdapterForm):
    """One file with kohya's names: ``lora_up``, ``lora_down`` and ``alpha`` of every layer; read by diffusers' conversion."""

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        state: dict[str, Tensor] = {}
        names = self._names()
        for part, layers in self.parts.items():
            for name, layer in layers.items():
                cast, stem = layer.to(dtype), names[part, name]
                state[f"{stem}.lora_down.weight"] = cast.down
                state[f"{stem}.lora_up.weight"] = cast.up
                state[f"{stem}.alpha"] = torch.tensor(layer.alpha)
        every = [layer for layers in self.parts.values() for layer in layers.values()]
        metadata = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": _one_or_dynamic(layer.rank for layer in every),
            "ss_network_alpha": _one_or_dynamic(layer.alpha for layer in every),
            "format": "pt",
        }
        save_file(state, folder / f"{self.stem}.safetensors", metadata=metadata)

    def _names(self) -> dict[tuple[str, str], str]:
        """kohya's name of each layer, by part and name here. Raises UserError for a part that the family has no names of."""
        names: dict[tuple[str, str], str] = {}
        for part, layers in self.parts.items():
            layout = self.denoiser.family.layout.get(part)
            if layout is None or not layout.lora:
                raise UserError(f"adapters on {part}: have no names there", "take `diffusers`, `peft` or `merged`")
            original = layout.layers(layers, getattr(self.denoiser.pipeline, part).config)
            names |= {(part, name): f"{layout.lora}_{new.replace('.', '_')}" for name, new in original.items()}
        return names

    @contextmanager
    def loaded(self, folder: Path) -> Iterator[None]:
        self.denoiser.load_lora(str(folder / f"{self.stem}.safetensors"))
        try:
            yield
        finally:
            self._taken_off()


def _one_or_dynamic(values: Iterable[float]) -> str:
    """What kohya's metadata say of values that may differ by layer."""
    texts = {f"{value:g}" for value in values}
    return texts.pop() if len(texts) == 1 else "Dynamic"


class ComfyForm(KohyaForm):
    """kohya's file, read as ComfyUI reads it: a table of names of all layers of the model, and a patch for each."""

    @contextmanager
    def loaded(self, folder: Path) -> Iterator[None]:
        state = load_file(folder / f"{self.stem}.safetensors")
        parts: dict[str, dict[str, LowRank]] = {}
        for (part, name), stem in self._table().items():
            if f"{stem}.lora_up.weight" in state:
                up, down = (state.pop(f"{stem}.lora_{which}.weight") for which in ("up", "down"))
                parts.setdefault(part, {})[name] = LowRank(down, up, float(state.pop(f"{stem}.alpha")))
        if state:
            raise UserError(
                f"{len(state)} keys are not in ComfyUI's table, the first is {min(state)!r}", "take `kohya`"
            )
        with merged_by_hand(self.denoiser.pipeline, parts):
            yield

    def _table(self) -> dict[tuple[str, str], str]:
        """ComfyUI's names: of all weights of the model, adapted or not."""
        table: dict[tuple[str, str], str] = {}
        for part, layout in self.denoiser.family.layout.items():
            network = getattr(self.denoiser.pipeline, part)
            names = [name.removesuffix(".weight") for name in network.state_dict() if name.endswith(".weight")]
            if layout.lora:
                new = layout.layers(names, network.config)
                table |= {(part, name): f"{layout.lora}_{new[name].replace('.', '_')}" for name in names}
        return table
