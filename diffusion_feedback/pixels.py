"""Decoded images of any mode to RGB: the one rule by which training, scoring and reports see the same picture."""

from __future__ import annotations

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy of ``image`` in RGB: transparency is laid on white, 16-bit grey is scaled to 8 bits.

    Palette, grey and CMYK images go through Pillow's own conversion. Always a copy, so that the file behind ``image``
    may be closed.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255; 65535 / 257 is 255 exactly.
        grey = np.asarray(image).astype(np.float64).clip(0, 65535)
        return Image.fromarray(np.rint(grey / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
