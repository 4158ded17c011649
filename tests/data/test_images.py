"""Decoding against values computed by hand, hostile bytes, and the cut that SDXL's size conditioning holds."""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_feedback.data.images import EncodedImage, decode_image, image_header, to_pixels
from diffusion_feedback.errors import UserError
from diffusion_feedback.pixels import resample
from diffusion_feedback.records import content_hash
from diffusion_feedback.types.images import ImageView


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(image: Image.Image, format: str = "PNG", **options: object) -> np.ndarray:
    result = decode_image(encode(image, format, **options), "here")
    assert result.mode == "RGB"
    return np.asarray(result)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF"])
def test_formats_decode_to_rgb(format: str) -> None:
    pixels = decoded(Image.new("RGB", (16, 8), (200, 30, 60)), format, quality=95)
    assert pixels.shape == (8, 16, 3)
    assert np.abs(pixels.astype(int) - [200, 30, 60]).max() <= 4


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP", "PNG", "AVIF"])
def test_of_several_frames_the_first_is_taken(format: str) -> None:
    first, second = Image.new("RGB", (8, 8), (200, 30, 60)), Image.new("RGB", (8, 8), (0, 0, 0))
    pixels = decoded(first, format, save_all=True, append_images=[second])
    assert np.abs(pixels.astype(int) - [200, 30, 60]).max() <= 6


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 257, 32896, 65535, 65407]], dtype=np.uint16)
    pixels = decoded(Image.fromarray(values))
    expected = [0, 0, 1, 128, 255, 255]  # round(v * 255 / 65535), by hand; 65407 / 257 = 254.502
    assert (pixels == np.array(expected)[None, :, None]).all()


def test_grey_bilevel_and_palette() -> None:
    assert (decoded(Image.fromarray(np.array([[7, 250]], dtype=np.uint8))) == [[[7] * 3, [250] * 3]]).all()
    assert (decoded(Image.new("1", (2, 2), 1)) == 255).all()
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    assert (decoded(palette) == [[[10, 20, 30], [40, 50, 60]]]).all()


def test_transparency_is_laid_on_white() -> None:
    pixels = decoded(Image.new("RGBA", (2, 2), (100, 0, 200, 128)))
    expected = [round((c * 128 + 255 * 127) / 255) for c in (100, 0, 200)]
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    assert (decoded(Image.new("RGBA", (1, 1), (9, 9, 9, 0))) == 255).all()
    assert (decoded(Image.new("LA", (1, 1), (9, 0))) == 255).all()
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    assert (decoded(palette, transparency=0) == [[[255] * 3, [40, 50, 60]]]).all()
    assert (decoded(palette, transparency=b"\x00\xff") == [[[255] * 3, [40, 50, 60]]]).all()


def test_cmyk_jpeg() -> None:
    pixels = decoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 6


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(format: str) -> None:
    image = Image.new("RGB", (16, 8), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 8, 8))  # the left half is black
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left becomes top
    pixels = decoded(image, format, exif=exif)
    assert pixels.shape == (16, 8, 3)
    assert pixels[:8].mean() < 10
    assert pixels[8:].mean() > 245


def _bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


GOOD = encode(Image.effect_noise((64, 64), 50).convert("RGB"))
GOOD_JPEG = encode(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"empty \(0 bytes\)"),
        (GOOD[: len(GOOD) // 2], "broken image"),
        (GOOD_JPEG[: len(GOOD_JPEG) // 2], "broken image"),
        (
            b"not an image at all",
            r"not an image of PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF \(it is text\)",
        ),
        (encode(Image.new("RGB", (4, 4)), "JPEG2000"), "not an image of PNG, JPEG"),
        (encode(Image.new("F", (4, 4), 0.5), "TIFF"), "pixels are floating-point numbers"),
        (_bomb(10_000, 10_000), "more than 89478485 pixels"),  # Pillow only warns of this size
        (_bomb(60_000, 60_000), "more than 89478485 pixels"),
    ],
)
def test_hostile_bytes_name_the_source(data: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=f"^pairs.parquet, row 7: .*{reason}") as caught:
        decode_image(data, "pairs.parquet, row 7")
    assert "image" in caught.value.remedy


def test_random_damage_never_escapes_as_another_error() -> None:
    rng = np.random.default_rng(0)
    for original in (GOOD, GOOD_JPEG, encode(Image.effect_noise((64, 64), 50).convert("RGB"), "WEBP")):
        for _ in range(60):
            data = bytearray(original)
            for position in rng.integers(0, len(data), 8):
                data[position] = int(rng.integers(0, 256))
            with contextlib.suppress(UserError):
                decode_image(bytes(data), "x")


def test_encoded_image_and_header() -> None:
    handle = EncodedImage(GOOD, "here")
    assert handle.key == content_hash(GOOD)
    assert handle.open().size == (64, 64)
    header = image_header(encode(Image.new("L", (5, 3)), "WEBP"), "here")
    assert (header.format, header.size) == ("WEBP", (5, 3))


def test_pixels_of_an_image_of_the_right_size_are_exact() -> None:
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pixels, sizes = to_pixels(Image.fromarray(array), 8, ImageView())
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, torch.tensor(array).permute(2, 0, 1) / 127.5 - 1)
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    assert sizes.tolist() == [8, 8, 0, 0, 8, 8]


@pytest.mark.parametrize(("crop", "left"), [((0.0, 0.5), 0), ((0.5, 0.0), 10), ((1.0, 1.0), 20)])
def test_crop_and_flip_tell_the_same_story(crop: tuple[float, float], left: int) -> None:
    # 60 x 20 becomes 30 x 10: columns hold their own position, so what was cut can be read off.
    ramp = np.repeat(np.arange(60, dtype=np.uint8)[None, :, None] * 4, 20, 0).repeat(3, 2)
    image = Image.fromarray(ramp)
    pixels, sizes = to_pixels(image, 10, ImageView(crop))
    assert sizes.tolist() == [20, 60, 0, left, 10, 10]
    columns = ((pixels[0, 5] + 1) * 127.5 / 8).tolist()
    inner = slice(2, 8)  # away from the image's border, where the filter has fewer neighbours
    assert columns[inner] == pytest.approx([left + i + 0.25 for i in range(10)][inner], abs=0.2)
    mirrored, mirrored_sizes = to_pixels(image, 10, ImageView(crop, flip=True))
    assert torch.equal(mirrored, pixels.flip(-1))
    # The same square, as it lies in the mirrored image.
    whole, whole_sizes = to_pixels(Image.fromarray(ramp[:, ::-1].copy()), 10, ImageView((1 - crop[0], crop[1])))
    assert torch.allclose(mirrored, whole, atol=0.02)
    assert torch.equal(mirrored_sizes, whole_sizes)


def test_tall_and_small_images() -> None:
    pixels, sizes = to_pixels(Image.new("RGB", (5, 9)), 10, ImageView((0.5, 1.0)))
    assert pixels.shape == (3, 10, 10)
    assert sizes.tolist() == [9, 5, 8, 0, 10, 10]
    with pytest.raises(UserError, match="1 x 2000 pixels is too narrow"):
        to_pixels(Image.new("RGB", (1, 2000)), 1024, ImageView())


def test_tall_images_are_scaled_alike_under_every_pillow() -> None:
    """To the last bit what Pillow 12.0 to 12.3 gave in one call; Pillow 13 by itself gives something else."""
    rows, columns = np.mgrid[:300, :90]
    levels = np.stack([rows * columns % 256, (rows * 7 + columns * 13) % 256, (rows * rows + columns) % 256], -1)
    scaled = resample(Image.fromarray(levels.astype(np.uint8)), (48, 160), Image.Resampling.LANCZOS)
    assert hashlib.sha256(scaled.tobytes()).hexdigest()[:12] == "cd00f9b641eb"
    pixels, _ = to_pixels(Image.fromarray(levels.astype(np.uint8)), 48, ImageView((0.0, 0.0), False))
    top = torch.from_numpy(np.array(scaled.crop((0, 0, 48, 48)))).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(pixels, top)
