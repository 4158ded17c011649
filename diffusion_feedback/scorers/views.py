"""How the published scorers cut a picture to the square that their image tower takes.

A view is a small frozen callable: one image of any size and mode to (3, S, S) float32. Its ``id`` is the part of a
recipe id that names all of it. Images of every mode go through ``pixels.to_rgb`` first, so that a file has one score
however it was opened. The published pipelines do not all agree there: OpenAI's clip and torchvision scale palette and
bilevel pictures before they make them RGB, by the nearest pixel.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from ..errors import UserError
from ..pixels import resample, to_rgb

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

Channels = tuple[float, float, float]
Centre = Literal["floor", "nearest"]
Resampling = Literal["antialias", "legacy"]

_PIL_12 = "5ecfb525"  # what ``_resampler`` finds under Pillow 12.0, 12.1, 12.2, 12.3 and 13.0
_BICUBIC = 3  # Pillow's number, as it stands in a preprocessor_config.json


@dataclass(frozen=True, slots=True)
class CropView:
    """Shortest edge to ``resize`` by Pillow's bicubic filter, the central ``size`` square, / 255, normalised.

    ``centre`` says where the square begins when an odd number of rows is left over: "floor" is transformers'
    CLIPImageProcessor, with which PickScore was made; "nearest" (a half to the even neighbour) is torchvision's
    CenterCrop, with which OpenAI's clip and open_clip cut. They differ by one row where the excess is 3, 7, 11, ...
    Equal to those two pipelines bit for bit for grey and RGB pictures, under Pillow up to 12: there columns are scaled
    before rows. Pillow 13 scales the rows of pictures more than twice as tall as wide first; this does not.
    """

    size: int = 224
    resize: int = 224
    centre: Centre = "floor"
    mean: Channels = OPENAI_MEAN
    std: Channels = OPENAI_STD

    @property
    def id(self) -> str:
        """As in "pil12-crop-224": the resampler; what differs from OpenAI's and transformers' way is added."""
        parts = [_resampler(), "crop", str(self.size)]
        parts += [f"of-{self.resize}"] if self.resize != self.size else []
        parts += [self.centre] if self.centre != "floor" else []
        return "-".join(parts) + _normalisation_id(self.mean, self.std)

    def __call__(self, image: Image.Image) -> Tensor:
        """Cut ``image`` to (3, S, S). Raises UserError for one so narrow that scaling passes Pillow's size limit."""
        rgb = to_rgb(image)
        height, width = self._scaled(rgb.height, rgb.width)
        down, across = height - self.size, width - self.size
        top, left = (down // 2, across // 2) if self.centre == "floor" else (round(down / 2), round(across / 2))
        # Scaling all of it, as the published pipelines do: cut-outs of the source are not the same to the last bit.
        square = resample(rgb, (width, height), Image.Resampling.BICUBIC)
        return _normalise(_levels(square.crop((left, top, left + self.size, top + self.size))), self.mean, self.std)

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        short, long = min(height, width), max(height, width)
        longer = int(self.resize * long / short)
        if Image.MAX_IMAGE_PIXELS is not None and longer * self.resize > Image.MAX_IMAGE_PIXELS:
            raise UserError(f"an image of {width} x {height} pixels is too narrow to be scored", "leave it out")
        return (longer, self.resize) if width <= height else (self.resize, longer)


@dataclass(frozen=True, slots=True)
class LetterboxView:
    """HPSv2's view (arXiv:2306.09341): longest side to ``size``, black bars to a square, then normalised.

    The picture is scaled as a float tensor by torchvision's bicubic filter; what overshoots [0, 1] stays. Sizes are
    rounded half to even, the bars are equal with the odd row below and on the right, and black before normalisation.
    ``resampling``: "antialias" is what the published code does on torchvision 0.17 and later, "legacy" what it did
    before, when its scores were published. The two differ wherever the picture is scaled: without antialiasing
    torchvision takes another cubic kernel (-0.75 for -0.5), so when it is scaled up too.

    Unlike the published code this also puts the bars around a picture whose longest side is ``size`` already; that
    code returns such a picture unless it is square in its own shape, at which the tower breaks.
    """

    size: int = 224
    resampling: Resampling = "antialias"
    mean: Channels = OPENAI_MEAN
    std: Channels = OPENAI_STD

    @property
    def id(self) -> str:
        """As in "tensor-antialias-224"."""
        return f"tensor-{self.resampling}-{self.size}" + _normalisation_id(self.mean, self.std)

    def __call__(self, image: Image.Image) -> Tensor:
        """Fit ``image`` into (3, S, S)."""
        pixels = _levels(to_rgb(image))
        height, width = pixels.shape[-2:]
        scale = self.size / max(height, width)
        if scale != 1:
            # A line of 1 x 1000 px would vanish.
            height, width = max(1, round(height * scale)), max(1, round(width * scale))
            antialias = self.resampling == "antialias"
            pixels = transforms.resize(pixels, [height, width], InterpolationMode.BICUBIC, antialias=antialias)
        down, across = self.size - height, self.size - width
        bars = [across // 2, across - across // 2, down // 2, down - down // 2]
        return _normalise(torch.nn.functional.pad(pixels, bars), self.mean, self.std)


def crop_view(config: Mapping[str, object] | None, image_size: int, source: str) -> CropView:
    """The view that a ``preprocessor_config.json`` describes; OpenAI's for ``image_size`` where there is none (None).

    ``image_size`` is what the image tower takes. Raises UserError naming ``source`` for another kind of
    preprocessing and for a size that does not fit the tower.
    """
    if config is None:
        return CropView(image_size, image_size)
    wrong = [key for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize") if config.get(key) is False]
    if wrong:
        raise _foreign(source, f"{wrong[0]} is false", "true")
    if config.get("resample", _BICUBIC) != _BICUBIC:
        raise _foreign(source, f"resample is {config['resample']!r}", f"{_BICUBIC} (bicubic)")
    factor = config.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or not abs(factor * 255 - 1) <= 1e-6:
        raise _foreign(source, f"rescale_factor is {factor!r}", "1 / 255")
    given = config.get("size", image_size), config.get("crop_size", image_size)
    resize = given[0].get("shortest_edge") if isinstance(given[0], Mapping) else given[0]
    sides = [given[1].get("height"), given[1].get("width")] if isinstance(given[1], Mapping) else [given[1]]
    if not isinstance(resize, int) or resize < image_size:
        raise _foreign(source, f"size is {given[0]!r}", f'{{"shortest_edge": {image_size}}}')
    if any(side != image_size for side in sides):
        raise _foreign(source, f"crop_size is {given[1]!r}", f"{image_size}, the size of the image tower")
    mean = _channels(config.get("image_mean", OPENAI_MEAN), "image_mean", source)
    std = _channels(config.get("image_std", OPENAI_STD), "image_std", source)
    if min(std) <= 0:
        raise _foreign(source, f"image_std is {std}", "three numbers above 0")
    return CropView(image_size, resize, mean=mean, std=std)


def _foreign(source: str, problem: str, wanted: str) -> UserError:
    return UserError(f"{source}: {problem}", f"CLIP scorers are preprocessed with {wanted}; correct the file")


def _channels(values: Any, key: str, source: str) -> Channels:
    try:
        red, green, blue = (float(value) for value in values)
        if not all(map(math.isfinite, (red, green, blue))):
            raise ValueError("not finite")
    except (TypeError, ValueError) as error:
        raise _foreign(source, f"{key} is {values!r}", "three numbers") from error
    return red, green, blue


def _normalisation_id(mean: Channels, std: Channels) -> str:
    if (mean, std) == (OPENAI_MEAN, OPENAI_STD):
        return ""
    return "-norm-" + hashlib.sha256(json.dumps([mean, std]).encode()).hexdigest()[:6]


@cache
def _resampler() -> str:
    """The resampler of the Pillow in use: "pil12" where it is that of Pillow 12.0 to 13.0, else "pil-" and a hash.

    Recognised by what it does to a small picture, enlarged and reduced in both directions: a version number would neither
    know of versions to come nor of builds whose arithmetic is another.
    """
    rows, columns = np.mgrid[:23, :29]
    probe = (rows * rows * 37 + columns * 91 + rows * columns * 13) % 256
    image = Image.fromarray(np.stack([probe, probe[::-1], 255 - probe], -1).astype(np.uint8))
    sizes = ((11, 23), (29, 7), (64, 23), (29, 61))
    scaled = (image.resize(size, Image.Resampling.BICUBIC).tobytes() for size in sizes)
    digest = hashlib.sha256(b"".join(scaled)).hexdigest()[:8]
    return "pil12" if digest == _PIL_12 else f"pil-{digest}"


def _levels(image: Image.Image) -> Tensor:
    """(3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)


def _normalise(pixels: Tensor, mean: Channels, std: Channels) -> Tensor:
    shape = (3, 1, 1)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)
