"""The check of a data set, and the two commands."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffusion_feedback.cli.data import run
from diffusion_feedback.data.check import check_pairs
from diffusion_feedback.data.readers import open_pairs
from diffusion_feedback.errors import UserError
from diffusion_feedback.reports.checks import check_summary
from diffusion_feedback.workflows.converting import convert

MakeRows = Callable[..., list[dict[str, Any]]]
Table = Callable[..., Path]


def messy(pickapic_rows: MakeRows) -> list[dict[str, Any]]:
    rows = pickapic_rows(12)
    rows[1] |= {"label_0": 0.5, "label_1": 0.5}
    rows[2]["has_label"] = False
    rows[3]["caption"] = ""
    rows[4]["jpg_0"] = b"nothing"
    rows[5]["jpg_1"] = rows[5]["jpg_0"]
    rows[6]["label_0"] = 7.0
    rows[7] |= {"label_0": 0.25, "label_1": 0.75}
    rows[8]["caption"] = "word " * 60
    against = rows[9] | {"label_0": rows[9]["label_1"], "label_1": rows[9]["label_0"]}
    return [*rows, rows[0], against]


def test_report(table: Table, pickapic_rows: MakeRows) -> None:
    path = table(messy(pickapic_rows))
    report = check_pairs(path)
    assert (
        report.reader.log.counts.rows,
        report.reader.log.counts.usable,
        report.reader.log.counts.ties,
        report.reader.log.counts.unlabelled,
    ) == (14, 9, 1, 1)
    assert dict(report.reader.log.counts.bad) == {"caption": 1, "image": 1, "identical": 1, "label": 1}
    # Of 7 distinct pairs one is a tie and one is contradicted.
    assert (report.votes.num_usable, report.votes.duplicates, report.long_captions) == (5, 2, 1)
    assert report.votes.contradicting == [f"{path}, row 9"]
    assert report.labels == {"image 0 preferred": 2, "image 1 preferred": 5, "tie": 1, "vote shares in between": 1}
    assert (len(report.images), len(report.prompts)) == (14, 4)
    assert set(report.image_formats) == {"PNG", "JPEG", "WEBP"}
    assert report.image_modes == {"RGB": 14}
    assert set(report.sides) == {8}
    assert not report.is_ready
    text = check_summary(report)
    for part in (
        "parquet with Pick-a-Pic columns",
        "1 row with an empty or missing caption -> give every pair a caption",
        f"{path}, row 4, column 'jpg_0': not an image of PNG, JPEG, WebP",
        "1 pair has rows that contradict each other",
        "2 rows repeat a pair -> training uses each pair once",
        "1 pair has a caption of more than 50 words",
        "shorter side 8 px",
        "Not ready: 4 unusable rows stop a run. Correct them, or train on the other 5 pairs with data.on_bad_row: skip.",
    ):
        assert part in text


def test_verdicts(table: Table, pickapic_rows: MakeRows) -> None:
    assert check_summary(check_pairs(table(pickapic_rows(3)))).endswith("Ready to train: 3 pairs.")
    rows = pickapic_rows(3)
    rows[0] |= {"label_0": 0.5, "label_1": 0.5}
    text = check_summary(check_pairs(table(rows)))
    assert text.endswith("Ready to train: 2 pairs (1 tie is left out; data.ties: soft keeps them).")
    text = check_summary(check_pairs(table(pickapic_rows(3, label_0=0.5, label_1=0.5))))
    assert "Not ready: all 3 usable pairs are ties" in text
    assert check_summary(check_pairs(table(pickapic_rows(3, caption="")))).endswith("Not ready: no usable pair.")


def test_check_command(table: Table, pickapic_rows: MakeRows, capsys: pytest.CaptureFixture[str]) -> None:
    run(["check", str(table(pickapic_rows(3)))])
    assert "Ready to train: 3 pairs." in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        run(["check", str(table(messy(pickapic_rows)))])
    assert caught.value.code == 2
    with pytest.raises(UserError, match="no such file or folder"):
        run(["check", "nowhere.parquet"])


def test_convert_command(
    table: Table, pickapic_rows: MakeRows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = str(table(messy(pickapic_rows))), tmp_path / "out" / "clean.parquet"
    with pytest.raises(UserError, match="row 3, column 'caption'"):
        run(["convert", source, str(output)])
    assert not output.parent.exists()
    run(["convert", source, str(output), "--on-bad-row", "skip"])
    told = capsys.readouterr().out
    assert "left out: " in told
    assert f"{output}: 9 pairs from parquet" in told
    read = list(open_pairs(output, ties="soft"))
    assert [r.label_0 for r in read] == [r.label_0 for r in open_pairs(source, ties="soft", on_bad_row="skip")]
    before = output.read_bytes()
    with pytest.raises(UserError, match=r"clean.parquet: exists already[\s\S]*`overwrite`"):
        run(["convert", source, str(output), "--on_bad_row", "skip"])
    assert output.read_bytes() == before
    run(["convert", str(table(pickapic_rows(2))), str(output), "--overwrite"])
    assert len(list(open_pairs(output))) == 2
    with pytest.raises(UserError, match=r"give a name that ends in .parquet"):
        run(["convert", source, "out.zip"])


def test_a_converted_file_may_lie_in_the_home_folder(
    table: Table, pickapic_rows: MakeRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    converted = convert(str(table(pickapic_rows(2))), "~/clean.parquet")
    assert converted.output == tmp_path / "clean.parquet"
    assert len(list(open_pairs(converted.output))) == 2
    with pytest.raises(UserError, match="is one of the inputs"):
        convert(str(converted.output), "~/clean.parquet", overwrite=True)


def test_help_is_quick_and_has_examples() -> None:
    code = "import sys; from diffusion_feedback.cli.data import run; run(['convert', '--help'])"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 10
    assert "dfb data convert my_images pairs.parquet" in done.stdout
    for heavy in ("torch", "pyarrow", "datasets", "PIL"):
        assert f" {heavy}\n" not in done.stderr
