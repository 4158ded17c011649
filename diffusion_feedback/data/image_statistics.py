"""Numbers that an image file says of itself without anybody seeing what it shows: size, sharpness, colours, JPEG quality."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, JpegImagePlugin

from ..pixels import resample
from .images import FORMATS, decode_image

IMAGE_STATISTICS: Mapping[str, tuple[str, str, str]] = {
    "size": ("larger", "smaller", "logarithm of the number of pixels"),
    "aspect ratio": ("wider", "narrower", "logarithm of width / height"),
    "file size": ("heavier", "lighter", "logarithm of the bytes of the file"),
    "jpeg quality": (
        "less compressed",
        "more compressed",
        "from the quantisation table, 1 to 100; of JPEG files alone",
    ),
    "sharpness": (
        "sharper",
        "softer",
        "logarithm of the mean square of the Laplacian of the luma, at no more than 512 px",
    ),
    "brightness": ("brighter", "darker", "mean luma, 0 to 1"),
    "contrast": ("starker", "flatter", "standard deviation of the luma, 0 to 1"),
    "saturation": ("more saturated", "less saturated", "mean saturation of HSV, 0 to 1"),
}
"""For each number the words for an image that has more of it, and less, and what it is."""

_LARGEST_SIDE = 512
_STANDARD_TABLE_SUM = 3692  # of the luma table of the JPEG standard (ITU-T T.81, table K.1), which is quality 50


def image_statistics(data: bytes, source: str) -> dict[str, float]:
    """The IMAGE_STATISTICS of the encoded image ``data``; NaN for what it does not have.

    Raises UserError naming ``source`` for what is no image.
    """
    image = decode_image(data, source)
    width, height = image.size
    scale = min(1.0, _LARGEST_SIDE / max(image.size))
    small = resample(image, (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX)
    colors = np.ascontiguousarray(np.asarray(small, np.float32).transpose(2, 0, 1)) / 255
    luma = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), colors, 1)
    highest, lowest = colors.max(axis=0), colors.min(axis=0)
    return {
        "size": math.log(width * height),
        "aspect ratio": math.log(width / height),
        "file size": math.log(len(data)),
        "jpeg quality": jpeg_quality(data),
        "sharpness": math.log(_laplacian_energy(luma) + 1e-6),
        "brightness": float(luma.mean()),
        "contrast": float(luma.std()),
        "saturation": float(np.divide(highest - lowest, highest, out=np.zeros_like(highest), where=highest > 0).mean()),
    }


def jpeg_quality(data: bytes) -> float:
    """The quality, 1 to 100, that libjpeg's scaling of the standard table would need for this file's; NaN for no JPEG."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        tables = image.quantization if isinstance(image, JpegImagePlugin.JpegImageFile) else {}
    if not tables:
        return math.nan
    percent = 100 * sum(tables[min(tables)]) / _STANDARD_TABLE_SUM
    return max(1.0, 100 - percent / 2 if percent <= 100 else 5000 / percent)


def image_format(data: bytes) -> str:
    """The format of the encoded image ``data``: "JPEG", "PNG"."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return image.format or ""


def _laplacian_energy(luma: np.ndarray) -> float:
    """Mean square of the Laplacian; 0 of an image without inner pixels."""
    inner = luma[1:-1, 1:-1]
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float(((around - 4 * inner) ** 2).mean()) if inner.size else 0.0
