"""The forms that results are exported in, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """A form of other tools.

    Args:
        holds: Adapters alone, or a whole model with these merged in.
        readers: Which tools read it.
        where: Where its file or folder goes in these tools.
        images: What writes results of images so, and reads them back: "module:attribute".
        texts: The same of texts; None where the form means nothing for them.
    """

    holds: Literal["adapters", "model"]
    readers: str
    where: str
    images: str
    texts: str | None = None


_MODELS = "diffusion_feedback.models.exports"

EXPORT_FORMATS: dict[str, ExportFormat] = {
    "diffusers": ExportFormat(
        "adapters",
        "diffusers, and tools that know its names: AI Toolkit, InvokeAI, SD.Next",
        "`load_lora_weights` of a pipeline",
        f"{_MODELS}.adapters:diffusers_form",
    ),
    "peft": ExportFormat(
        "adapters",
        "peft, and what is built on it: transformers, TRL, vLLM",
        "`PeftModel.from_pretrained`, over the network or the language model",
        f"{_MODELS}.adapters:peft_form",
        f"{_MODELS}.texts:peft_text_form",
    ),
    "kohya": ExportFormat(
        "adapters",
        "kohya's sd-scripts, A1111, Forge, ComfyUI, SwarmUI; diffusers too",
        "`models/Lora` of A1111 and Forge, `network_weights` of sd-scripts",
        f"{_MODELS}.adapters:kohya_form",
    ),
    "comfyui": ExportFormat(
        "adapters",
        "ComfyUI, in whose way it is read back; a file as of `kohya`",
        "`models/loras` of ComfyUI, by its node Load LoRA",
        f"{_MODELS}.adapters:comfyui_form",
    ),
    "merged": ExportFormat(
        "model",
        "diffusers; of texts transformers, vLLM and whatever reads its folders",
        "`from_pretrained`",
        f"{_MODELS}.whole:merged_form",
        f"{_MODELS}.texts:merged_text_form",
    ),
    "single_file": ExportFormat(
        "model",
        "ComfyUI, A1111, Forge; diffusers by `from_single_file`",
        "`models/checkpoints` of ComfyUI, `models/Stable-diffusion` of A1111",
        f"{_MODELS}.whole:single_file_form",
    ),
}
