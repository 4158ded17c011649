"""A model to a sampler of images, or of texts."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from ..catalog import family_row
from ..config.recipe import Recipe
from ..devices import best_device, find_device
from ..errors import UserError, plural, visible
from ..folders import at_home, expand
from ..foreign import check_exists
from ..generation.completions import Completion
from ..generation.images import own_noise
from ..likelihoods.conversations import read_template
from ..likelihoods.prompt_ends import open_ended
from ..likelihoods.tokenization import Tokenization
from ..models import loaded
from ..models.causal_lm import CausalLM
from ..models.single_files import is_single_file
from ..records import Text
from ..runs import recorded_model, run_of, weights_of
from ..types.models import Denoiser, Tokenizer
from .settings import CompletionSampling, GenerationSettings, ImageSampling, ModelSource
from .training.base_model import load_named_model, recorded_family, source_of
from .training.result import Run

logger = logging.getLogger(__name__)

_MODEL_FILES = ("model_index.json", "config.json", "adapter_config.json")
# Weights of images; those of texts have names of their own.
_SINGLE_FILE = re.compile(r"(?!model|pytorch_model|adapter_model).+\.(safetensors|ckpt)")


@dataclass(frozen=True, slots=True)
class ImageSampler:
    """A loaded diffusion model that turns prompts and seeds into images as ``sampling`` says.

    ``origin``: where it was loaded from, ``model_path`` and ``lora_path``, for manifests.
    """

    model: Denoiser
    sampling: ImageSampling
    dtype: torch.dtype | None
    lora_scale: float = 1.0
    origin: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_model(
        cls, model: Denoiser, sampling: ImageSampling, dtype: torch.dtype | None = None, lora_scale: float = 1.0
    ) -> ImageSampler:
        """A sampler of ``model``; manifests record ``dtype``, unless it is None, as what a recipe beside them says, and a
        ``lora_scale`` that the model was loaded with, unless it is 1.

        Raises UserError for more steps than the model has.
        """
        most = model.process.num_timesteps
        if sampling.num_inference_steps > most:
            problem = f"`num_inference_steps`: got {sampling.num_inference_steps}"
            raise UserError(problem, f"allowed: up to {most}, the timesteps of the model")
        if (sampling.height is None) != (sampling.width is None):
            # diffusers ignores one side without the other.
            height, width = sampling.height or model.resolution, sampling.width or model.resolution
            sampling = replace(sampling, height=height, width=width)
        return cls(model, sampling, dtype, lora_scale)

    @property
    def settings(self) -> dict[str, object]:
        """What a manifest of images records besides prompts, seeds and the hash of the model."""
        own: dict[str, object] = {"noise": "by prompt and seed"} if self.sampling.noise == "prompt" else {}
        if self.lora_scale != 1:
            own["lora_scale"] = self.lora_scale
        if self.dtype is not None:
            own["dtype"] = str(self.dtype).removeprefix("torch.")
        return {**self._call, **own}

    @property
    def _call(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self.sampling).items() if name != "noise" and value is not None}

    def notes(self, prompts: Sequence[str]) -> list[str]:
        """What should be known of ``prompts`` before they are drawn, in plain words."""
        cut = self.model.count_truncated(prompts)
        line = f"{cut} of {len(prompts)} prompts are longer than the text encoder reads; their ends are ignored"
        return [line] if cut else []

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """One image of each prompt, under its own seed."""
        sampler = own_noise(self._sample) if self.sampling.noise == "prompt" else self._sample
        return sampler(prompts, seeds)

    def _sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        call = self._call
        if "negative_prompt" in call:
            call["negative_prompt"] = [call["negative_prompt"]] * len(prompts)
        return self.model.sample(self.model.network, prompts, seeds, **call)


@dataclass(frozen=True, slots=True)
class TextSampler:
    """A loaded language model that turns prompts and seeds into completions as ``sampling`` says."""

    model: CausalLM
    sampling: CompletionSampling
    lora_scale: float = 1.0

    @classmethod
    def from_model(cls, model: CausalLM, sampling: CompletionSampling, lora_scale: float = 1.0) -> TextSampler:
        """A sampler of ``model``. Raises UserError where a completion leaves no room for a prompt."""
        most = sampling.max_new_tokens
        if most >= model.window:
            problem = f"{most} new tokens leave no room for a prompt in the model's window of {model.window}"
            raise UserError(problem, "draw fewer tokens")
        return cls(model, sampling, lora_scale)

    @property
    def settings(self) -> dict[str, object]:
        """What a file of completions records besides prompts, seeds and the hash of the model."""
        template = self.sampling.chat_template
        own: dict[str, object] = {"chat_template": read_template(template)} if template else {}
        if self.lora_scale != 1:
            own["lora_scale"] = self.lora_scale
        return {**self._call, **own, "dtype": str(self.model.library_model.dtype).removeprefix("torch.")}

    @property
    def _call(self) -> dict[str, Any]:
        return {name: getattr(self.sampling, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p")}

    @property
    def _tokenization(self) -> Tokenization:
        own = self.sampling
        return Tokenization(self.model.tokenizer, self.model.window, own.max_new_tokens, own.chat_template)

    def encode(self, prompts: Sequence[Text]) -> list[list[int]]:
        """Token ids of ``prompts``, cut at their beginning where they leave no room for a completion."""
        return self._tokenization.encode_prompts(prompts)

    def notes(self, prompts: Sequence[Text]) -> list[str]:
        """What should be known of ``prompts`` before they are completed, in plain words."""
        tokenizer, tokenization = self.model.tokenizer, self._tokenization
        tokenization.encode_prompts(prompts)
        notes = [*plain_note(prompts, tokenizer, "`as_turns`, or "), *tokenization.counts.notes()]
        if ends := open_ended(tokenizer, prompts):
            words = f"{plural(len(ends), 'prompt ends', 'prompts end')} inside what may be one token (the first: {visible(ends[0][-20:])!r})"
            notes.append(f"{words}: a model that learnt it whole cannot write its rest; leave a last space out")
        return notes

    def __call__(self, prompts: Sequence[Text], seeds: Sequence[int]) -> list[Completion]:
        """One completion of each prompt, under its own seed."""
        drawn = self.model.sample(self.model.network, self.encode(prompts), seeds, **self._call)
        ends = self.model.end_token_ids
        return [Completion(self.decode(ids), tuple(ids), bool(ids) and ids[-1] in ends) for ids in drawn]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a completion, without its end token and other special ones."""
        return self.model.tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def plain_note(prompts: Sequence[Text], tokenizer: Tokenizer, remedy: str) -> list[str]:
    """The line on plain prompts for a model that may know conversations alone; none where there are none."""
    plain = sum(isinstance(prompt, str) for prompt in prompts)
    if not plain or not tokenizer.chat_template:
        return []
    what = f"{plural(plain, 'prompt is plain text, and goes to the model as it is', 'prompts are plain texts, and go to the model as they are')} though it has a chat template"
    return [f'{what}: a chat model needs {remedy}turns ({{"prompt": [{{"role": "user", "content": ...}}]}})']


def open_image_sampler(
    model: object, source: ModelSource, sampling: ImageSampling, generation: GenerationSettings
) -> ImageSampler:
    """A sampler of ``model``: a folder, a hub id, or a pipeline of diffusers that is loaded. Raises UserError."""
    denoiser: Denoiser = open_model(model, source, generation)
    dtype = next(denoiser.network.parameters()).dtype
    sampler = ImageSampler.from_model(denoiser, sampling, dtype, source.lora_scale)
    places = {"model_path": model if isinstance(model, str) else None, "lora_path": source.lora}
    origin = {name: whole_path(place) for name, place in places.items() if place}
    return replace(sampler, origin=origin)


def whole_path(place: str) -> str:
    """The absolute path of ``place``; a hub id as it is."""
    path = expand(place)
    return str(path.resolve()) if path.exists() else place


def open_text_sampler(
    model: object,
    source: ModelSource,
    sampling: CompletionSampling,
    generation: GenerationSettings,
    *,
    tokenizer: Tokenizer | None = None,
) -> TextSampler:
    """A sampler of ``model``: a folder, a hub id, or a transformers model that is loaded, with its ``tokenizer``.

    Raises UserError where it cannot be used, and for one that writes no texts.
    """
    recorded = recorded_family(model) if isinstance(model, str) else None
    source = replace(source, family=source.family or recorded or "causal_lm")
    text_model: CausalLM = open_model(model, source, generation, tokenizer)
    if not hasattr(text_model, "sample"):
        name = model if isinstance(model, str) else type(model).__name__
        raise UserError(f"{name}: reads texts, and writes none", "give a causal language model")
    return TextSampler.from_model(text_model, sampling, source.lora_scale)


def validation_sampler(recipe: Recipe, path: str, lora: str | None = None) -> ImageSampler:
    """A sampler of the model at ``path`` as ``recipe`` draws for validation, each image from noise of its own.

    Its manifests leave out the precision, which the recipe beside them tells.
    """
    validation, source = recipe.validation, replace(source_of(recipe, path), lora=lora)
    sampling = ImageSampling(
        num_inference_steps=validation.num_inference_steps, guidance_scale=validation.guidance_scale, noise="prompt"
    )
    denoiser = load_named_model(path, source, dtype=recipe.model.dtype, device=best_device())
    return ImageSampler.from_model(denoiser, sampling)


def open_model(
    model: object, source: ModelSource, generation: GenerationSettings, tokenizer: Tokenizer | None = None
) -> Any:
    """What samples are drawn from: a folder or hub id is loaded; over a model that is loaded already it is made.

    Raises UserError where it cannot be used, and for a ``tokenizer`` of what is not loaded.
    """
    dtype, device = generation.dtype, generation.device
    if isinstance(model, str):
        if tokenizer is not None:
            raise UserError("`tokenizer`: comes with a loaded model alone", f"leave it out: {model} has its own")
        return load_named_model(model, source, dtype=dtype or "float32", device=best_device(device))
    own = getattr(torch, dtype) if dtype else cast(Any, model).dtype
    return loaded.from_loaded(model, tokenizer, dtype=own, device=find_device(device) if device else None)


def adapts_object(model: object) -> bool:
    """Whether ``model`` is a run that has tuned, by adapters, a model that was handed in: no folder names its base."""
    return isinstance(model, Run) and model.given.model is not None and not model.is_whole


@contextmanager
def loaded_model_of(model: object, tokenizer: Tokenizer | None = None) -> Iterator[tuple[object, Tokenizer | None]]:
    """``model`` and ``tokenizer``; of a run over a model that was handed in, that model with the run's adapters.

    A model that is loaded is as it came at the end.
    """
    own = model.given.model if isinstance(model, Run) else model
    with loaded.as_it_came(own):
        if isinstance(model, Run) and adapts_object(model):
            yield loaded.unwrapped(model.load()), tokenizer or model.given.tokenizer
        else:
            yield model, tokenizer


def folder_or_id(model: object) -> str | None:
    """The folder or hub id that ``model`` is or, as the result or a step of a run, has; None where it is loaded already.

    Raises UserError for a step that is not there.
    """
    path = getattr(model, "path", model)
    return weights_of(at_home(str(path))) if isinstance(path, str | Path) else None


def writes_texts(model: object, family: str | None = None) -> bool:
    """Whether ``model`` writes texts: by its ``family`` where that is given, its class where it is loaded, else by the files
    of its folder.

    Raises UserError for a path without a model.
    """
    if not isinstance(model, str):
        return family_row(loaded.family_of(model)).reads_text
    if family:
        return family_row(family).reads_text
    folder = Path(model)
    is_path = folder.exists() or model.count("/") > 1 or model.startswith((".", "/", "~"))
    is_model = any((folder / name).is_file() for name in _MODEL_FILES)
    if is_single_file(model):
        return False
    if not is_model and any(
        _SINGLE_FILE.fullmatch(file.name) for file in (folder, *folder.glob("*")) if file.is_file()
    ):
        return False  # a single file or a LoRA: the loader of pipelines says what to do with it
    if is_path and not is_model:
        what = "no such folder" if not folder.exists() else f"holds none of {', '.join(_MODEL_FILES)}"
        raise UserError(f"{model}: {what}", "give the folder or hub id of a model; the folder of a finished run is one")
    return is_model and not (folder / "model_index.json").is_file()


def base_of_lora_run(path: str, source: ModelSource) -> tuple[str, ModelSource]:
    """Base and adapter of the LoRA run, or the checkpoint of one, at ``path``; of all else ``path`` and ``source`` as they are.

    Raises UserError for a run whose weights cannot be taken so, and where ``source`` contradicts its recipe.
    """
    folder = Path(path)
    run = run_of(folder)
    keys, remedy = ("family", "revision", "variant"), "give the base as the model, and the weights as `lora`"
    model = recorded_model(folder, remedy, "pretrained_model_name_or_path", "tuning", *keys)
    if model is None or any((folder / name).is_file() for name in _MODEL_FILES):
        return path, source
    base, tuning = model["pretrained_model_name_or_path"], model["tuning"]
    recorded = {name: model[name] for name in keys} | {"model_config": model.get("config")}
    is_text = family_row(model["family"]).reads_text
    if is_text or tuning != "lora":
        what = "a checkpoint of an older version, which holds no model" if run != folder else "a run without a result"
        raise UserError(f"{path}: {what}", "continue the run with `resume`, and give its folder")
    if source.lora:
        raise UserError(f"`lora`: {path} is itself a LoRA run, on {base}", f"give {base} and one `lora`")
    for name, value in recorded.items():
        requested = getattr(source, name)
        if requested not in (None, value):
            raise UserError(f"`{name}`: got {requested!r}, {run / 'recipe.yaml'} says {value!r}", "leave it out")
    check_exists(base, f"{run / 'recipe.yaml'} names it as the base: give the base as the model, and {path} as `lora`")
    logger.info("%s: a LoRA run on %s, which is loaded with it", path, base)
    return base, ModelSource(lora=str(folder), lora_scale=source.lora_scale, **recorded)
