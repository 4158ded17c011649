"""Score tables: what is written comes back, and what is wrong is named by file, row and column."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusion_feedback.data.scores import SCHEMA, read_scores, write_scores
from diffusion_feedback.errors import UserError
from diffusion_feedback.records import ScoreRecord

ROW = ScoreRecord("a.png", "k1", "a cat", "pickscore", "pickscore/fp32/abc", 21.5, 0.215, 100.0)


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, sample="b.png", scorer="shapes", recipe_id="shapes.1", logit_scale=None)]
    for name in ("one.parquet", "two.parquet"):
        write_scores(rows, tmp_path / name)
    assert read_scores(tmp_path / "one.parquet") == rows
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_logits() -> None:
    assert ROW.logit == pytest.approx(21.5)
    assert replace(ROW, logit_scale=None).logit is None


@pytest.mark.parametrize("column", ["score", "raw"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_refused(tmp_path: Path, column: str, value: float) -> None:
    write_scores([ROW, replace(ROW, sample="b.png", **{column: value})], tmp_path / "s.parquet")
    with pytest.raises(UserError, match=rf"s\.parquet, row 1, column '{column}': found (nan|inf) for b\.png"):
        read_scores(tmp_path / "s.parquet")


def test_two_scores_of_one_image_are_refused(tmp_path: Path) -> None:
    """The same row twice says the same; another number under the same recipe was not made by that recipe."""
    again = replace(ROW, sample="copy.png", raw=ROW.raw + 1e-6)
    write_scores([ROW, again], tmp_path / "s.parquet")
    assert len(read_scores(tmp_path / "s.parquet")) == 2
    for field in ("score", "raw"):
        write_scores([ROW, replace(ROW, **{field: getattr(ROW, field) + 0.1})], tmp_path / "s.parquet")
        with pytest.raises(
            UserError, match=rf"row 1: {ROW.sample} has the score .* in row 0 .* both by {ROW.recipe_id}"
        ):
            read_scores(tmp_path / "s.parquet")


def test_text_that_is_none_is_refused(tmp_path: Path) -> None:
    write_scores([ROW], tmp_path / "s.parquet")
    table = pq.read_table(tmp_path / "s.parquet")
    broken = pa.array([b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(table.set_column(2, SCHEMA.field("prompt"), broken), tmp_path / "s.parquet")
    with pytest.raises(UserError, match="not a score table"):
        read_scores(tmp_path / "s.parquet")


def test_what_is_no_score_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_scores(tmp_path / "gone.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(UserError, match="not a score table"):
        read_scores(tmp_path / "text.parquet")
    pq.write_table(pa.table({"image": ["a"]}), tmp_path / "short.parquet")
    with pytest.raises(UserError, match="no column image_key, prompt"):
        read_scores(tmp_path / "short.parquet")
    words = {name: ["x"] for name in SCHEMA.names}
    pq.write_table(pa.table(words), tmp_path / "words.parquet")
    with pytest.raises(UserError, match="not a score table"):
        read_scores(tmp_path / "words.parquet")
    pq.write_table(SCHEMA.empty_table(), tmp_path / "empty.parquet")
    with pytest.raises(UserError, match="holds no scores"):
        read_scores(tmp_path / "empty.parquet")
