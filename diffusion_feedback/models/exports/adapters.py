"""Adapters of images in the forms of diffusers, peft, kohya and ComfyUI: written, and read back as these read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
from .low_rank import Layers, LowRank, config_of, layers_of, merged_by_hand
from .original_names import text_layer
from .probe import image_outputs, relative_error


class AdapterForm:
    """Adapters taken off the ``denoiser``, which is its bare base from then on, in one form.

    ``writing`` writes them, in a precision, to a folder; within each of ``reading`` they are on the base, read as the form's
    tools read them. ``stem`` names the file. Raises UserError where there are none, and for those that no form has a place for.
    """

    def __init__(self, denoiser: LatentDiffusion, stem: str, writing: Writing, *reading: Reading) -> None:
        self.denoiser, self.stem, self.writing, self.reading = denoiser, stem, writing, reading
        self.truth = image_outputs(denoiser)
        self.parts: dict[str, dict[str, LowRank]] = {}
        for name, part in denoiser.pipeline.components.items():
            if isinstance(part, nn.Module) and lora.is_adapted(part):
                self.parts[name] = layers_of(part)
                lora.remove(part)
        if not self.parts:
            raise UserError("the result is a whole model, not adapters over one", "take `merged` or `single_file`")

    @property
    def file_name(self) -> str:
        """The name of a form's only file."""
        return f"{self.stem}.safetensors"

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the form, in ``dtype``, to ``folder``."""
        self.writing(self, folder, dtype)

    def error(self, folder: Path) -> float:
        """The relative error of the model's output with what ``folder`` holds; of the worst of its readers."""
        errors = []
        for reader in self.reading:
            with quiet(), reader(self, folder):
                errors.append(relative_error(image_outputs(self.denoiser), self.truth))
        return max(errors)

    def facts(self) -> dict[str, object]:
        """What is said of the form besides: the network's name, the pipeline's class, notes."""
        return {"network": self.denoiser.network_name, "pipeline": type(self.denoiser.pipeline).__name__, "notes": []}

    def take_off(self) -> None:
        """Take the adapters off again."""
        for name in self.parts:
            lora.remove(getattr(self.denoiser.pipeline, name))


Writing = Callable[[AdapterForm, Path, torch.dtype], None]
Reading = Callable[[AdapterForm, Path], AbstractContextManager[None]]


def diffusers_form(denoiser: LatentDiffusion, stem: str) -> AdapterForm:
    """``pytorch_lora_weights.safetensors``: the strength is within the factors, so that alpha is the rank in every layer.

    A reader that knows the file's metadata, and one that does not, apply the same.
    """
    return AdapterForm(denoiser, stem, _write_diffusers, _by_diffusers, _without_metadata)


def peft_form(denoiser: LatentDiffusion, stem: str) -> AdapterForm:
    """peft's folder: ``adapter_config.json`` with r and lora_alpha, and ``adapter_model.safetensors``.

    Where more than the denoiser is adapted, each part has a subfolder of its name.
    """
    return AdapterForm(denoiser, stem, _write_peft, _by_peft)


def kohya_form(denoiser: LatentDiffusion, stem: str) -> AdapterForm:
    """One file with kohya's names: ``lora_up``, ``lora_down`` and ``alpha`` of every layer; read by diffusers' conversion."""
    return AdapterForm(denoiser, stem, _write_kohya, _by_conversion)


def comfyui_form(denoiser: LatentDiffusion, stem: str) -> AdapterForm:
    """kohya's file, read as ComfyUI reads it: a table of names of all layers of the model, and a patch for each."""
    return AdapterForm(denoiser, stem, _write_kohya, _by_table)


def _in_files(part: str, name: str) -> str:
    """What diffusers' files call the layer ``name`` of ``part``."""
    return text_layer(name) if part.startswith("text_encoder") else name


def _factors(layers: Layers, dtype: torch.dtype, prefix: str = "") -> dict[str, Tensor]:
    """The factors of ``layers`` by peft's names."""
    state: dict[str, Tensor] = {}
    for name, layer in layers.items():
        cast = layer.to(dtype)
        state |= {f"{prefix}{name}.lora_A.weight": cast.down, f"{prefix}{name}.lora_B.weight": cast.up}
    return state


def _write_diffusers(form: AdapterForm, folder: Path, dtype: torch.dtype) -> None:
    given: dict[str, object] = {}
    for part, layers in form.parts.items():
        named = {_in_files(part, name): layer.folded() for name, layer in layers.items()}
        metadata = config_of(named).to_dict()
        given[f"{part}_lora_layers"] = _factors(named, dtype)
        given[f"{part}_lora_adapter_metadata"] = {
            key: sorted(value) if isinstance(value, set) else value for key, value in metadata.items()
        }
    form.denoiser.pipeline.save_lora_weights(folder, **given)


@contextmanager
def _by_diffusers(form: AdapterForm, folder: Path) -> Iterator[None]:
    # diffusers puts adapters on text encoders by a call of transformers, which asks for the newest peft.
    if set(form.parts) == {form.denoiser.network_name}:
        form.denoiser.pipeline.load_lora_weights(folder, weight_name=LORA_WEIGHT_NAME_SAFE)
    else:
        form.denoiser.load_lora(str(folder))
    try:
        yield
    finally:
        form.take_off()


@contextmanager
def _without_metadata(form: AdapterForm, folder: Path) -> Iterator[None]:
    """A reader that adds the product of the factors as they stand."""
    state = load_file(folder / LORA_WEIGHT_NAME_SAFE)
    bare: dict[str, dict[str, LowRank]] = {}
    for part, layers in form.parts.items():
        for name in layers:
            stem = f"{part}.{_in_files(part, name)}"
            down, up = (state[f"{stem}.lora_{letter}.weight"] for letter in "AB")
            bare.setdefault(part, {})[name] = LowRank(down, up, float(len(down)))
    with merged_by_hand(form.denoiser.pipeline, bare):
        yield


def _write_peft(form: AdapterForm, folder: Path, dtype: torch.dtype) -> None:
    for part, layers in form.parts.items():
        place = _place(form, folder, part)
        place.mkdir(exist_ok=True)
        state = _factors(layers, dtype, "base_model.model.")
        save_file(state, place / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        config = config_of(layers)
        config.target_modules = sorted(layers)
        config.inference_mode = True
        config.save_pretrained(place)


def _place(form: AdapterForm, folder: Path, part: str) -> Path:
    return folder if len(form.parts) == 1 else folder / part


@contextmanager
def _by_peft(form: AdapterForm, folder: Path) -> Iterator[None]:
    try:
        for part in form.parts:
            PeftModel.from_pretrained(getattr(form.denoiser.pipeline, part), _place(form, folder, part))
        yield
    finally:
        form.take_off()


def _write_kohya(form: AdapterForm, folder: Path, dtype: torch.dtype) -> None:
    state: dict[str, Tensor] = {}
    for part, layers in form.parts.items():
        names = kohya_names(form.denoiser, part, layers)
        for name, layer in layers.items():
            cast, stem = layer.to(dtype), names[name]
            state[f"{stem}.lora_down.weight"] = cast.down
            state[f"{stem}.lora_up.weight"] = cast.up
            state[f"{stem}.alpha"] = torch.tensor(layer.alpha)
    every = [layer for layers in form.parts.values() for layer in layers.values()]
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": _one_or_dynamic(layer.rank for layer in every),
        "ss_network_alpha": _one_or_dynamic(layer.alpha for layer in every),
        "format": "pt",
    }
    save_file(state, folder / form.file_name, metadata=metadata)


def kohya_names(denoiser: LatentDiffusion, part: str, layers: Iterable[str]) -> dict[str, str]:
    """kohya's names of ``layers`` of a ``part``. Raises UserError for a part that the family has no such names of."""
    names = denoiser.family.layout.get(part)
    if names is None or not names.lora:
        raise UserError(f"adapters on {part}: have no names there", "take `diffusers`, `peft` or `merged`")
    original = names.layers(layers, getattr(denoiser.pipeline, part).config)
    return {name: f"{names.lora}_{new.replace('.', '_')}" for name, new in original.items()}


def _one_or_dynamic(values: Iterable[float]) -> str:
    """What kohya's metadata say of values that may differ by layer."""
    texts = {f"{value:g}" for value in values}
    return texts.pop() if len(texts) == 1 else "Dynamic"


@contextmanager
def _by_conversion(form: AdapterForm, folder: Path) -> Iterator[None]:
    form.denoiser.load_lora(str(folder / form.file_name))
    try:
        yield
    finally:
        form.take_off()


@contextmanager
def _by_table(form: AdapterForm, folder: Path) -> Iterator[None]:
    """ComfyUI's way: names of all weights of the model, adapted or not, are looked up in the file, which must be used up."""
    state = load_file(folder / form.file_name)
    parts: dict[str, dict[str, LowRank]] = {}
    for part, layout in form.denoiser.family.layout.items():
        weights = getattr(form.denoiser.pipeline, part).state_dict()
        names = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
        for name, stem in (kohya_names(form.denoiser, part, names) if layout.lora else {}).items():
            if f"{stem}.lora_up.weight" in state:
                up, down = (state.pop(f"{stem}.lora_{which}.weight") for which in ("up", "down"))
                parts.setdefault(part, {})[name] = LowRank(down, up, float(state.pop(f"{stem}.alpha")))
    if state:
        raise UserError(f"{len(state)} keys are not in ComfyUI's table, the first is {min(state)!r}", "take `kohya`")
    with merged_by_hand(form.denoiser.pipeline, parts):
        yield
