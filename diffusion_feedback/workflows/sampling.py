"""A model and its settings to a sampler, for the commands that generate."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..devices import find_device

if TYPE_CHECKING:
    from PIL import Image

    from ..generation import Sampler

_MODEL_FILES = ("model_index.json", "config.json", "adapter_config.json")
_LARGEST = 8192  # px
_STRONGEST = 1000  # of guidance: beyond, all pictures are noise
_SETTINGS = ("num_inference_steps", "guidance_scale", "negative_prompt", "height", "width")


@dataclass(frozen=True, slots=True)
class LoadedSampler:
    """A loaded model that turns prompts and seeds to images, with all that decides what comes out."""

    sampler: Sampler
    model_hash: str
    settings: Mapping[str, Any]
    count_truncated: Callable[[Sequence[str]], int]

    def note_truncated(self, prompts: Sequence[str]) -> None:
        """Say how many of ``prompts`` are longer than the text encoder reads."""
        cut = self.count_truncated(prompts)
        if cut:
            print(
                f"note: {cut} of {len(prompts)} prompts are longer than the text encoder reads; their ends are ignored"
            )


def add_sampling_flags(parser: argparse.ArgumentParser, *, families: str = "sd or sdxl (default sd)") -> None:
    """The flags that say which weights a model has, and how images are drawn from it."""
    add = parser.add_argument
    add("--family", default="sd", help=f"model family: {families}")
    add("--lora", help="folder, file or hub id of LoRA weights, or a checkpoint of a LoRA run")
    add("--revision", help="branch, tag or commit on the hub")
    add("--variant", help="weight variant, such as fp16")
    add(
        "--num_inference_steps", "--num-inference-steps", type=int, default=30, help="steps of the sampler (default 30)"
    )
    add("--guidance_scale", "--guidance-scale", type=float, default=7.5, help="classifier-free guidance (default 7.5)")
    add("--negative_prompt", "--negative-prompt", help="what the images should not show")
    add("--height", type=int, help="px; the model's own by default")
    add("--width", type=int, help="px; the model's own by default")


def check_sampling_flags(arguments: argparse.Namespace) -> None:
    """Raise UserError for a number of steps, seeds or a size that no sampler takes."""
    from ..errors import UserError

    if arguments.num_inference_steps < 1:
        raise UserError(f"--num_inference_steps: got {arguments.num_inference_steps}", "allowed: 1 or more")
    if min(arguments.seeds) < 0 or len(set(arguments.seeds)) < len(arguments.seeds):
        raise UserError(f"--seeds: got {arguments.seeds}", "allowed: distinct numbers, 0 or more")
    for name in ("height", "width"):
        value = getattr(arguments, name)
        if value is not None and (not 8 <= value <= _LARGEST or value % 8):
            raise UserError(f"--{name}: got {value}", f"allowed: multiples of 8, up to {_LARGEST}")
    if not 0 <= arguments.guidance_scale <= _STRONGEST:
        problem = f"--guidance_scale: got {arguments.guidance_scale}"
        raise UserError(problem, f"allowed: 0 to {_STRONGEST}; 1 and less is no guidance, 7.5 is usual")
    if arguments.negative_prompt and arguments.guidance_scale <= 1:
        problem = (
            f"--negative_prompt: means nothing with --guidance_scale {arguments.guidance_scale}, which is no guidance"
        )
        raise UserError(problem, "leave it out, or give a scale above 1")


def take_lora_run(arguments: argparse.Namespace) -> None:
    """Where MODEL is a LoRA run, or a checkpoint of one: take base and adapter from it. Raises UserError where it has none."""
    from ..catalog import family_row
    from ..documents import read_yaml
    from ..errors import UserError
    from ..foreign import check_exists, reading

    folder = Path(arguments.model or "").expanduser()
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    path = run / "recipe.yaml"
    if not path.is_file() or any((folder / name).is_file() for name in _MODEL_FILES):
        return
    remedy = "give the base as MODEL, and the weights as --lora"
    with reading(path, "the recipe of a run", remedy):
        model = read_yaml(path, remedy)["model"]
        base, tuning = model["pretrained_model_name_or_path"], model["tuning"]
        text = family_row(model["family"]).reads_text
    if text or tuning != "lora":
        what = "a checkpoint, which holds no whole model" if run != folder else "a run that has not come to its end"
        raise UserError(f"{arguments.model}: {what}", "continue the run with --resume, and give its folder")
    if arguments.lora:
        raise UserError(f"--lora: {arguments.model} is itself a LoRA run, on {base}", f"give {base} and one --lora")
    for name, default in (("family", "sd"), ("revision", None), ("variant", None)):
        given = getattr(arguments, name)
        if given not in (None, default, model[name]):
            raise UserError(f"--{name}: got {given!r}, {path} says {model[name]!r}", "leave it out")
        setattr(arguments, name, model[name])
    check_exists(base, f"{path} names it as the base: give the base as MODEL, and {arguments.model} as --lora")
    print(f"{arguments.model}: a LoRA run on {base}, which is loaded with it")
    arguments.model, arguments.lora = base, str(folder)


def load_sampler(arguments: argparse.Namespace, *, dtype: str) -> LoadedSampler:
    """Load ``arguments.model`` in ``dtype`` on ``arguments.device`` (the best there is for None). Raises UserError."""
    import torch

    from ..catalog import resolve
    from ..errors import UserError

    if arguments.device:
        find_device(arguments.device)
    denoiser = resolve("family", arguments.family)(
        arguments.model,
        revision=arguments.revision,
        variant=arguments.variant,
        dtype=getattr(torch, dtype),
        device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )
    if arguments.lora:
        print(denoiser.load_lora(arguments.lora))
    if arguments.num_inference_steps > denoiser.process.num_timesteps:
        problem = f"--num_inference_steps: got {arguments.num_inference_steps}"
        raise UserError(problem, f"allowed: up to {denoiser.process.num_timesteps}, the timesteps of the model")
    if (arguments.height is None) != (arguments.width is None):
        # diffusers ignores one side without the other.
        arguments.height = arguments.height or denoiser.resolution
        arguments.width = arguments.width or denoiser.resolution
    settings = {name: getattr(arguments, name) for name in _SETTINGS if getattr(arguments, name) is not None}

    def sampler(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        call = dict(settings)
        if "negative_prompt" in call:
            call["negative_prompt"] = [call["negative_prompt"]] * len(prompts)
        images: list[Image.Image] = denoiser.sample(denoiser.network, prompts, seeds, **call)
        return images

    return LoadedSampler(sampler, denoiser.model_hash(), {**settings, "dtype": dtype}, denoiser.count_truncated)
