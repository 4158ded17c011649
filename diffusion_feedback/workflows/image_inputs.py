"""Which images a call is given, with which prompts, from whatever form they stand in."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import Image

from ..data.image_folders import is_image_name
from ..data.image_lists import dataset_images, listed_images
from ..data.image_sets import ImageSet, open_image_set
from ..data.places import is_dataset, is_glob
from ..data.texts import says_texts
from ..errors import UserError
from ..prompts import read_prompts
from .settings import ImageSettings

if TYPE_CHECKING:
    from ..data.places import Dataset

logger = logging.getLogger(__name__)

Images: TypeAlias = "str | Path | Image.Image | Dataset | Iterable[str | Path | Image.Image | Dataset]"
"""Images as users hold them, one by itself or several: see ``open_inputs``."""

Prompts = str | Path | Sequence[str] | None
"""One prompt of all images, a file of prompts, one prompt for each image, or none: those that come with the images."""

_PROMPT_FILES = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet")


def open_inputs(images: Images, prompts: Prompts = None, settings: ImageSettings | None = None) -> ImageSet:
    """The images with their prompts; how they were found is noted in the log.

    ``images``: a PIL image, the path of an image, folder, glob or pairs (see ``open_image_set``), a ``datasets.Dataset``,
    or a list of these. A list of PIL images or of single files keeps its order, ``prompts`` being in the same.
    Raises UserError for images that are not there, and prompts that do not fit.
    """
    settings = settings or ImageSettings()
    given = _listed(images)
    if prompts is not None and settings.prompt is not None:
        raise UserError("`prompts` and `prompt`: both are given", "give one of the two")
    file = _prompt_file(prompts)
    texts: Any = settings.prompt if settings.prompt is not None else None if file else prompts
    if isinstance(texts, str) and not texts.strip():
        raise UserError("`prompts`: is empty", "give a prompt of at least one character")
    are_paths = all(isinstance(each, str | Path) for each in given)
    if are_paths and (file or isinstance(images, str | Path) or not all(map(_is_single, given))):
        return open_places([str(each) for each in given], file or texts, settings)
    if file:
        texts = [record.prompt for record in read_prompts(str(file))]
    if not all(is_dataset(each) for each in given):
        pictures = [each for each in given if isinstance(each, Image.Image | str | Path)]
        if len(pictures) < len(given):
            other = next(each for each in given if not isinstance(each, Image.Image | str | Path))
            remedy = "give PIL images, paths or datasets.Dataset objects, one kind at a time"
            raise UserError(f"`images`: holds a {type(other).__name__}", remedy)
        return listed_images(pictures, texts)
    if len(given) > 1:
        raise UserError(f"`images`: {len(given)} data sets", "join them with datasets.concatenate_datasets")
    return dataset_images(given[0], texts)


def _listed(images: Images) -> list[Any]:
    if isinstance(images, str | Path | Image.Image) or is_dataset(images):
        return [images]
    try:
        given = list(images)
    except TypeError as error:
        remedy = "give PIL images, paths, a datasets.Dataset, or a list of these"
        raise UserError(f"`images`: got a {type(images).__name__}", remedy) from error
    if not given:
        raise UserError("`images`: is empty", "give at least one")
    return given


def _prompt_file(prompts: Prompts) -> Path | None:
    """The file that ``prompts`` names; a text that looks like the name of one is meant as such."""
    if isinstance(prompts, Path):
        return prompts
    is_file = isinstance(prompts, str) and prompts.lower().endswith(_PROMPT_FILES) and "\n" not in prompts
    return Path(str(prompts)) if is_file else None


def _is_single(path: str | Path) -> bool:
    return is_image_name(str(path)) and not is_glob(str(path)) and not Path(path).is_dir()


def open_places(paths: Sequence[str], prompts: Prompts, settings: ImageSettings) -> ImageSet:
    """The images of ``paths`` in natural order; ``prompts``: the file of them, or as for ``open_inputs``.

    Raises UserError as ``open_inputs`` does.
    """
    if prompts is not None and settings.prompt is not None and prompts != settings.prompt:
        raise UserError("`prompts` and `prompt`: both are given", "give one of the two")
    for path in paths:
        if says_texts(path):
            raise UserError(
                f"{path}: holds texts, and this is for images",
                "give images; judge compares texts, and rounds learn from them",
            )
    one = prompts if isinstance(prompts, str) else settings.prompt
    several = read_prompts(prompts) if isinstance(prompts, Path) else None if isinstance(prompts, str) else prompts
    images = open_image_set(paths, prompts=several, prompt=one, split=settings.split, revision=settings.revision)
    for note in images.notes:
        logger.warning("note: %s", note)
    return images
