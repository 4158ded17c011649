"""One self-contained HTML page out of a ``Report``: no script, no request, readable on a phone and in the dark."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path

from markupsafe import Markup
from PIL import Image, ImageOps

from ..errors import visible
from ..evaluation.statistics import WinRate
from ..records import write_text
from .calibration import coverage_svg, lowest_observed, reliability_svg
from .content import Report
from .figures import FAINT, HAIRLINE, INK, SERIES_COLORS, Picture, open_picture
from .rendering import TEMPLATES, load_template

_LARGEST_SIDE = 768  # px; larger images are scaled down
_SMALL_SIDE = 160  # px; up to here pixels are shown as pixels, and stored without loss
_MINUS, _NO_SPLIT = "\N{MINUS SIGN}", "\N{NARROW NO-BREAK SPACE}"


def write_report(report: Report, path: Path | str) -> None:
    """Write ``report`` as one HTML file at ``path``, whole or not at all; equal reports give equal bytes.

    Images are re-encoded as WebP, scaled down to 768 px. Raises UserError for an image that cannot be
    read or a curve without a finite value.
    """
    write_text(Path(path), render_report(report))


def render_report(report: Report) -> str:
    """The page of ``write_report`` as text; control characters of texts and names are written out."""
    template = load_template("report.html.j2", {"percent": percent, "p_value": p_value, "count": count})
    deltas = [case.delta for group in report.cases for case in group.parts]
    scores = [sample.score for group in report.samples for sample in group.parts]
    page = template.render(
        report=report,
        style=Markup(TEMPLATES.joinpath("report.css").read_text("utf-8")),
        case_digits=decimals(max(map(abs, deltas), default=0.0)),
        score_digits=decimals(max(scores) - min(scores)) if scores else 0,
        fixed=fixed,
        decimals=decimals,
        picture=_picture,
        significant=significant,
        themed=_themed,
        reliability=reliability_svg,
        lowest_observed=lowest_observed,
        coverage=coverage_svg,
        verdict=verdict,
    )
    return visible(page)


# --- words and numbers -----------------------------------------------------------------------------------------------


def verdict(won: WinRate, before: str, after: str) -> str:
    """What ``won`` shows of ``after`` against ``before``, in one sentence that claims no more than its interval."""
    name = after[:1].upper() + after[1:]
    level, even = f"95{_NO_SPLIT}% interval", f"50{_NO_SPLIT}%"
    if won.low > 0.5:
        return f"{name} is better than {before}: the whole {level} lies above {even}."
    if won.high < 0.5:
        return f"{name} is worse than {before}: the whole {level} lies below {even}."
    return f"No difference between {after} and {before} is shown: the {level} includes {even}."


def percent(share: float, digits: int = 1) -> str:
    """``share`` in [0, 1] as per cent: 0.683 -> "68.3 %"."""
    return f"{_rounded(100 * share, digits)}{_NO_SPLIT}%".replace("-", _MINUS)


def p_value(value: float) -> str:
    """A probability with its relation: "= 0.034", "< 0.001"."""
    if value < 0.001:
        return "< 0.001"
    return f"= {value:.3f}" if value < 0.0995 else f"= {value:.2f}"


def count(value: int) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,}".replace(",", _NO_SPLIT)


def decimals(change: float) -> int:
    """How many decimals show ``change`` with two significant digits, in 0 ... 4; 2 for no change."""
    return 2 if change == 0 else min(max(1 - math.floor(math.log10(abs(change))), 0), 4)


def fixed(value: float, digits: int, *, signed: bool = False) -> str:
    """``value`` with ``digits`` decimals and a true minus sign; with a plus sign where ``signed``."""
    if math.isinf(value):
        return (_MINUS if value < 0 else "+" if signed else "") + "\N{INFINITY}"
    text = _rounded(value, digits)
    is_zero = float(text) == 0
    return ("+" if signed and value > 0 and not is_zero else "") + text.replace("-", _MINUS)


def significant(value: float, digits: int = 3) -> str:
    """``value`` with that many significant digits, never in exponents within 0.0001 ... 10 million: 12.34 -> "12.3"."""
    if value == 0 or not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits}g}".replace("-", _MINUS)
    return fixed(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def _rounded(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # adding 0.0 turns -0.0 into 0.0


# --- pictures and figures --------------------------------------------------------------------------------------------


def _picture(image: Picture) -> dict[str, object]:
    """``image`` as a data URI with its size and whether its pixels are to be seen."""
    opened = open_picture(image)
    if max(opened.size) > _LARGEST_SIDE:
        opened = ImageOps.contain(opened, (_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    is_small = max(opened.size) <= _SMALL_SIDE
    file = io.BytesIO()
    opened.save(file, format="WEBP", lossless=is_small, quality=90, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    return {"uri": uri, "width": opened.width, "height": opened.height, "is_small": is_small}


def _themed(svg: str) -> Markup:
    """``svg`` with the colours of the page's theme in place of those it was drawn in."""
    themed = {INK: "--soft", FAINT: "--faint", HAIRLINE: "--line"}
    themed |= {color: f"--series-{number}" for number, color in enumerate(SERIES_COLORS, start=1)}
    for color, variable in themed.items():
        svg = svg.replace(color, f"var({variable})")
    # matplotlib escapes the names of the series, so nothing of the user's comes through as markup.
    return Markup(svg)
