"""Every view x every kind of picture: a file has one score by its path, from its bytes and as an opened image."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from tiny_clip import save_clip

from diffusion_feedback.cli.main import main
from diffusion_feedback.data.image_sets import open_image_set
from diffusion_feedback.data.images import EncodedImage
from diffusion_feedback.data.scores import read_scores
from diffusion_feedback.errors import UserError
from diffusion_feedback.scorers import pickscore
from diffusion_feedback.scorers.scorer import Towers
from diffusion_feedback.scorers.views import CropView, LetterboxView
from diffusion_feedback.shapes.scorer import load as load_verifier

View = Callable[[Image.Image], torch.Tensor]
VIEWS: dict[str, View] = {
    "pickscore": CropView(32, 32),
    "imagereward, hessel, aesthetic": CropView(32, 32, "nearest"),
    "hpsv2": LetterboxView(32),
    "hpsv2 legacy": LetterboxView(32, "legacy"),
    "shapes": load_verifier(None, Towers()).view,
}


def picture(mode: str = "RGB", size: tuple[int, int] = (61, 43)) -> Image.Image:
    """Colours that differ from corner to corner, so that a turn is seen."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    levels = np.stack([columns * 4, rows * 5, (columns + rows) * 2], -1) % 256
    return Image.fromarray(levels.astype(np.uint8)).convert(mode)


def layered(mode: str) -> Image.Image:
    image = picture().convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def sixteen() -> Image.Image:
    rows, columns = np.mgrid[:43, :61]
    return Image.fromarray((rows * 900 + columns * 400).astype(np.uint16))


def encoded(image: Image.Image, format: str = "PNG", **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


def turned(number: int, format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return encoded(picture(), format, exif=exif)


def animated(format: str) -> bytes:
    frames = [picture(), picture().rotate(180), picture("L").convert("RGB")]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:])


KINDS: dict[str, bytes] = {
    "rgb": encoded(picture()),
    "grey": encoded(picture("L")),
    "bilevel": encoded(picture("1")),
    "palette": encoded(picture().quantize(16)),
    "palette with a hole": encoded(picture().quantize(16), transparency=3),
    "rgba": encoded(layered("RGBA")),
    "grey and alpha": encoded(layered("LA")),
    "grey with a hole": encoded(picture("L"), transparency=40),
    "rgb with a hole": encoded(picture(), transparency=(4, 5, 4)),
    "opaque rgba": encoded(picture("RGBA")),
    "16 bit grey": encoded(sixteen()),
    "cmyk jpeg": encoded(picture("CMYK"), "JPEG"),
    "cmyk tiff": encoded(picture("CMYK"), "TIFF"),
    "jpeg": encoded(picture(), "JPEG"),
    "grey jpeg": encoded(picture("L"), "JPEG"),
    "webp": encoded(picture(), "WEBP"),
    "webp with alpha": encoded(layered("RGBA"), "WEBP", lossless=True),
    "avif": encoded(picture(), "AVIF"),
    "bmp": encoded(picture(), "BMP"),
    "tiff": encoded(picture(), "TIFF"),
    "gif": encoded(picture().quantize(16), "GIF"),
    "moving gif": animated("GIF"),
    "moving webp": animated("WEBP"),
    "moving png": animated("PNG"),
    "one pixel": encoded(picture(size=(1, 1))),
    "tall": encoded(picture(size=(20, 90))),
    "wide": encoded(picture(size=(90, 20))),
    **{f"turned {number}, {format}": turned(number, format) for number in range(1, 9) for format in ("JPEG", "PNG", "WEBP")},
}  # fmt: skip


@pytest.mark.parametrize("data", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_file_has_one_view(tmp_path: Path, view: View, data: bytes) -> None:
    path = tmp_path / "picture"
    path.write_bytes(data)
    from_bytes = view(EncodedImage(data, "here").open())
    with Image.open(path) as image:
        assert torch.equal(view(image), from_bytes)
    named = path.rename(tmp_path / "picture.png")  # whatever it is called
    [item] = open_image_set([str(named)], prompt="a picture").items
    assert torch.equal(view(item.handle.open()), from_bytes)
    assert torch.equal(view(item.handle.open().copy()), from_bytes)
    assert from_bytes.float().isfinite().all()


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_turned_pictures_are_seen_upright(number: int, format: str) -> None:
    """The same as a file that holds the upright pixels and no note."""
    data = turned(number, format)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    plain = Image.fromarray(np.asarray(upright))
    with Image.open(io.BytesIO(data)) as image:
        assert torch.equal(CropView(32, 32)(image), CropView(32, 32)(plain))
    assert (plain.size == (61, 43)) == (number < 5)


@pytest.mark.parametrize(
    "kind", ["rgba", "grey and alpha", "palette with a hole", "grey with a hole", "rgb with a hole"]
)
def test_transparency_is_laid_on_white(kind: str) -> None:
    with Image.open(io.BytesIO(KINDS[kind])) as image:
        layers = np.asarray(image.convert("RGBA")).astype(np.float64)
    opacity = layers[..., 3:] / 255
    by_hand = np.rint(layers[..., :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)
    assert opacity.min() < 1
    found = np.asarray(EncodedImage(KINDS[kind], "here").open()).astype(int)
    assert np.abs(found - by_hand).max() <= 1


def test_sixteen_bits_are_scaled() -> None:
    with Image.open(io.BytesIO(KINDS["16 bit grey"])) as image:
        levels = np.asarray(image).astype(np.float64)
    assert levels.max() > 60_000
    found = np.asarray(EncodedImage(KINDS["16 bit grey"], "here").open())
    assert np.abs(found[..., 0] - levels / 257).max() <= 0.5


def test_floating_point_pixels_are_refused() -> None:
    for view in VIEWS.values():
        with pytest.raises(UserError, match="its pixels are floating-point numbers"):
            view(picture("F"))


def test_the_command_gives_what_the_function_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And says how many pictures were transparent; those that are opaque to the last pixel are none of them."""
    clip = save_clip(tmp_path / "clip")
    (tmp_path / "images").mkdir()
    for number, data in enumerate(KINDS.values()):
        (tmp_path / "images" / f"{number:03d}.png").write_bytes(data)
    output = tmp_path / "scores.parquet"
    flags = ["--scorer", f"pickscore={clip}", "--cache_dir", str(tmp_path / "cache"), "--output", str(output)]
    assert main(["score", str(tmp_path / "images"), "--prompt", "a cat", *flags]) == 0
    shown = capsys.readouterr().out
    assert f"note: 6 of the {len(KINDS)} images scored now are transparent in part, and are laid on white" in shown
    scorer = pickscore.load(str(clip), Towers())
    for row in read_scores(output):
        with Image.open(tmp_path / "images" / Path(row.sample).name) as image:
            [expected] = scorer.score([image], ["a cat"]).tolist()
        assert row.score == pytest.approx(expected, abs=1e-4)
