"""Prompts and a model to samples: images with their manifest, or completions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, cast

from ..data.samples import image_samples, text_samples
from ..data.texts import open_prompts
from ..errors import UserError, plural
from ..generation.completions import COMPLETIONS, complete_prompts
from ..generation.images import generate_images
from ..likelihoods.conversations import as_turns
from ..prompts import check_prompts, prompt_file, read_prompts, to_prompt
from ..records import CompletionRecord, ImageRecord, Message, Text
from ..types.models import Tokenizer
from .outputs import hold_output
from .sampling import (
    ImageSampler,
    TextSampler,
    base_of_lora_run,
    folder_or_id,
    loaded_model_of,
    open_image_sampler,
    open_text_sampler,
    writes_texts,
)
from .settings import (
    CompletionSampling,
    GenerationSettings,
    ImageSampling,
    ModelSource,
    made_of_keywords,
    refuse,
    shows,
)

if TYPE_CHECKING:
    from ..data.places import Dataset

logger = logging.getLogger(__name__)

Prompts = str | Path | Sequence[str | Sequence[Message]]
"""A list of texts or conversations, one text, or a file of prompts."""

_OF_IMAGES = ("lora", "variant", *ImageSampling.__slots__)
_OF_TEXTS = ("tokenizer", *CompletionSampling.__slots__)


_KINDS = (GenerationSettings, ModelSource, ImageSampling, CompletionSampling)


@shows(*_KINDS)
def generate(
    model: object,
    prompts: Prompts,
    *,
    tokenizer: Tokenizer | None = None,
    output_dir: str | Path | None = None,
    **settings: object,
) -> Dataset:
    """Draw one image, or some completions, of each prompt under each seed.

    ``model``: a folder or hub id, the result of ``train``, a loaded diffusers pipeline, or a transformers model with its
    ``tokenizer``. ``prompts``: a list of texts (or of conversations, for a language model), one text, or a file of prompts.
    ``settings`` are the fields of GenerationSettings, of ModelSource, and of ImageSampling or CompletionSampling.

    ``output_dir`` becomes an imagefolder, or holds completions.jsonl; the same call goes on there after a kill. Returns a
    ``datasets.Dataset``: prompt, seed and image, or prompt, completion, seed, sample and is_finished, prompt by prompt.
    A sample depends on its own prompt and seed alone, up to rounding; a model that is loaded is as it came at the end. Raises UserError for settings that are out of range
    or mean nothing to the model, for a model or prompts that cannot be read, and a folder with samples of other settings.
    """
    with loaded_model_of(model, tokenizer) as (own_model, own_tokenizer):
        return _samples(own_model, prompts, own_tokenizer, output_dir, settings)


def _samples(
    model: object,
    prompts: Prompts,
    tokenizer: Tokenizer | None,
    output_dir: str | Path | None,
    settings: Mapping[str, object],
) -> Dataset:
    generation, source, images, completions = made_of_keywords(settings, *_KINDS)
    path = folder_or_id(model)
    if path is None:
        refuse(settings, ModelSource.__slots__, "for a model that is loaded already")
    else:
        model, source = path, source = base_of_lora_run(path, source)
    is_text = writes_texts(model, source.family)
    unfit, what = (_OF_IMAGES, "writes texts") if is_text else (_OF_TEXTS, "makes images")
    taken = "" if path is None or Path(path).exists() else "is no folder here, and by its name "
    name = type(model).__name__ if path is None else path
    given = settings if tokenizer is None else {**settings, "tokenizer": tokenizer}
    refuse(given, unfit, f"for {name}, which {taken}{what}", "leave it out, or say with `family` what the model is")
    with hold_output(output_dir, "generate") as folder:
        if is_text:
            one = [prompts] if isinstance(prompts, str) else prompts
            texts = text_prompts(prompt_file(prompts) or one, in_turns=completions.wants_turns)
            text_sampler = open_text_sampler(model, source, completions, generation, tokenizer=tokenizer)
            samples = text_samples(complete(texts, text_sampler, folder, generation))
        else:
            captions = _captions(prompts)
            sampler = open_image_sampler(model, source, images, generation)
            drawn = [(each, folder / each.file_name) for each in draw_images(captions, sampler, folder, generation)]
            samples = image_samples(drawn, in_memory=output_dir is None)
    if output_dir is None:
        rmtree(folder, ignore_errors=True)
    return samples


def draw_images(
    prompts: Sequence[str], sampler: ImageSampler, folder: Path, generation: GenerationSettings
) -> list[ImageRecord]:
    """Draw an image of each of ``prompts`` under each seed into the imagefolder ``folder``; the records in order."""
    _note(sampler.notes(prompts))
    records = generate_images(
        prompts,
        generation.seeds,
        folder,
        sampler=sampler,
        model_hash=sampler.model.model_hash(),
        settings=sampler.settings,
        batch_size=generation.batch_size,
        origin=sampler.origin,
        overwrite=generation.overwrite,
    )
    logger.info("%s images in %s", len(records), folder)
    return records


def complete(
    prompts: Sequence[Text], sampler: TextSampler, folder: Path, generation: GenerationSettings
) -> list[CompletionRecord]:
    """Draw completions of each of ``prompts`` under each seed into a file in ``folder``; the records in order.

    Raises UserError where the folder holds something else.
    """
    _note(sampler.notes(prompts))
    path = folder / COMPLETIONS
    if others := sorted(each.name for each in folder.glob("[!.]*") if each.name != COMPLETIONS):
        raise UserError(f"{folder}: is there and holds {others[0]}", "choose another output_dir")
    records = complete_prompts(
        prompts,
        path,
        sampler=sampler,
        seeds=generation.seeds,
        num_samples=sampler.sampling.num_samples,
        model_hash=sampler.model.model_hash(),
        settings=sampler.settings,
        batch_size=generation.batch_size,
        overwrite=generation.overwrite,
    )
    ended = sum(record.is_finished for record in records)
    summary = (
        f"{plural(len(records), 'completion')} of {plural(len(prompts), 'prompt')}, {ended} of them came to their end"
    )
    logger.info("%s: %s", path, summary)
    return records


def _note(notes: Sequence[str]) -> None:
    for note in notes:
        logger.warning("note: %s", note)


def text_prompts(prompts: str | Path | Sequence[str | Sequence[Message]], *, in_turns: bool = False) -> list[Text]:
    """The different ones of ``prompts``: a list of them, or a file in any of the formats that are trained on.

    ``in_turns``: plain ones become the user's turn. What was left aside is noted in the log. Raises UserError for none.
    """
    given = all_text_prompts(prompts, say=lambda line: logger.warning("%s", line))
    texts = list({repr(prompt): prompt for prompt in given}.values())
    if not texts or not all(texts):
        raise UserError(
            f"`prompts`: {'one is empty' if texts else 'none is given'}", "give at least one character each"
        )
    if len(texts) < len(given):
        logger.warning("note: %d prompts, %d of them different; each is taken once", len(given), len(texts))
    return as_turns(texts) if in_turns else texts


def all_text_prompts(
    prompts: str | Path | Sequence[str | Sequence[Message]], say: Callable[[str], None] | None = None
) -> list[Text]:
    """``prompts``, a list of them or a file, as often as each stands there; ``say`` is handed what was left aside."""
    if isinstance(prompts, str | Path):
        return open_prompts(prompts, unique=False, say=say)
    check_prompts(prompts, or_turns=True)
    return [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in prompts]


def _captions(prompts: Prompts) -> list[str]:
    """The texts of ``prompts``. Raises UserError for none, and what is no text."""
    if file := prompt_file(prompts):
        return [record.prompt for record in read_prompts(file)]
    listed = [prompts] if isinstance(prompts, str) else list(cast(Sequence[str], prompts))
    check_prompts(listed)
    if not listed:
        raise UserError("`prompts`: none is given", "give at least one")
    return [to_prompt(prompt, f"`prompts`, item {number}").prompt for number, prompt in enumerate(listed)]
