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


class MergedTextForm:
    """A transformers folder with its tokenizer; an adapter is part of the ``model``'s weights since it was loaded.

    ``path`` is where the model came from, ``scale`` what its adapter was multiplied by, and ``load`` loads a folder of its
    family.
    """

    def __init__(self, model: TokenModel, path: str, scale: float, load: Load) -> None:
        self.model, self.path, self.scale, self.load = model, path, scale, load
        self.truth = text_outputs(model.library_model)

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the form, in ``dtype``, to ``folder``: from float32 on, the model is in it."""
        self.model.library_model.to(dtype)
        self.model.save(self.model.network, folder)  # type: ignore[arg-type]

    def facts(self) -> dict[str, object]:
        """What is said of the form besides."""
        return {"notes": []}

    def error(self, folder: Path) -> float:
        """The relative error of the model's logits as what ``folder`` holds."""
        return relative_error(text_outputs(self.load(str(folder)).library_model), self.truth)


class PeftTextForm(MergedTextForm):
    """The adapter alone, with the tokenizer: ``adapter_config.json`` with r and lora_alpha names the base.

    Raises UserError where the model has no adapter.
    """

    def __init__(self, model: TokenModel, path: str, scale: float, load: Load) -> None:
        if not is_adapter(path):
            raise UserError(f"{path}: a whole model, not an adapter over one", "take the format `merged`")
        super().__init__(model, path, scale, load)

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        state = load_file(Path(self.path).expanduser() / SAFETENSORS_WEIGHTS_NAME)
        cast = {key: value.to(dtype).contiguous() for key, value in state.items()}
        save_file(cast, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        config = scaled_adapter(self.path, self.scale)
        if isinstance(config.target_modules, set):  # a set comes out in another order in another process
            config.target_modules = sorted(config.target_modules)
        with quiet():
            config.save_pretrained(folder)
            self.model.tokenizer.save_pretrained(folder)
