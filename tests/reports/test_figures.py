"""Grids whose pixels stand where they should, and curves that are the same every time."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Resampling

from diffusion_feedback.errors import UserError
from diffusion_feedback.evaluation.statistics import Interval
from diffusion_feedback.reports.figures import (
    SERIES_COLORS,
    Curve,
    CurveFigure,
    Point,
    PointsFigure,
    _running_mean,
    image_grid,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)


def _checked(side: int = 2) -> Image.Image:
    pixels = np.indices((side, side)).sum(0) % 2 * 255
    return Image.fromarray(np.repeat(pixels[..., None], 3, 2).astype(np.uint8))


def _places(grid: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Bounds (left, top, right, bottom) of the pixels of ``color``."""
    found = np.argwhere((np.asarray(grid) == color).all(-1))
    (top, left), (bottom, right) = found.min(0), found.max(0)
    return int(left), int(top), int(right) + 1, int(bottom) + 1


def test_pairs_stand_side_by_side_at_full_size() -> None:
    before, after = Image.new("RGB", (64, 64), RED), Image.new("RGB", (64, 64), BLUE)
    grid = image_grid([[before, after]], ["a prompt"], ["base", "DPO"], cell=100, scale=2)
    left, right = _places(grid, RED), _places(grid, BLUE)
    assert (left[2] - left[0], left[3] - left[1]) == (200, 200)
    assert right[0] - left[2] == 16
    assert right[1] == left[1]
    assert grid.getpixel((0, 0)) == (255, 255, 255)


def test_aspect_is_kept_and_the_image_is_centred() -> None:
    wide = Image.new("RGB", (50, 25), RED)
    square = Image.new("RGB", (8, 8), BLUE)
    grid = image_grid([[wide, square]], cell=100, scale=1)
    left, right = _places(grid, RED), _places(grid, BLUE)
    assert (left[2] - left[0], left[3] - left[1]) == (100, 50)
    assert left[1] - right[1] == 25


def test_pictures_stand_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: upright it is as wide as it is stored high
    Image.new("RGB", (50, 25), RED).save(tmp_path / "turned.png", exif=exif)
    left, top, right, bottom = _places(image_grid([[tmp_path / "turned.png"]], cell=100, scale=1), RED)
    assert (right - left, bottom - top) == (50, 100)


def test_nearest_keeps_pixels_and_lanczos_smooths() -> None:
    grids = [image_grid([[_checked()]], cell=64, resample=each) for each in (Resampling.NEAREST, Resampling.LANCZOS)]
    nearest, smooth = (np.unique(np.asarray(grid)[60:100, 60:100]) for grid in grids)
    assert set(nearest) <= {0, 255}
    assert len(smooth) > 10


def test_blocks_stand_side_by_side() -> None:
    rows = [[Image.new("RGB", (8, 8), RED)] for _ in range(5)]
    tall, wide = image_grid(rows, list("abcde")), image_grid(rows, list("abcde"), blocks=3)
    assert wide.width > 2 * tall.width
    assert wide.height < tall.height / 2


def test_files_of_every_kind_and_long_captions(tmp_path: Path) -> None:
    paths = []
    for image_format in ("PNG", "JPEG", "WEBP"):
        path = tmp_path / f"image.{image_format.lower()}"
        Image.new("RGB", (16, 16), RED).save(path, format=image_format)
        paths.append(path)
    long = "a caption that goes on and on " * 20 + "x" * 300
    assert image_grid([paths], [long]).width == image_grid([paths], ["short"]).width
    three_lines = image_grid([paths], ["word " * 60])
    assert image_grid([paths], [long]).height == three_lines.height


def test_wrong_grids_are_named(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match=r"one length, got lengths \[1, 2\]"):
        image_grid([[image], [image, image]])
    with pytest.raises(ValueError, match="2 captions are needed, got 1"):
        image_grid([[image], [image]], ["a"])
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken.png: cannot be read as an image"):
        image_grid([[tmp_path / "broken.png"]])
    with pytest.raises(UserError, match=r"absent.png: cannot be read as an image"):
        image_grid([[tmp_path / "absent.png"]])


def curves_svg(series: Mapping[str, Curve], **more: Any) -> str:
    return CurveFigure("a figure", series, **more).svg()


def test_curves_are_deterministic_and_bare() -> None:
    series = {"chosen": [(step, 0.5 - step / 100) for step in range(10)], "rejected": [(0, 0.5), (9, 0.6)]}
    svg = curves_svg(series, y_label="error", reference=math.log(2))
    assert svg == curves_svg(series, y_label="error", reference=math.log(2))
    assert svg.startswith("<svg")
    assert not any(word in svg for word in ("<metadata", "<style", "<?xml", "dc:date", "href="))
    texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.text and element.text.strip()]
    assert {"step", "error", "chosen", "rejected"} <= set(texts)


def test_two_figures_share_no_identifier() -> None:
    def identifiers(svg: str) -> set[str]:
        return {element.attrib["id"] for element in ElementTree.fromstring(svg).iter() if "id" in element.attrib}

    one, two = curves_svg({"a": [(0, 1.0), (1, 2.0)]}), curves_svg({"a": [(0, 1.0), (1, 3.0)]})
    assert identifiers(one)
    assert not identifiers(one) & identifiers(two)


def test_names_are_escaped_and_not_read_as_formulas() -> None:
    svg = curves_svg({"<script>": [(0, 1.0)], r"$\nothing$": [(0, 2.0)]})
    assert "<script>" not in svg
    assert r"$\nothing$" in svg


def test_gaps_are_allowed_and_nothing_to_draw_is_not() -> None:
    assert "nan" not in curves_svg({"loss": [(0, 1.0), (1, math.nan), (2, 0.5)]}).lower()
    with pytest.raises(UserError, match="no series"):
        curves_svg({})
    with pytest.raises(UserError, match="series 'loss': 0 points"):
        curves_svg({"loss": []})
    with pytest.raises(UserError, match="series 'loss': 1 points, none of them finite"):
        curves_svg({"loss": [(0, math.nan)]})


def _ticks(svg: str) -> list[float]:
    """The numbers beside the axis on the left."""
    root = ElementTree.fromstring(svg)
    texts = [
        each for each in root.iter("{http://www.w3.org/2000/svg}text") if "text-anchor: end" in each.get("style", "")
    ]
    return [float((each.text or "").replace("\N{MINUS SIGN}", "-")) for each in texts]


@pytest.mark.parametrize("number", [1, 5])
def test_an_axis_is_never_narrower_than_the_interval(number: int) -> None:
    """A rise of 0.001 within an interval of 0.2 is no cliff."""
    points = [(float(step), 0.6384 + step / 4000) for step in range(number)]
    bare, band = curves_svg({"reward": points}), {"reward": [(value - 0.1, value + 0.1) for _, value in points]}
    drawn = curves_svg({"reward": points}, bands=band)
    assert bare != drawn
    assert max(_ticks(drawn)) - min(_ticks(drawn)) > 0.1
    if number > 1:
        assert max(_ticks(bare)) - min(_ticks(bare)) < 0.01


def test_running_mean_by_hand() -> None:
    found = _running_mean(np.array([1.0, 2.0, 3.0, math.nan, 5.0]), 3)
    assert found.tolist() == pytest.approx([1.5, 2.0, 2.5, math.nan, 5.0], nan_ok=True)


# --- points ----------------------------------------------------------------------------------------------------------


def _points(*places: tuple[float, float]) -> list[Point]:
    return [
        Point(Interval(x, x - 0.5, x + 1, 9), Interval(y, y - 1, y + 2, 9), f"n{number}")
        for number, (x, y) in enumerate(places)
    ]


def test_points_stand_where_their_numbers_say() -> None:
    figure = PointsFigure("f", {"rounds": _points((0, 0), (1, 2), (3, 2.5))}, x_label="KL, nats", y_label="reward")
    svg = figure.svg()
    assert svg == figure.svg()
    root = ElementTree.fromstring(svg)
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"n0", "n1", "n2", "KL, nats", "reward"} <= set(words)
    marks = [
        (float(use.attrib["x"]), float(use.attrib["y"]))
        for use in root.iter("{http://www.w3.org/2000/svg}use")
        if SERIES_COLORS[0] in use.attrib.get("style", "")
    ]
    assert len(marks) == 3
    (x0, y0), (x1, y1), (x2, y2) = marks
    assert (x2 - x0) / (x1 - x0) == pytest.approx(3, abs=1e-3)
    assert (y2 - y0) / (y1 - y0) == pytest.approx(1.25, abs=1e-3)
    assert y1 < y0  # upwards on the page


def test_points_that_cannot_be_drawn() -> None:
    for series, message in (({}, "no points"), ({"a": []}, "no points"), ({"a": _points((0, math.nan))}, "'a'")):
        with pytest.raises(UserError, match=message):
            PointsFigure("f", series).svg()
