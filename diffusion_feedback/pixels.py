"""Decoded images of any mode to RGB: the one rule by which training, scoring and reports see the same picture."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image, ImageOps

from .errors import UserError

WAS_TRANSPARENT = "was_transparent"
"""Stands in the ``info`` of an image that ``to_rgb`` has laid on white."""


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy of ``image`` in RGB and upright: the turn of its EXIF is done, transparency is laid on white, 16-bit grey
    is scaled to 8 bits.

    Palette, grey and CMYK images go through Pillow's own conversion. Always a copy, so that the file behind ``image``
    may be closed. Raises UserError for pixels that are floating-point numbers.
    """
    if image.mode == "F":  # nobody knows which number is white
        raise UserError("its pixels are floating-point numbers", "convert the image to an 8-bit PNG")
    image.load()  # EXIF may stand behind the pixels
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255; 65535 / 257 is 255 exactly.
        grey = np.asarray(image).astype(np.float64).clip(0, 65535)
        return Image.fromarray(np.rint(grey / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        layered = image.convert("RGBA")
        opacity = layered.getchannel("A").getextrema()
        rgb = Image.alpha_composite(white, layered).convert("RGB")
        if opacity != (255, 255):
            rgb.info[WAS_TRANSPARENT] = True
        return rgb
    return image.convert("RGB")


def resample(image: Image.Image, size: tuple[int, int], filter: Image.Resampling) -> Image.Image:
    """``image`` scaled to ``size`` (width, height): columns first, then rows, each pass rounded to 8 bits.

    What Pillow up to 12 does in one call. Pillow 13 takes the rows of pictures more than twice as tall as wide first,
    which gives other numbers; in two calls training, its caches and scores are the same under both.
    """
    for passed in ((size[0], image.height), size):
        if passed != image.size:
            image = image.resize(passed, filter)
    return image
