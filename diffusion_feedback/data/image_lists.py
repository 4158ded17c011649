"""Images that a caller holds: pictures in memory, files in the caller's order, rows of a ``datasets.Dataset``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import ExifTags, Image

from ..errors import UserError
from ..pixels import to_rgb
from ..prompts import check_prompts
from ..types.images import ImageItem
from .captions import caption_beside
from .image_handles import ImageFile, RowImage
from .image_sets import ImageSet, images_of_pairs
from .images import EncodedImage
from .pair_layouts import names_two
from .places import GIVEN, undecoded, user_path
from .readers import find_source

if TYPE_CHECKING:
    from datasets import Dataset

_PLAIN_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")  # what a PNG holds without loss
_PROMPTS = ("prompt", "caption", "text")


def listed_images(images: Sequence[Image.Image | str | Path], prompts: Sequence[str] | str | None) -> ImageSet:
    """``images``, each with its prompt, in the order given.

    ``prompts``: one for each image, one for all, or None: that of the .txt beside a file, "" for a picture in memory.
    Raises UserError for another number of prompts.
    """
    texts = [prompts] * len(images) if isinstance(prompts, str) else prompts
    if texts is not None and len(texts) != len(images):
        raise UserError(f"{len(texts)} prompts for {len(images)} images", "give one prompt for each, or one for all")
    check_prompts(texts or ())
    items = []
    for number, image in enumerate(images):
        if isinstance(image, Image.Image):
            name, own = f"image {number}", ""
            handle: EncodedImage | ImageFile = EncodedImage(_png(image, name), name)
        else:
            name, handle = str(image), ImageFile(user_path(str(image)))
            own = caption_beside(handle.path) or "" if texts is None else ""
        items.append(ImageItem(name, own if texts is None else texts[number].strip(), handle))
    return ImageSet(items)


def dataset_images(data: Dataset, prompts: Sequence[str] | str | None) -> ImageSet:
    """The images of a ``datasets.Dataset``: of its one column of images, or of both of pairs.

    Prompts stand in a column prompt, caption or text, unless ``prompts`` are given: one for each row, or one for all.
    Raises UserError for a data set without such columns, and another number of prompts.
    """
    import datasets

    if names_two(data.column_names) or {"chosen", "rejected"} <= set(data.column_names):
        if prompts is not None:
            raise UserError("`prompts`: the pairs have their own", "leave it out")
        return ImageSet(images_of_pairs(find_source(data, split="train", revision=None, streaming=False), GIVEN))
    columns = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    if len(columns) != 1 and "image" not in columns:
        problem = f"the data set has {len(columns)} columns of images, of {', '.join(data.column_names)}"
        raise UserError(problem, "give one with a column of datasets.Image, or with pairs")
    column = "image" if "image" in columns else columns[0]
    own = next((name for name in _PROMPTS if name in data.column_names), None)
    if isinstance(prompts, str) or (prompts is None and own is None):
        texts: Sequence[str] = [prompts or ""] * len(data)
    else:
        texts = [text or "" for text in data[own]] if prompts is None else prompts
    if len(texts) != len(data):
        raise UserError(f"{len(texts)} prompts for {len(data)} rows", "give one prompt for each, or one for all")
    check_prompts(texts)
    rows = undecoded(data).select_columns([column])
    return ImageSet(
        [ImageItem(f"row {number}", text.strip(), RowImage(rows, number, column)) for number, text in enumerate(texts)]
    )


def _png(image: Image.Image, name: str) -> bytes:
    """The picture as a PNG without loss: what is scored is what a file of it would be."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    if turned or image.mode not in _PLAIN_MODES:
        try:
            image = to_rgb(image)
        except UserError as error:
            raise UserError(f"{name}: {error.problem}", error.remedy) from error
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
