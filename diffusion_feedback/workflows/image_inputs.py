"""Which images a call is given, with which prompts, from whatever form they stand in."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import Image

from ..data.image_folders import is_image_name
from ..data.image_handles import PairImage
from ..data.image_lists import dataset_images, listed_images
from ..data.image_sets import ImageSet, open_image_set
from ..data.places import is_dataset, is_glob
from ..data.texts import says_texts
from ..errors import UserError
from ..folders import at_home
from ..prompts import prompt_file, read_prompts
from ..records import PromptRecord
from .settings import ImageSettings

if TYPE_CHECKING:
    from ..data.places import Dataset

logger = logging.getLogger(__name__)

Images: TypeAlias = "str | Path | Image.Image | Dataset | Iterable[str | Path | Image.Image | Dataset]"
"""Images as users hold them, one by itself or several: see ``open_inputs``."""

Prompts = str | Path | Sequence[str] | None
"""One prompt of all images, a file of prompts, one prompt for each image, or none: those that come with the images."""


def open_inputs(images: Images, prompts: Prompts = None, settings: ImageSettings | None = None) -> ImageSet:
    """The images with their prompts; how they were found is noted in the log.

    ``images``: a PIL image, the path of an image, folder, glob or pairs (see ``open_image_set``), a ``datasets.Dataset``,
    or a list of these. A list of PIL images or of single files keeps its order, ``prompts`` being in the same.
    Raises UserError for images that are not there, and prompts and settings that do not fit.
    """
    settings = settings or ImageSettings()
    given = _listed(images)
    if prompts is not None and settings.prompt is not None:
        raise UserError("`prompts` and `prompt`: both are given", "give one of the two")
    file = prompt_file(prompts)
    texts: Any = (
        settings.prompt if settings.prompt is not None else read_prompts(file) if file else _listed_prompts(prompts)
    )
    if isinstance(texts, str) and not texts.strip():
        raise UserError("`prompts`: is empty", "give a prompt of at least one character")
    are_paths = all(isinstance(each, str | Path) for each in given)
    if are_paths and (file or texts is None or isinstance(texts, str) or not all(map(_is_single, given))):
        image_set = _at_paths([at_home(str(each)) for each in given], texts, settings)
    else:
        image_set = _of_objects(given, [record.prompt for record in texts] if file else texts)
    from_places = are_paths and any(isinstance(item.handle, PairImage) for item in image_set.items)
    for name in () if from_places else ("split", "revision", "columns"):
        if getattr(settings, name) != getattr(ImageSettings(), name):
            problem = f"`{name}`: means nothing for these images"
            raise UserError(problem, "leave it out: it chooses a part of a data set of pairs")
    return image_set


def _of_objects(given: Sequence[Any], texts: Sequence[str] | str | None) -> ImageSet:
    """The images of a data set, or pictures and files in the order ``given``, each with its own of ``texts``."""
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


def _at_paths(
    paths: Sequence[str], texts: str | Sequence[PromptRecord | str] | None, settings: ImageSettings
) -> ImageSet:
    """The images of ``paths``; ``texts``: one prompt of all of them, or several, with what a file says of them."""
    for path in paths:
        if says_texts(path):
            raise UserError(
                f"{path}: holds texts, and this is for images",
                "give images; judge compares texts, and rounds learn from them",
            )
    one, several = (texts, None) if isinstance(texts, str) else (None, texts)
    where: dict[str, Any] = {"split": settings.split, "revision": settings.revision, "columns": settings.columns}
    images = open_image_set(paths, prompts=several, prompt=one, **where)
    for note in images.notes:
        logger.warning("note: %s", note)
    return images


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


def _listed_prompts(prompts: Prompts) -> Prompts:
    """The ``prompts`` of a column or another sequence as a list."""
    if prompts is None or isinstance(prompts, str):
        return prompts
    try:
        return list(prompts)  # type: ignore[arg-type]
    except TypeError as error:
        raise UserError(f"`prompts`: got a {type(prompts).__name__}", "give a text, or a list of them") from error


def _is_single(path: str | Path) -> bool:
    return is_image_name(str(path)) and not is_glob(str(path)) and not Path(path).is_dir()
