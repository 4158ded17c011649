"""The flags of commands that draw images or completions: which weights, and how samples are drawn."""

from __future__ import annotations

import argparse

from ..workflows.settings import CompletionSampling, ImageSampling, ModelSource
from .settings import add_flags

SOURCE = {
    "lora": "folder, file or hub id of LoRA weights, or a checkpoint of a LoRA run",
    "lora_scale": "how much of the LoRA is added: 1 as it was trained, 0.5 half of it",
    "model_config": "of a model in one .safetensors file: folder or hub id of a pipeline with its configuration",
    "revision": "branch, tag or commit on the hub",
    "variant": "weight variant, such as fp16",
}


def add_sampling_flags(
    parser: argparse._ActionsContainer, *, families: str = "sd or sdxl (default sd)", noise: bool = False
) -> None:
    """The flags that say which weights a model has, and how images are drawn from it; ``noise``: and from which noise."""
    sampling = {
        "num_inference_steps": "steps of the sampler",
        "guidance_scale": "classifier-free guidance",
        "negative_prompt": "what the images should not show",
        "height": "px; the model's own by default",
        "width": "px; the model's own by default",
    }
    if noise:
        sampling["noise"] = (
            "start from the noise of the bare seed, as diffusers does, the same for every prompt; or from noise of its own "
            "for each prompt and seed, so that prompts are independent"
        )
    add_flags(parser, ModelSource, {"family": f"model family: {families}", **SOURCE})
    add_flags(parser, ImageSampling, sampling)


def add_completion_flags(parser: argparse._ActionsContainer) -> None:
    """The flags that say how completions are drawn."""
    helps = {
        "num_samples": "completions of each prompt under each seed",
        "max_new_tokens": "longest completion, in tokens",
        "temperature": "sampling temperature; 0 takes the likeliest token",
        "top_k": "draw from this many of the likeliest tokens; 0 for all",
        "top_p": "draw from the likeliest tokens of this share; 1 for all",
        "chat_template": "a Jinja chat template, in place of the tokenizer's own; plain prompts become the user's turn",
        "as_turns": "plain prompts become the user's turn of the chat template, as a chat model needs them",
    }
    add_flags(parser, CompletionSampling, helps, chat_template={"metavar": "FILE"})
