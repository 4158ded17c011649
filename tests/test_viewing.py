"""The contact sheet of pairs, over every form that they stand in."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_forms import FORMS, PairRow
from PIL import Image, ImageFilter

import diffusion_feedback as dfb
from diffusion_feedback.cli.main import main


def picture(number: int, size: tuple[int, int] = (12, 12), blur: float = 0) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur)).save(file, "PNG")
    return file.getvalue()


def prompts_of(page: Path) -> list[str]:
    return re.findall(r'<p class="caption">(.*?)</p>', page.read_text())


@pytest.mark.parametrize("form", FORMS)
def test_pairs_of_every_form_are_shown(form: str, tmp_path: Path) -> None:
    rows = [PairRow(f"prompt {n}", picture(2 * n, (8 + n, 40)), picture(2 * n + 1, (20, 40))) for n in range(5)]
    page = tmp_path / "sheet.html"
    shown = dfb.view(FORMS[form](tmp_path / "data", rows), page, sort="size", count=3)
    assert prompts_of(page) == ["prompt 0", "prompt 1", "prompt 2"]
    assert "pairs 1 to 3 of 5 pairs, the smallest first; page 1 of 2" in str(shown)
    html = page.read_text()
    # The preferred one is the first: it is the narrow one.
    assert re.findall(r'<p class="detail">(\d+) x 40, PNG', html) == ["8", "20", "9", "20", "10", "20"]
    assert html.count('class="preferred"') == 3
    assert "<script" not in html
    assert not re.search(r'(src|href)="(?!data:)', html)


def messy(path: Path) -> Path:
    """0 tied, 1 contested, 2 wide, 3 blurred, 4 large with an ampersand; 5 is broken."""
    sizes = [(12, 12), (12, 12), (30, 12), (12, 12), (600, 600), (12, 12)]
    rows = [
        {
            "caption": f"prompt {n} & a <cat>" if n == 4 else f"prompt {n}",
            "jpg_0": picture(2 * n, size),
            "jpg_1": picture(2 * n + 1, size, blur=3.0 * (n == 3)),
            "label_0": {0: 0.5, 1: 0.8}.get(n, 0.0),
        }
        for n, size in enumerate(sizes)
    ]
    rows[5]["jpg_0"] = b"nothing"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"sort": "prompt"}, ["prompt 0", "prompt 1", "prompt 2", "prompt 3", "prompt 4 &amp; a &lt;cat&gt;"]),
        ({"sort": "contradiction", "count": 2}, ["prompt 1", "prompt 0"]),
        ({"sort": "crop", "count": 1}, ["prompt 2"]),
        ({"sort": "sharpness", "count": 1}, ["prompt 3"]),
        ({"only": "tied"}, ["prompt 0"]),
        ({"only": "contested", "sort": "prompt"}, ["prompt 1"]),
        ({"only": "cropped"}, ["prompt 2"]),
        ({"only": "enlarged", "sort": "prompt"}, ["prompt 0", "prompt 1", "prompt 2", "prompt 3"]),
        ({"only": "enlarged", "resolution": 12, "search": "PROMPT 3"}, None),
        ({"search": "<CAT>"}, ["prompt 4 &amp; a &lt;cat&gt;"]),
        ({"sort": "prompt", "count": 2, "page": 2}, ["prompt 2", "prompt 3"]),
        ({"page": 9}, None),
    ],
)
def test_order_and_selection(settings: dict[str, object], expected: list[str] | None, tmp_path: Path) -> None:
    data, page = messy(tmp_path / "pairs.parquet"), tmp_path / "sheet.html"
    if expected is None:
        with pytest.raises(dfb.UserError, match="no pair to show"):
            dfb.view(data, page, **settings)
        assert not page.exists()
        return
    shown = dfb.view(data, page, **settings)
    assert prompts_of(page) == expected
    assert "1 bad row is left out" in str(shown)


def test_filters_are_those_that_part_the_page(tmp_path: Path) -> None:
    shown = dfb.view(messy(tmp_path / "pairs.parquet"), tmp_path / "sheet.html")
    assert shown.sheet.filters == {"contested": 1, "cropped": 1, "decided": 4, "enlarged": 4, "tied": 1}
    html = (tmp_path / "sheet.html").read_text()
    assert "preferred, 80 % of votes" in html
    assert 'id="only-cropped"' in html
    assert max(map(len, re.findall(r"base64,([^\"]+)", html))) <= 24_000 * 4 / 3 + 4


def test_texts_with_their_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "pairs.jsonl", tmp_path / "sheet.html"
    rows = [
        {"prompt": "long", "chosen": "word " * 2000, "rejected": "a <b>"},
        {"prompt": "short", "chosen": "the red cat", "rejected": "the blue cat"},
        {"prompt": "both ways", "chosen": "yes", "rejected": "no, never at all"},
        {"prompt": "both ways", "chosen": "no, never at all", "rejected": "yes"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert main(["data", "view", str(file), "--output", str(page), "--sort", "contradiction"]) == 0
    assert "pairs 1 to 3 of 3 pairs, those first on which votes disagree most" in capsys.readouterr().out
    html = page.read_text()
    assert prompts_of(page)[0] == "both ways"
    assert "the <mark>red</mark> cat" in html
    assert "the <mark>blue</mark> cat" in html
    assert "8,500 more characters" in html
    assert "<mark>&lt;b&gt;</mark>" in html
    assert len(html) < 40_000
    with pytest.raises(dfb.UserError, match="means nothing for texts"):
        dfb.view(file, tmp_path / "other.html", sort="crop")


@pytest.mark.parametrize("medium", ["image", "text"])
def test_contested_are_those_on_which_votes_disagree(medium: str, tmp_path: Path) -> None:
    """A tie is one vote, or several that agree; what votes part over comes first."""
    cast = {"one tie": ["tie"], "ties": ["tie", "both_bad"], "split": ["a", "b"], "one to two": ["a", "b", "b"]}
    cast |= {"partly": ["a", "tie"], "clear": ["b", "b"]}
    rows = []
    for number, (prompt, votes) in enumerate(cast.items()):
        sides = [f"{number}-{side}.png" if medium == "image" else f"{number} {side}" for side in "ab"]
        for side, name in enumerate(sides if medium == "image" else []):
            (tmp_path / name).write_bytes(picture(2 * number + side))
        names = [f"{'image' if medium == 'image' else 'response'}_{side}" for side in "ab"]
        rows += [{"prompt": prompt, **dict(zip(names, sides, strict=True)), "vote": vote} for vote in votes]
    (tmp_path / "votes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shown = dfb.view(tmp_path / "votes.jsonl", tmp_path / "all.html", sort="contradiction")
    assert prompts_of(tmp_path / "all.html")[:3] == ["split", "one to two", "partly"]
    assert (shown.sheet.filters["contested"], shown.sheet.filters["tied"]) == (3, 3)
    dfb.view(tmp_path / "votes.jsonl", tmp_path / "few.html", only="contested", sort="prompt")
    assert prompts_of(tmp_path / "few.html") == ["one to two", "partly", "split"]
