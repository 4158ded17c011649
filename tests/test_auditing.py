"""The audit of pairs, over every form that they stand in."""

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
from PIL import Image

import diffusion_feedback as dfb
from diffusion_feedback.cli.main import main
from diffusion_feedback.evaluation.shortcuts import JOINT, POSITION

CAPTIONS = Path(__file__).resolve().parent.parent / "assets" / "captions"


def picture(number: int, side: int = 12, **more: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG" if more else "PNG", **more)
    return file.getvalue()


def rows_by_size(number: int = 24) -> list[PairRow]:
    """Pairs of a prompt each, of which the larger image is preferred."""
    return [PairRow(f"prompt {n}", picture(2 * n, 16), picture(2 * n + 1, 12)) for n in range(number)]


@pytest.mark.parametrize("form", FORMS)
def test_a_shortcut_is_reported_in_every_form(form: str, tmp_path: Path) -> None:
    audit = dfb.audit(FORMS[form](tmp_path / "data", rows_by_size()))
    assert (audit.result.num_pairs, audit.result.num_audited, audit.result.num_prompts) == (24, 24, 24)
    size = next(each for each in audit.shortcuts if each.name == "size")
    assert (size.level, size.prefers_more, size.num_equal) == ("strong", True, 0)
    assert size.accuracy is not None
    assert size.accuracy.value == 1
    # The form lists the preferred image first, so that the position is the label.
    assert POSITION not in {each.name for each in audit.shortcuts}
    assert "100 % of the labels are explained by the size alone: the larger image is preferred" in str(audit)


def table(path: Path, rows: list[dict[str, object]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_models_positions_ties_and_what_cannot_be_read(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = []
    for n in range(60):
        first_is_new = n % 3 > 0
        names = ("new", "old") if first_is_new else ("old", "new")
        images = {"jpg_0": picture(2 * n, quality=90), "jpg_1": picture(2 * n + 1, quality=60)}
        row = {"caption": f"prompt {n}", **images, "label_0": float(first_is_new), "model_0": names[0]}
        rows.append({**row, "model_1": names[1]})
    rows[3]["label_0"] = 0.5
    rows[4]["jpg_0"] = b"\x89PNG broken"
    data = rows[5]["jpg_0"]
    assert isinstance(data, bytes)
    rows[5]["jpg_0"] = data[:-60]  # its header can be read, its pixels cannot
    audit = dfb.audit(table(tmp_path / "pairs.parquet", rows))
    result = audit.result
    assert (result.num_ties, result.num_unreadable, result.num_pairs, result.num_audited) == (1, 1, 58, 57)
    shortcuts = {each.name: each for each in audit.shortcuts}
    assert shortcuts["source model"].level == "strong"
    assert shortcuts[POSITION].prefers_more
    assert shortcuts["jpeg quality"].accuracy == shortcuts[POSITION].accuracy
    assert "1 bad row is left out" in str(audit)
    assert "57 pairs over 57 prompts; 1 tie left out; 1 could not be read" in str(audit)


def test_models_that_stand_once_are_noted(tmp_path: Path) -> None:
    rows = [
        {"caption": f"p{n}", "jpg_0": picture(2 * n), "jpg_1": picture(2 * n + 1), "label_0": float(n % 2)}
        | {"model_0": f"model {n}", "model_1": f"model {n}, later"}
        for n in range(12)
    ]
    audit = dfb.audit(table(tmp_path / "pairs.parquet", rows))
    assert "source model: 24 names count as unknown (on fewer than 10 prompts" in str(audit)
    assert "source model" not in {each.name for each in audit.shortcuts}


def test_a_sample_is_always_the_same(tmp_path: Path) -> None:
    path = FORMS["pickapic"](tmp_path / "data", rows_by_size())
    first, second = (dfb.audit(path, max_pairs=15) for _ in range(2))
    assert first.result == second.result
    assert "15 pairs over 15 prompts, a random sample of 24" in str(first)


def test_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "audit.html"
    assert main(["data", "audit", str(CAPTIONS), "--output", str(page), "--max_pairs", "400"]) == 0
    text = capsys.readouterr().out
    assert "400 pairs over" in text
    assert "the wordier text is preferred" in text
    html = page.read_text()
    assert ["position, source model: not known of texts" in each for each in (text, html)] == [True, True]
    assert "<mark>" in html
    assert "<script" not in html
    assert "Shortcuts in the labels" in html
    with pytest.raises(dfb.UserError, match="exists already"):
        dfb.audit(CAPTIONS, output=page)


def test_rows_of_texts_that_repeat_a_pair_are_joined(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"p{n}", "chosen": "a long answer", "rejected": "short"} for n in range(20)]
    turned = [{**pair, "chosen": "short", "rejected": "a long answer"} for pair in pairs[:3]]
    file.write_text("\n".join(json.dumps(row) for row in [*pairs, *turned, *turned[:1]]))
    result = dfb.audit(file).result
    assert (result.num_pairs, result.num_ties, result.num_audited) == (18, 2, 18)
    characters = next(each for each in result.shortcuts if each.name == "characters")
    assert characters.accuracy is not None
    assert characters.accuracy.value == pytest.approx(17 / 18)


def test_a_page_of_images_holds_small_pictures(tmp_path: Path) -> None:
    rows = [PairRow(f"<b>{n}</b>", picture(2 * n, 700), picture(2 * n + 1, 500)) for n in range(12)]
    dfb.audit(FORMS["pickapic"](tmp_path / "data", rows), output=tmp_path / "audit.html")
    html = (tmp_path / "audit.html").read_text()
    pictures = re.findall(r"base64,([^\"]+)", html)
    assert pictures
    assert max(map(len, pictures)) <= 24_000 * 4 / 3 + 4
    assert "&lt;b&gt;" in html
    assert "<b>0" not in html
    assert "100 % of the labels" in html


def test_what_cannot_be_audited(tmp_path: Path) -> None:
    with pytest.raises(dfb.UserError, match="`tokenizer`: means nothing for images"):
        dfb.audit(FORMS["pickapic"](tmp_path / "data", rows_by_size(2)), tokenizer="some")
    few = dfb.audit(tmp_path / "data" / "pairs.parquet")
    assert "Too few prompts to say anything" in str(few)
    assert {each.level for each in few.shortcuts if each.name != JOINT} == {"none"}
    demonstrations = tmp_path / "answers.jsonl"
    demonstrations.write_text(json.dumps({"prompt": "p", "completion": "c"}))
    with pytest.raises(dfb.UserError, match="its examples are no pairs"):
        dfb.audit(demonstrations)
    with pytest.raises(dfb.UserError, match="ends in .html"):
        dfb.audit(CAPTIONS, output=tmp_path / "page.pdf")
