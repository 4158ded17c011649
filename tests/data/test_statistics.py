"""What images and texts say of themselves."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image, ImageFilter

from diffusion_feedback.data.image_statistics import IMAGE_STATISTICS, image_format, image_statistics, jpeg_quality
from diffusion_feedback.data.text_statistics import TEXT_STATISTICS, text_statistics
from diffusion_feedback.errors import UserError


def encoded(image: Image.Image, format: str = "PNG", **more: int) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **more)
    return file.getvalue()


@pytest.mark.parametrize("quality", [20, 50, 75, 90, 95])
def test_jpeg_quality_is_that_of_the_writer(quality: int) -> None:
    data = encoded(Image.new("RGB", (16, 16), "red"), "JPEG", quality=quality)
    assert jpeg_quality(data) == pytest.approx(quality, abs=1.0)
    assert image_format(data) == "JPEG"


def test_numbers_of_known_images() -> None:
    red = image_statistics(encoded(Image.new("RGB", (40, 20), "#ff0000")), "red")
    assert red.keys() == IMAGE_STATISTICS.keys()
    assert red["size"] == pytest.approx(math.log(800))
    assert red["aspect ratio"] == pytest.approx(math.log(2))
    assert red["brightness"] == pytest.approx(0.299)
    assert (red["saturation"], red["contrast"]) == (1.0, pytest.approx(0, abs=1e-6))
    assert math.isnan(red["jpeg quality"])
    grey = image_statistics(encoded(Image.new("L", (20, 40), 128)), "grey")
    assert (grey["saturation"], grey["brightness"]) == (0.0, pytest.approx(128 / 255))
    halves = Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 10, axis=1))
    assert image_statistics(encoded(halves), "halves")["contrast"] == pytest.approx(0.5)
    black = image_statistics(encoded(Image.new("RGB", (1, 1))), "black")
    assert all(math.isfinite(value) for name, value in black.items() if name != "jpeg quality")


def test_a_blurred_image_is_less_sharp() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    sharp = Image.fromarray(pixels)
    blurred = sharp.filter(ImageFilter.GaussianBlur(3))
    assert image_statistics(encoded(blurred), "b")["sharpness"] < image_statistics(encoded(sharp), "s")["sharpness"] - 1


def test_what_is_no_image_is_named() -> None:
    with pytest.raises(UserError, match="row 7: not an image"):
        image_statistics(b"nothing", "row 7")


def test_numbers_of_known_texts() -> None:
    text = "# Yes\n- the Cat, the cat\n- `x` is **1**\n"
    numbers = text_statistics(text, "The cat?")
    assert numbers.keys() == TEXT_STATISTICS.keys() - {"tokens"}
    assert numbers["characters"] == pytest.approx(math.log1p(len(text)))
    assert numbers["words"] == pytest.approx(math.log1p(11))
    assert numbers["lines"] == pytest.approx(math.log1p(3))
    assert numbers["markdown"] == pytest.approx(math.log1p(6))  # heading, two items, code, two ends of bold
    assert numbers["repetition"] == pytest.approx(1 - 6 / 8)
    assert numbers["echo of the prompt"] == pytest.approx(4 / 8)
    assert numbers["digits"] == pytest.approx(1 / len(text))
    empty = text_statistics("", "")
    assert math.isnan(empty.pop("echo of the prompt"))
    assert all(math.isfinite(value) for value in empty.values())
