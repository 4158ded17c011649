"""Figures that stand in a README or a report: before/after grids as pictures, curves and points as SVG."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from ..errors import UserError
from ..evaluation.statistics import Interval

Picture = Image.Image | Path | bytes
"""A picture in memory, in a file, or as the bytes of a file."""

Curve = Sequence[tuple[float, float]]
"""(step, value) by rising step; a value that is not finite leaves a gap."""

SERIES_COLORS = ("#2f6bd8", "#c8622d", "#1f8a7d", "#8556b8", "#a88417", "#b8447a")
"""Lines of a figure in order; distinguished by lightness too, so that colour-blind readers follow."""

INK, FAINT, HAIRLINE = "#4a4f57", "#9aa0a8", "#e3e5e8"
DASHED: Mapping[str, Any] = {"color": FAINT, "linewidth": 1, "linestyle": (0, (4, 3))}
_MAX_RAW_POINTS = 60  # beyond it a line is a cloud, and a running mean is drawn over it


# --- grids -----------------------------------------------------------------------------------------------------------


_PAPER, _TITLES, _CAPTIONS, _EDGE = "#ffffff", "#1f2328", "#656d76", "#d8dbe0"


def image_grid(
    rows: Sequence[Sequence[Picture]],
    captions: Sequence[str] | None = None,
    column_titles: Sequence[str] | None = None,
    *,
    cell: int = 192,
    scale: int = 2,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
    blocks: int = 1,
) -> Image.Image:
    """Draw ``rows`` of images, each row with its caption below, under ``column_titles``; RGB.

    Images keep their aspect within ``cell`` x ``cell`` px; everything is drawn ``scale`` times as large, so that it is
    crisp on a dense screen when shown at 1 / ``scale``. ``resample`` NEAREST keeps the pixels of small images sharp.
    ``blocks`` sets that many rows side by side. Raises UserError for a file that is not an image, ValueError for rows,
    captions and titles whose numbers do not agree.
    """
    _check_grid(rows, captions, column_titles)
    columns, side, gap, margin, between = len(rows[0]), cell * scale, 8 * scale, 20 * scale, 24 * scale
    title_height, line_height = 30 * scale if column_titles else 0, 18 * scale
    font, width = _font(13 * scale), columns * side + (columns - 1) * gap
    texts = [_wrap(caption, font, width) for caption in captions or [""] * len(rows)]
    bands = [range(start, min(start + blocks, len(rows))) for start in range(0, len(rows), blocks)]
    heights = [side + 24 * scale + line_height * max(len(texts[index]) for index in band) for band in bands]
    lefts = [margin + block * (width + between) for block in range(min(blocks, len(rows)))]
    size = (lefts[-1] + width + margin, margin + title_height + sum(heights) - 16 * scale + margin)
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    for left in lefts:
        for column, title in enumerate(column_titles or []):
            middle = (left + column * (side + gap) + side // 2, margin + 10 * scale)
            draw.text(middle, title, _TITLES, _font(15 * scale, bold=True), anchor="mm")
    top = margin + title_height
    for band, height in zip(bands, heights, strict=True):
        for left, index in zip(lefts, band, strict=False):
            for column, picture in enumerate(rows[index]):
                fitted = _fit(open_picture(picture), side, resample)
                x = left + column * (side + gap) + (side - fitted.width) // 2
                y = top + (side - fitted.height) // 2
                canvas.paste(fitted, (x, y))
                # A hairline just outside, so that a white picture does not run into white paper.
                edge = (x - scale, y - scale, x + fitted.width + scale - 1, y + fitted.height + scale - 1)
                draw.rectangle(edge, outline=_EDGE, width=scale)
            for number, text in enumerate(texts[index]):
                place = (left + width // 2, top + side + 7 * scale + number * line_height)
                draw.text(place, text, _CAPTIONS, font, anchor="ma")
        top += height
    return canvas


def _check_grid(
    rows: Sequence[Sequence[Picture]], captions: Sequence[str] | None, column_titles: Sequence[str] | None
) -> None:
    lengths = [len(row) for row in rows]
    if not rows or len(set(lengths)) > 1 or not lengths[0]:
        raise ValueError(f"rows must be there and of one length, got lengths {lengths}")
    for name, texts, expected in (("captions", captions, len(rows)), ("column_titles", column_titles, lengths[0])):
        if texts is not None and len(texts) != expected:
            raise ValueError(f"{expected} {name} are needed, got {len(texts)}")


def open_picture(picture: Picture) -> Image.Image:
    """``picture`` upright, in RGB. Raises UserError for what is no image."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    try:
        with Image.open(picture if isinstance(picture, Path) else io.BytesIO(picture)) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        name = f"{picture}" if isinstance(picture, Path) else f"image of {len(picture)} bytes"
        raise UserError(f"{name}: cannot be read as an image ({error})", "give a PNG, JPEG or WebP file") from error


def _fit(image: Image.Image, side: int, resample: Image.Resampling) -> Image.Image:
    factor = side / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, resample)


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    # matplotlib carries DejaVu, which knows far more letters than the font in Pillow.
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")), size)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int = 3) -> list[str]:
    """Break ``text`` into lines of at most ``width`` px; what does not fit ``max_lines`` ends in an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], f"{lines[max_lines - 1]} …"]
    return [_shorten(line, font, width) for line in lines]


def _shorten(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    kept = line.rstrip(" …")
    while kept and font.getlength(kept + "…") > width:
        kept = kept[:-1]
    return kept.rstrip() + "…"


# --- curves and points -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CurveFigure:
    """One figure of curves over steps; ``reference`` is a dashed level, such as ln 2 for the loss.

    ``bands`` are the (low, high) of the points of a series, by its name: drawn behind it, so that the axis is never narrower
    than what is not known.
    """

    title: str
    series: Mapping[str, Curve]
    detail: str = ""
    x_label: str = "step"
    y_label: str = ""
    reference: float | None = None
    bands: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)

    def svg(self) -> str:
        """Draw it; a line of more than 60 points is drawn faint under its running mean.

        Raises UserError for no series, an empty one, or one without a finite value.
        """
        if not self.series:
            raise UserError("no series to draw", "give at least one line")
        for name, points in self.series.items():
            if not np.isfinite([value for _, value in points]).any():
                raise UserError(f"series {name!r}: {len(points)} points, none of them finite", "leave the series out")

        def draw(axes: Axes) -> None:
            if self.reference is not None:
                axes.axhline(self.reference, **DASHED)
            for color, (name, points) in zip(cycle(SERIES_COLORS), self.series.items(), strict=False):
                steps, values = np.array(points, np.float64).T
                line = partial(axes.plot, color=color, solid_capstyle="round")
                if len(steps) > _MAX_RAW_POINTS:
                    line(steps, values, alpha=0.25, linewidth=0.8)
                    values = _running_mean(values, window=max(5, len(values) // 25))
                line(steps, values, label=name, linewidth=1.8, marker="o" if len(steps) == 1 else None)
                if band := self.bands.get(name):
                    # Of a single point a band has no width: its bounds are a line.
                    draw_band = axes.fill_between if len(steps) > 1 else axes.vlines
                    draw_band(steps, *np.array(band, np.float64).T, color=color, alpha=0.15, linewidth=len(steps) == 1)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5))

        identity = (
            (sorted(self.series.items()), sorted(self.bands.items())) if self.bands else sorted(self.series.items())
        )
        return draw_svg(draw, identity, self.x_label, self.y_label)


@dataclass(frozen=True, slots=True)
class Point:
    """A measured point with its 95 % intervals, and a few letters beside it."""

    x: Interval
    y: Interval
    label: str = ""


@dataclass(frozen=True, slots=True)
class PointsFigure:
    """One figure of two measures against each other, such as reward against KL; each series is joined in its order."""

    title: str
    series: Mapping[str, Sequence[Point]]
    detail: str = ""
    x_label: str = ""
    y_label: str = ""

    def svg(self) -> str:
        """Draw the points with their intervals. Raises UserError for no series, an empty one, and what is not finite."""
        if not self.series or not all(self.series.values()):
            raise UserError("no points to draw", "give at least one point in each series")
        for name, points in self.series.items():
            if not np.isfinite([(each.value, each.low, each.high) for p in points for each in (p.x, p.y)]).all():
                raise UserError(f"series {name!r}: holds a number that is not finite", "leave the point out")

        def draw(axes: Axes) -> None:
            for color, (name, points) in zip(cycle(SERIES_COLORS), self.series.items(), strict=False):
                places = [(point.x.value, point.y.value) for point in points]
                axes.plot(*zip(*places, strict=True), color=color, linewidth=1.2, alpha=0.6)
                for point, (x, y) in zip(points, places, strict=True):
                    axes.plot((point.x.low, point.x.high), (y, y), color=color, linewidth=1)
                    axes.plot((x, x), (point.y.low, point.y.high), color=color, linewidth=1)
                    axes.annotate(point.label, (x, y), (4, 4), textcoords="offset points", color=INK, fontsize=8.5)
                axes.plot(*zip(*places, strict=True), "o", color=color, markersize=4.5, label=name)
            is_counted = all(p.x.low == p.x.high == int(p.x.value) for points in self.series.values() for p in points)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=is_counted))
            axes.yaxis.set_major_locator(MaxNLocator(5))

        return draw_svg(draw, sorted(self.series.items()), self.x_label, self.y_label)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over ``window`` points, fewer at the ends; points that are not finite stay gaps, no wider."""
    finite = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(finite, values, 0), kernel, mode="same")
    count = np.convolve(finite, kernel, mode="same")
    return np.where(finite, total / np.maximum(count, 1), np.nan)


def draw_svg(
    draw: Callable[[Axes], None],
    identity: object,
    x_label: str,
    y_label: str,
    *,
    size: tuple[float, float] = (4.9, 2.7),
    has_legend: bool = False,
) -> str:
    """What ``draw`` puts on quiet axes, as inline SVG, equal bytes for equal numbers; ``size`` in inches.

    ``identity``, with labels and size, tells the figure from others of its page. A legend stands above several lines, and
    above a single one where it ``has_legend``.
    """
    # Identifiers within the SVG are hashed from the salt: several figures of one page must not share them.
    salt = repr((identity, x_label, y_label, size))
    style = {
        "svg.hashsalt": hashlib.sha256(salt.encode()).hexdigest(),
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.size": 9.5,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(FAINT)
        axes.grid(axis="y", color=HAIRLINE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, length=0, pad=5)
        axes.set_xlabel(x_label, color=INK)
        axes.set_ylabel(y_label, color=INK)
        if has_legend or len(axes.get_legend_handles_labels()[1]) > 1:
            figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=INK, handlelength=1.2)
        return _inline(figure)


def _inline(figure: Figure) -> str:
    """``figure`` as SVG without what it does not need within HTML: XML header, comments, metadata, global style."""
    file = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font-family: [^;]*;", "font-family: sans-serif;", svg)  # in place of thirteen names at every text
    return re.sub(r"<defs>\s*</defs>\s*", "", svg).strip()
