"""Encoded image bytes to RGB images, and RGB images to the square pixels that a model is trained on."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from ..errors import UserError, is_out_of_memory
from ..pixels import resample, to_rgb
from ..records import content_hash
from ..types.images import ImageView

# Pillow knows many more formats, some of which start other programs; preference data has no need of them.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
FORMATS_NAMED = "PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF"

_STARTS = (
    (b"version https://git-lfs", "a git LFS pointer, as git lfs pull was never run"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "XML"),
    (b"%pdf", "a PDF"),
    (b"pk\x03\x04", "a zip archive"),
    (b"par1", "a parquet file"),
    (b"8bps", "a Photoshop image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cjxl ", "a JPEG XL image"),
    (b"\0\0\0\x0cjp  ", "a JPEG 2000 image"),
    (b"{", "JSON"),
)
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What an image says of itself: ``size`` is (width, height) of the upright image, px."""

    format: str
    mode: str
    size: tuple[int, int]
    is_animated: bool = False


@dataclass(frozen=True)
class EncodedImage:
    """Image bytes in memory as an ImageHandle; ``source`` says where they were read ("pairs.parquet, row 7")."""

    data: bytes
    source: str

    @cached_property
    def key(self) -> str:
        """Content hash of the bytes."""
        return content_hash(self.data)

    def open(self) -> Image.Image:
        """Decode to RGB. Raises UserError for bytes that are not an image."""
        return decode_image(self.data, self.source)

    def read(self) -> bytes:
        """The bytes."""
        return self.data


def image_header(data: bytes, source: str, *, decode: bool = False) -> ImageHeader:
    """Format, mode and size of the image ``data``; ``decode`` reads its pixels too, as a check.

    Raises UserError as decode_image does.
    """
    with _opened(data, source) as image:
        # Phones write a second view into JPEGs, which Pillow then calls MPO; nothing moves there.
        moves = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
        name, mode, size = image.format or "unknown", image.mode, image.size
        if image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS:
            size = (size[1], size[0])
        if decode:
            _upright_rgb(image, source)
        return ImageHeader(name, mode, size, moves)


def decode_image(data: bytes, source: str) -> Image.Image:
    """Decode PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF bytes to an upright RGB image.

    The EXIF orientation is applied, transparency is laid on white, 16-bit grey is scaled to 8 bits; of an animation
    the first frame is taken. Raises UserError naming ``source`` for bytes that are empty, cut off, not such an image,
    pixels that are floating-point numbers, or an image beyond Pillow's size limit (before memory is taken for it).
    """
    with _opened(data, source) as image:
        return _upright_rgb(image, source)


def _upright_rgb(image: Image.Image, source: str) -> Image.Image:
    try:
        return to_rgb(image)
    except UserError as error:
        raise UserError(f"{source}: {error.problem}", error.remedy) from error


@contextmanager
def _opened(data: bytes, source: str) -> Iterator[Image.Image]:
    if not data:
        raise UserError(f"{source}: the image is empty (0 bytes)", "replace or remove the image")
    try:
        with warnings.catch_warnings():
            # Notes about odd metadata do not matter here, but an image so large that Pillow warns must not be decoded.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        problem = f"{source}: the image has more than {Image.MAX_IMAGE_PIXELS} pixels"
        raise UserError(problem, "scale the image down, or remove it") from error
    except UserError:
        raise
    except UnidentifiedImageError as error:
        problem = f"{source}: not an image of {FORMATS_NAMED} (it is {_kind(data)})"
        raise UserError(problem, "replace or remove the image, or convert it to PNG") from error
    except Exception as error:
        # Pillow's plugins raise almost anything on broken bytes: OSError, SyntaxError, struct.error.
        if is_out_of_memory(error):  # the image may be fine
            raise
        raise UserError(f"{source}: broken image ({error})", "replace or remove the image") from error


def _kind(data: bytes) -> str:
    """What ``data`` looks like, in words. Never the bytes themselves: the file may be none that was meant to be read."""
    start = data[:512]
    if start[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypheif"):
        return "a HEIC image"
    if not start.strip(b"\0"):
        return "zeros only"
    begin = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    known = next((name for first, name in _STARTS if begin.startswith(first)), None)
    if known is not None:
        return known
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return "text" if error.start > len(start) - 4 else "data of another kind"  # cut within a character
    return "data of another kind" if b"\0" in start else "text"


def to_pixels(image: Image.Image, resolution: int, view: ImageView) -> tuple[Tensor, Tensor]:
    """Scale the shorter side of an RGB ``image`` to ``resolution``, cut a square at ``view.crop``, mirror it if requested.

    Returns pixels (3, R, R) float32 in [-1, 1], and SDXL's size conditioning (6,) float32: original height and
    width; top and left of the square in the scaled image (in the mirrored image, if mirrored); R and R.
    Raises UserError for an image so narrow that scaling it would pass Pillow's size limit.
    """
    width, height = image.size
    scale = resolution / min(width, height)
    scaled = (max(resolution, round(width * scale)), max(resolution, round(height * scale)))
    if Image.MAX_IMAGE_PIXELS is not None and scaled[0] * scaled[1] > Image.MAX_IMAGE_PIXELS:
        problem = f"an image of {width} x {height} pixels is too narrow for training at resolution {resolution}"
        raise UserError(problem, "remove it from the data")
    if scaled != image.size:
        image = resample(image, scaled, Image.Resampling.LANCZOS)
    left = round((scaled[0] - resolution) * view.crop[0])
    top = round((scaled[1] - resolution) * view.crop[1])
    array = np.array(image.crop((left, top, left + resolution, top + resolution)))
    if view.flip:
        array = array[:, ::-1].copy()
        left = scaled[0] - resolution - left
    pixels = torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1
    sizes = torch.tensor([height, width, top, left, resolution, resolution], dtype=torch.float32)
    return pixels.contiguous(), sizes
