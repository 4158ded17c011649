"""Language and reward models: an adapter as peft reads it, and a whole folder as transformers reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file

from ...errors import UserError
from ...quiet import quiet
from ...text_folders import is_adapter, scaled_adapter
from ..text_network import TokenModel
from .probe import relative_error, text_outputs

Load = Callable[[str], TokenModel]


class TextForm:
    """The ``model`` at ``path`` in one form; an adapter is part of its weights since it was loaded, times ``scale``.

    ``writing`` writes it, in a precision, to a folder; ``load`` loads a folder of its family.
    """

    def __init__(self, model: TokenModel, path: str, scale: float, load: Load, writing: Writing) -> None:
        self.model, self.path, self.scale, self.load, self.writing = model, path, scale, load, writing
        self.truth = text_outputs(model.library_model)

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the form, in ``dtype``, to ``folder``."""
        self.writing(self, folder, dtype)

    def error(self, folder: Path) -> float:
        """The relative error of the model's logits as what ``folder`` holds."""
        return relative_error(text_outputs(self.load(str(folder)).library_model), self.truth)

    def facts(self) -> dict[str, object]:
        """What is said of the form besides."""
        return {"notes": []}


Writing = Callable[[TextForm, Path, torch.dtype], None]


def merged_text_form(model: TokenModel, path: str, scale: float, load: Load) -> TextForm:
    """A transformers folder with its tokenizer."""
    return TextForm(model, path, scale, load, _write_merged)


def peft_text_form(model: TokenModel, path: str, scale: float, load: Load) -> TextForm:
    """The adapter alone, with the tokenizer: ``adapter_config.json`` with r and lora_alpha names the base.

    Raises UserError where the model has no adapter.
    """
    if not is_adapter(path):
        raise UserError(f"{path}: a whole model, not an adapter over one", "take the format `merged`")
    return TextForm(model, path, scale, load, _write_peft)


def _write_merged(form: TextForm, folder: Path, dtype: torch.dtype) -> None:
    form.model.library_model.to(dtype)
    form.model.save(form.model.network, folder)  # type: ignore[arg-type]


def _write_peft(form: TextForm, folder: Path, dtype: torch.dtype) -> None:
    state = load_file(Path(form.path).expanduser() / SAFETENSORS_WEIGHTS_NAME)
    cast = {key: value.to(dtype).contiguous() for key, value in state.items()}
    save_file(cast, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config = scaled_adapter(form.path, form.scale)
    if isinstance(config.target_modules, set):  # a set comes out in another order in another process
        config.target_modules = sorted(config.target_modules)
    with quiet():
        config.save_pretrained(folder)
        form.model.tokenizer.save_pretrained(folder)
