"""Cut pictures against open_clip's and transformers' own preprocessing, and against geometry worked out by hand."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import open_clip
import pytest
import torch
from letterbox import letterbox_by_hand
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil

from diffusion_feedback.errors import UserError
from diffusion_feedback.pixels import to_rgb
from diffusion_feedback.scorers import views
from diffusion_feedback.scorers.views import OPENAI_MEAN, OPENAI_STD, CropView, LetterboxView, Resampling, crop_view

SIZES = {
    "square": (300, 300),
    "wide": (640, 250),
    "tall": (250, 640),
    "odd": (333, 227),
    "small": (60, 40),
    "already": (224, 224),
    "wide 224": (224, 112),
    "tall 224": (112, 224),
    "line": (300, 2),
}
MODES = ["RGB", "RGBA", "LA", "L", "P", "CMYK", "I;16"]


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Blocks of noise over a slope: sharp edges and smooth places."""
    width, height = size
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize(size, Image.Resampling.NEAREST)
    slope = np.linspace(0, 90, width)[None, :, None] + np.linspace(-90, 0, height)[:, None, None]
    return Image.fromarray((np.asarray(blocks) + slope).clip(0, 255).astype(np.uint8))


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        return image
    return image.convert(mode)


def normalise(pixels: Tensor) -> Tensor:
    return (pixels - torch.tensor(OPENAI_MEAN)[:, None, None]) / torch.tensor(OPENAI_STD)[:, None, None]


def denormalise(view: Tensor) -> Tensor:
    return view * torch.tensor(OPENAI_STD)[:, None, None] + torch.tensor(OPENAI_MEAN)[:, None, None]


def published(image: Image.Image, side: int) -> tuple[Tensor, Tensor]:
    """As transformers and open_clip cut it, by the Pillow in use."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return processor(image, return_tensors="pt").pixel_values[0], open_clip.image_transform(side, is_train=False)(image)


def digest(view: Tensor) -> str:
    levels = (255 * denormalise(view)).round().to(torch.uint8)
    return hashlib.sha256(levels.numpy().tobytes()).hexdigest()[:12]


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("side", [224, 64])
def test_crops_are_those_of_the_published_pipelines(size: tuple[int, int], side: int) -> None:
    image = picture(size)
    by_transformers, by_open_clip = published(image, side)
    found = CropView(side, side)(image), CropView(side, side, "nearest")(image)
    if size[1] > 2 * size[0]:  # Pillow 13 scales their rows first
        assert (found[0] - by_transformers).abs().max() < 0.3
        assert (found[1] - by_open_clip).abs().max() < 0.3
    else:
        assert torch.equal(found[0], by_transformers)
        assert torch.equal(found[1], by_open_clip)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((250, 640), 224, ("11b598d33eff", "11b598d33eff")),
        ((250, 640), 64, ("8b4624c2516b", "9f07d63fb6de")),
        ((90, 300), 224, ("c665a9a70566", "c665a9a70566")),
        ((90, 300), 64, ("8a535d4a9143", "8a535d4a9143")),
    ],
)
def test_tall_pictures_are_cut_alike_under_every_pillow(
    size: tuple[int, int], side: int, expected: tuple[str, str]
) -> None:
    """What transformers' and open_clip's pipelines gave under Pillow 12.3.0, to the last bit."""
    image = picture(size)
    found = CropView(side, side)(image), CropView(side, side, "nearest")(image)
    assert tuple(map(digest, found)) == expected


def test_another_resampler_is_told_by_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def bilinear(image: Image.Image, size: tuple[int, int], *rest: object) -> Image.Image:
        return image.transform(size, Image.Transform.EXTENT, (0, 0, *image.size), Image.Resampling.BILINEAR)

    views._resampler.cache_clear()
    known = CropView().id
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "resize", bilinear)
        views._resampler.cache_clear()
        other = CropView().id
    views._resampler.cache_clear()
    assert known == CropView().id == "pil12-crop-224"
    assert re.fullmatch("pil-[0-9a-f]{8}-crop-224", other)


def test_the_two_ways_to_centre_differ_by_a_row() -> None:
    """An excess of 3: transformers cuts from row 1, torchvision from round(1.5) = 2."""
    image = picture((224, 227))
    floor, nearest = CropView(), CropView(centre="nearest")
    assert torch.equal(floor(image)[:, 1:], nearest(image)[:, :-1])
    assert not torch.equal(floor(image), nearest(image))
    even = picture((224, 228))
    assert torch.equal(floor(even), nearest(even))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_cut_as_its_rgb(mode: str) -> None:
    image = in_mode(picture((90, 61)), mode)
    assert image.mode == mode
    rgb = to_rgb(image)
    assert torch.equal(CropView()(image), CLIPImageProcessorPil()(rgb, return_tensors="pt").pixel_values[0])
    levels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1) / 255
    expected = letterbox_by_hand(levels, 224, "antialias")
    torch.testing.assert_close(LetterboxView()(image), normalise(expected).float(), atol=1e-4, rtol=0)


def test_larger_shortest_edge_and_other_normalisation() -> None:
    """As some models resize to 256 and cut 224."""
    settings = {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}
    processor = CLIPImageProcessorPil(**settings, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.1])
    view = crop_view(processor.to_dict(), 64, "here")
    image = picture((120, 200))
    assert torch.equal(view(image), processor(image, return_tensors="pt").pixel_values[0])
    assert view.id.startswith("pil12-crop-64-of-72-norm-")


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("resampling", ["antialias", "legacy"])
def test_letterbox_is_the_one_worked_out_by_hand(size: tuple[int, int], resampling: Resampling) -> None:
    image = picture(size)
    levels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    expected = letterbox_by_hand(levels, 224, resampling)
    view = LetterboxView(resampling=resampling)(image)
    assert view.shape == (3, 224, 224)
    torch.testing.assert_close(view, normalise(expected).float(), atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((448, 224), (0, 56, 224, 168)),
        ((224, 112), (0, 56, 224, 168)),
        ((112, 224), (56, 0, 168, 224)),
        ((224, 224), (0, 0, 224, 224)),
        ((448, 225), (0, 56, 224, 168)),  # round(112.5) = 112: a half goes to the even number
        ((448, 227), (0, 55, 224, 169)),  # round(113.5) = 114
        ((448, 226), (0, 55, 224, 168)),  # 113 rows, 111 bars: 55 above, 56 below
        ((1000, 1), (0, 111, 224, 112)),  # at least one row stays
    ],
)
def test_bars_are_black_and_where_they_should_be(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    seen = denormalise(LetterboxView()(Image.new("RGB", size, (255, 255, 255))))
    expected = torch.zeros(3, 224, 224)
    left, top, right, bottom = box
    expected[:, top:bottom, left:right] = 1
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)


def test_legacy_resampling_differs_where_the_picture_is_scaled() -> None:
    antialias, legacy = LetterboxView(), LetterboxView(resampling="legacy")
    for size in ((1024, 1024), (900, 640), (60, 40)):
        difference = (denormalise(antialias(picture(size))) - denormalise(legacy(picture(size)))).abs()
        assert difference.max() > 0.05
    for size in ((224, 224), (224, 112)):
        assert torch.equal(antialias(picture(size)), legacy(picture(size)))


def test_overshoot_of_the_letterbox_stays() -> None:
    seen = denormalise(LetterboxView()(picture((700, 700))))
    assert seen.min() < -0.01
    assert seen.max() > 1.01


def test_ids_tell_views_apart() -> None:
    made = [
        CropView(),
        CropView(centre="nearest"),
        CropView(resize=256),
        CropView(64, 64),
        CropView(mean=(0.5, 0.5, 0.5)),
        LetterboxView(),
        LetterboxView(resampling="legacy"),
        LetterboxView(336),
    ]
    assert len({view.id for view in made}) == len(made)
    assert [made[0].id, made[1].id, made[2].id] == ["pil12-crop-224", "pil12-crop-224-nearest", "pil12-crop-224-of-256"]
    assert [made[5].id, made[6].id] == ["tensor-antialias-224", "tensor-legacy-224"]


def test_configs_old_and_new_are_read() -> None:
    """laion's preprocessor_config.json says 224 where newer ones say which edge."""
    assert crop_view({"size": 224, "crop_size": 224, "resample": 3}, 224, "here") == CropView()
    assert crop_view(CLIPImageProcessorPil().to_dict(), 224, "here") == CropView()
    assert crop_view(None, 64, "here") == CropView(64, 64)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"do_center_crop": False}, "do_center_crop is false"),
        ({"resample": 2}, "resample is 2"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
        ({"rescale_factor": "1 / 255"}, "rescale_factor is '1 / 255'"),
        ({"rescale_factor": None}, "rescale_factor is None"),
        ({"crop_size": {"height": [224], "width": 224}}, "crop_size is"),
        ({"image_std": [1, float("nan"), 1]}, "image_std is"),
        ({"size": {"height": 224, "width": 224}}, "size is"),
        ({"size": 200}, "size is 200"),
        ({"crop_size": {"height": 224, "width": 200}}, "crop_size is"),
        ({"crop_size": 336, "size": 336}, "crop_size is 336"),
        ({"image_mean": [0.5]}, r"image_mean is \[0.5\]"),
        ({"image_std": [1, 0, 1]}, "image_std is"),
    ],
)
def test_foreign_preprocessing_is_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=f"here: {named}"):
        crop_view(CLIPImageProcessorPil().to_dict() | change, 224, "here")


def test_pictures_too_narrow_are_refused_before_memory_is_taken() -> None:
    with pytest.raises(UserError, match="1 x 500000 pixels is too narrow"):
        CropView()(Image.new("RGB", (1, 500_000)))
    assert LetterboxView()(Image.new("RGB", (1, 500_000))).shape == (3, 224, 224)
