"""Every form of pairs meets every oddity of images, names, captions and rows: the right value, or the right message."""

from __future__ import annotations

import io
import itertools
import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_forms import FILE_FORMS, FORMS, PairRow, pickapic, save, save_table, twins, written_names
from PIL import Image

from diffusion_feedback.cli.main import main
from diffusion_feedback.data.check import check_pairs
from diffusion_feedback.data.index import PairIndex
from diffusion_feedback.data.pickapic import write_pickapic
from diffusion_feedback.data.readers import open_pairs
from diffusion_feedback.errors import UserError
from diffusion_feedback.records import PairRecord
from diffusion_feedback.reports.checks import check_summary


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def plain(number: int) -> bytes:
    return encoded(Image.new("RGB", (6, 4), (number, 40, 90)))


def rows_with(first: bytes, ending: str = ".png") -> list[PairRow]:
    """Three pairs, the second with ``first`` as its preferred image."""
    images = [plain(10), first, plain(30)]
    return [PairRow(f"a picture {n}", image, plain(100 + n), ending) for n, image in enumerate(images)]


def oriented() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.new("RGB", (6, 4), (200, 100, 50)), "JPEG", exif=exif, quality=100)


def moving(format: str) -> bytes:
    frames = [Image.new("RGB", (6, 4), (value, value, value)) for value in (200, 10, 20)]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)


RGB = Image.new("RGB", (6, 4), (200, 100, 50))
CLEAR = Image.new("RGBA", (6, 4), (9, 9, 9, 0))
GREY16 = Image.fromarray(np.full((4, 6), 257 * 77, dtype=np.uint16))

# Bytes, ending, then (width, height) and colour of the upright picture.
GOOD: dict[str, tuple[bytes, str, tuple[int, int], tuple[int, int, int]]] = {
    "png": (encoded(RGB), ".png", (6, 4), (200, 100, 50)),
    "jpeg": (encoded(RGB, "JPEG", quality=100), ".jfif", (6, 4), (200, 100, 50)),
    "webp": (encoded(RGB, "WEBP", lossless=True), ".webp", (6, 4), (200, 100, 50)),
    "avif": (encoded(RGB, "AVIF", quality=100), ".avif", (6, 4), (200, 100, 50)),
    "gif": (encoded(RGB, "GIF"), ".gif", (6, 4), (200, 100, 50)),
    "bmp": (encoded(RGB, "BMP"), ".BMP", (6, 4), (200, 100, 50)),
    "tiff": (encoded(RGB, "TIFF"), ".tif", (6, 4), (200, 100, 50)),
    "exif": (oriented(), ".JPG", (4, 6), (200, 100, 50)),
    "transparent": (encoded(CLEAR), ".png", (6, 4), (255, 255, 255)),
    "16 bit": (encoded(GREY16), ".png", (6, 4), (77, 77, 77)),
    "cmyk": (encoded(Image.new("CMYK", (6, 4), (0, 0, 0, 0)), "JPEG", quality=100), ".jpe", (6, 4), (255, 255, 255)),
    "palette": (encoded(RGB.convert("P")), ".png", (6, 4), (204, 102, 51)),
    "moving gif": (moving("GIF"), ".gif", (6, 4), (200, 200, 200)),
    "moving webp": (moving("WEBP"), ".webp", (6, 4), (200, 200, 200)),
    "other ending": (encoded(RGB, "WEBP", lossless=True), ".png", (6, 4), (200, 100, 50)),
}

BAD: dict[str, tuple[bytes, str]] = {
    "cut png": (plain(9)[:-30], "broken image"),
    "cut jpeg": (oriented()[:200], "broken image"),
    "empty": (b"", r"the image is empty \(0 bytes\)"),
    "web page": (b"\n<!DOCTYPE html><html>secret</html>", "it is a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:secret\n", "a git LFS pointer, as git lfs pull"),
    "svg": (b"<svg xmlns='secret'></svg>", "it is an SVG drawing"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic secret", "it is a HEIC image"),
    "text": (b"secret=1234", "it is text"),
    "zeros": (bytes(64), "it is zeros only"),
    "noise": (b"\x93\x01secret\xff\xfe" * 9, "it is data of another kind"),
    "float": (encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "its pixels are floating-point numbers"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("oddity", GOOD)
def test_images_of_every_kind_are_read_alike(oddity: str, form: str, tmp_path: Path) -> None:
    data, ending, size, colour = GOOD[oddity]
    path = FORMS[form](tmp_path / "set", rows_with(data, ending))
    records = list(open_pairs(path))
    assert [record.prompt for record in records] == ["a picture 0", "a picture 1", "a picture 2"]
    assert records[1].chosen == data
    for _ in range(2):  # with what was kept of the images, too
        index = PairIndex.build(open_pairs(path), folder=tmp_path / "index", quiet=True)
        number = next(n for n, pair in enumerate(index.pairs) if pair.prompt == "a picture 1")
        pair, image = index.pairs[number], index.batch([number], 0).chosen[0].open()
        assert pair.sizes[pair.chosen] == image.size == size
        assert np.abs(np.asarray(image).astype(int) - colour).max() <= 2
    report = check_pairs(path)
    assert report.is_ready
    assert report.num_animated == ("moving" in oddity)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("oddity", BAD)
def test_what_is_no_image_is_named_and_its_bytes_are_not_shown(oddity: str, form: str, tmp_path: Path) -> None:
    data, problem = BAD[oddity]
    path = FORMS[form](tmp_path / "set", rows_with(data))
    for build in (list, lambda reader: PairIndex.build(reader, folder=tmp_path / "index", quiet=True)):
        with pytest.raises(
            UserError, match=rf"(row 1|line 2|line 3|1\.png|images 0 and 1), column '\w+': .*{problem}"
        ) as caught:
            build(open_pairs(path))
        assert "secret" not in str(caught.value)
        assert "on_bad_row: skip" in caught.value.remedy
    report = check_pairs(path)
    assert report.votes.num_usable == 2
    assert not report.is_ready
    assert len(list(open_pairs(path, on_bad_row="skip"))) == 2


def make_pipe(file: Path) -> None:
    os.mkfifo(file)


def make_folder(file: Path) -> None:
    file.mkdir()


def make_device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def make_dangling(file: Path) -> None:
    file.symlink_to("nowhere.png")


def make_loop(file: Path) -> None:
    file.symlink_to(file.name)


PLACES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda file: None, "no such file"),
    "pipe": (make_pipe, "is a pipe, not a file"),
    "folder": (make_folder, "is a folder, not a file"),
    "device": (make_device, "is a device, not a file"),
    "dangling link": (make_dangling, "no such file"),
    "link to itself": (make_loop, "symbolic links"),
}


@pytest.mark.parametrize("form", FILE_FORMS)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_is_never_opened(place: str, form: str, tmp_path: Path) -> None:
    make, problem = PLACES[place]
    path = FILE_FORMS[form](tmp_path / "set", rows_with(plain(20)))
    file = next((tmp_path / "set").rglob("1-a.png" if form != "twins" else "chosen/1.png"))
    file.unlink()
    make(file)
    # Folders and what is not there are not listed: the pair then lacks its image.
    lacks = form == "twins" and place in ("missing", "folder")
    for build in (list, lambda reader: PairIndex.build(reader, folder=tmp_path / "index", quiet=True)):
        with pytest.raises(UserError, match="no image" if lacks else rf"cannot read .*1.*png \(.*{problem}"):
            build(open_pairs(path))
    assert check_pairs(path).votes.num_usable == 2


NAMES: dict[str, tuple[str, str]] = {
    "up and out": ("../elsewhere.png", "leads out of"),
    "up and out hidden": ("images/../../elsewhere.png", "leads out of"),
    "too long": ("a" * 300 + ".png", "File name too long"),
    "nothing": ("", "no image|not the path of an image"),
    "absolute and missing": ("/nowhere/a.png", r"cannot read /nowhere/a.png \(no such file\)"),
    "folder itself": ("images", "is a folder, not a file"),
    "device": ("/dev/zero", "is a device, not a file"),
    "no image": ("/etc/passwd", "it is text"),
}


@pytest.mark.parametrize("form", [form for form in FILE_FORMS if form != "twins"])
@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere_or_nowhere(name: str, form: str, tmp_path: Path) -> None:
    given, problem = NAMES[name]
    rows = rows_with(plain(20))
    FILE_FORMS[form](tmp_path / "set", rows)
    save(tmp_path / "elsewhere.png", plain(55))
    names = [("images/0-a.png", "images/0-b.png"), (given, "images/1-b.png"), ("images/2-a.png", "images/2-b.png")]
    path = written_names(form, tmp_path / "set", rows, names)
    for build in (list, lambda reader: PairIndex.build(reader, folder=tmp_path / "index", quiet=True)):
        for _ in range(2):
            with pytest.raises(UserError, match=problem) as caught:
                build(open_pairs(path))
            assert "root:" not in str(caught.value)
    assert check_pairs(path).votes.num_usable == 2


@pytest.mark.parametrize("form", ["metadata.jsonl", "chosen_file_name", "parquet of paths", "metadata.parquet"])
def test_a_nul_in_a_name(form: str, tmp_path: Path) -> None:
    rows = rows_with(plain(20))
    FILE_FORMS[form](tmp_path / "set", rows)
    names = [
        ("images/0-a.png", "images/0-b.png"),
        ("images/1\0a.png", "images/1-b.png"),
        ("images/2-a.png", "images/2-b.png"),
    ]
    path = written_names(form, tmp_path / "set", rows, names)
    with pytest.raises(UserError, match=r"cannot read .*null"):
        list(open_pairs(path))
    assert check_pairs(path).votes.num_usable == 2


@pytest.mark.parametrize("form", FILE_FORMS)
@pytest.mark.parametrize("way", ["full path", "link"])
def test_images_that_lie_elsewhere_are_read_counted_and_told(
    way: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, elsewhere = rows_with(plain(20)), save(tmp_path / "elsewhere.png", plain(55))
    path = FILE_FORMS[form](tmp_path / "set", rows)
    if way == "link" or form == "twins":
        file = next((tmp_path / "set").rglob("1-a.png" if form != "twins" else "chosen/1.png"))
        file.unlink()
        file.symlink_to(elsewhere)
    else:
        names = [(f"images/{n}-a.png", f"images/{n}-b.png") for n in range(3)]
        names[1] = (str(elsewhere), "images/1-b.png")
        path = written_names(form, tmp_path / "set", rows, names)
    for _ in range(2):
        index = PairIndex.build(open_pairs(path), folder=tmp_path / "index", quiet=True)
        assert any("1 image lies outside its folder (full paths or links): " in note for note in index.notes)
    assert main(["data", "check", str(path)]) == 0
    assert "1 image lies outside its folder" in capsys.readouterr().out
    assert main(["data", "convert", str(path), str(tmp_path / "out.parquet")]) == 0
    assert "1 image lies outside its folder" in capsys.readouterr().out
    assert [record.chosen for record in open_pairs(tmp_path / "out.parquet")][1] == plain(55)


# --- rows ------------------------------------------------------------------------------------------------------------

CAPTIONS = {"null": (None, "no caption"), "empty": ("", "the caption is empty"), "blank": (" \t", "caption")}


@pytest.mark.parametrize("form", [form for form in FORMS if form != "twins"])
@pytest.mark.parametrize("caption", CAPTIONS)
def test_pairs_without_a_caption(caption: str, form: str, tmp_path: Path) -> None:
    text, problem = CAPTIONS[caption]
    first, second, third = rows_with(plain(20))
    path = FORMS[form](tmp_path / "set", [first, PairRow(text, second.first, second.second), third])  # type: ignore[arg-type]
    problem = "the caption is empty" if form == "metadata.csv" and text is None else problem
    with pytest.raises(
        UserError, match=rf"(row 1|line 2|line 3|images 0 and 1), column '(caption|prompt)': .*{problem}"
    ):
        list(open_pairs(path))
    assert check_pairs(path).reader.log.counts.bad == {"caption": 1}


OPTIONAL: dict[str, tuple[Any, str]] = {
    "has_label": (False, "unlabelled"),
    "are_different": (False, "not_different"),
    "label_1": (0.0, "pairs"),
    "num_example_per_prompt": (4, "weight"),
}
ORDERS = list(itertools.permutations(range(3)))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("column", OPTIONAL)
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "".join(map(str, order)))
def test_optional_columns_hold_in_the_rows_that_have_them(
    order: tuple[int, ...], column: str, kind: str, tmp_path: Path
) -> None:
    """One row of three has the key, wherever it stands; a row without it has the default."""
    value, effect = OPTIONAL[column]
    cells: list[dict[str, Any]] = []
    for number in range(3):
        for side in "ab":
            save(tmp_path / f"{number}{side}.png", plain(50 * number + ord(side)))
        names = {"image_0_file_name": f"{number}a.png", "image_1_file_name": f"{number}b.png"}
        cells.append({**names, "prompt": f"p{number}", "label_0": 1.0})
    cells[0][column] = value
    if kind == "parquet" and column in ("label_1", "num_example_per_prompt"):
        # There a cell is null, which is no number: every row has to say one.
        save_table(tmp_path / "metadata.parquet", [cells[n] for n in order])
        with pytest.raises(UserError, match=f"column '{column}': found (None|nan)"):
            list(open_pairs(tmp_path))
        return
    save_table(tmp_path / f"metadata.{kind}", [cells[n] for n in order])
    reader = open_pairs(tmp_path)
    weights = {record.prompt: record.weight for record in reader}
    counts = reader.log.counts
    assert (counts.unlabelled, counts.not_different) == (effect == "unlabelled", effect == "not_different")
    assert len(weights) == (3 if effect in ("pairs", "weight") else 2)
    assert weights.get("p0", 1.0) == (1 / 4 if effect == "weight" else 1.0)
    assert {weights["p1"], weights["p2"]} == {1.0}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_unknown_columns_and_tables_beside_are_named(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = FORMS[f"metadata.{kind}"](tmp_path / "set", rows_with(plain(20)))
    cells = [
        {
            "image_0_file_name": f"images/{n}-a.png",
            "image_1_file_name": f"images/{n}-b.png",
            "prompt": "p",
            "label_0": 1.0,
        }
        for n in range(2)
    ]
    cells[1] |= {"has_lable": False, "seed": 3}
    save_table(path / f"metadata.{kind}", cells)
    assert main(["data", "check", str(path)]) == 0
    told = capsys.readouterr().out
    assert "columns that nothing is read from: has_lable, seed" in told
    assert f"2 images that no row of metadata.{kind} names: images/2-a.png, images/2-b.png" in told


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_named_twice_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"metadata.{kind}"
    if kind == "csv":
        path.write_text("image_0_file_name,image_1_file_name,prompt,label_0,prompt\na,b,p,1,q\n")
    else:
        columns = ["image_0_file_name", "image_1_file_name", "prompt", "prompt"]
        pq.write_table(pa.Table.from_arrays([pa.array(["x"])] * 4, columns), path)
    with pytest.raises(UserError, match="two columns are named 'prompt'"):
        list(open_pairs(tmp_path))


def test_a_parquet_table_with_columns_named_twice(tmp_path: Path) -> None:
    arrays = [pa.array(["p"]), pa.array([plain(1)]), pa.array([plain(2)]), pa.array([1.0]), pa.array([0.0])]
    table = pa.Table.from_arrays(arrays, ["caption", "jpg_0", "jpg_1", "label_0", "label_0"])
    pq.write_table(table, tmp_path / "pairs.parquet")
    assert main(["data", "check", str(tmp_path / "pairs.parquet")]) == 2
    with pytest.raises(UserError, match="two columns are named 'label_0'"):
        list(open_pairs(tmp_path / "pairs.parquet"))


# --- what stands as a whole ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_repeats_are_counted(form: str, tmp_path: Path) -> None:
    rows = rows_with(plain(20))
    path = FORMS[form](tmp_path / "set", [*rows, rows[0], rows[0]])
    assert "2 rows repeat a pair" in check_summary(check_pairs(path))
    assert PairIndex.build(open_pairs(path), quiet=True).num_duplicates == 2


def test_splits_of_a_saved_dictionary(tmp_path: Path) -> None:
    path = FORMS["save_to_disk splits"](tmp_path / "set", rows_with(plain(20)))
    assert len(list(open_pairs(path, split="test"))) == 1
    with pytest.raises(UserError, match=r"no split 'validation'[\s\S]*found splits: train, test"):
        list(open_pairs(path, split="validation"))


@pytest.mark.parametrize("damage", ["cut", "gone", "info"])
@pytest.mark.parametrize("form", ["save_to_disk", "save_to_disk splits"])
def test_a_damaged_saved_folder_is_one_message(form: str, damage: str, tmp_path: Path) -> None:
    path = FORMS[form](tmp_path / "set", rows_with(plain(20)))
    arrow = sorted(path.rglob("*.arrow"))[-1]
    if damage == "cut":
        arrow.write_bytes(arrow.read_bytes()[:100])
    elif damage == "gone":
        arrow.unlink()
    else:
        (arrow.parent / "dataset_info.json").write_text("{")
    assert main(["data", "check", str(path)]) == 2
    with pytest.raises(UserError, match=r"could not be read as a folder of datasets' save_to_disk[\s\S]*to_parquet"):
        list(open_pairs(path))


@pytest.mark.parametrize("given", ["a,b", "a, b", "a;b"])
def test_several_data_sets_are_refused_with_the_way_out(given: str, tmp_path: Path) -> None:
    pickapic(tmp_path / "a", rows_with(plain(20)))
    pickapic(tmp_path / "b", rows_with(plain(21)))
    with pytest.raises(UserError, match=r"2 data sets, where one is read[\s\S]*data.train: \["):
        open_pairs(given.replace("a", str(tmp_path / "a"), 1).replace("b", str(tmp_path / "b")))


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "~nobody-of-that-name/x"])
def test_what_can_be_no_path(name: str) -> None:
    with pytest.raises(UserError, match="cannot be a path|no such file or folder"):
        open_pairs(name)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_neither_file_nor_folder_is_not_opened(kind: str, tmp_path: Path) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / "pipe"
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(UserError, match="is neither a file nor a folder"):
        open_pairs(path)
    assert main(["data", "check", str(path)]) == 2


@pytest.mark.parametrize("how", ["glob", "folder", "link", "metadata"])
def test_convert_never_writes_over_what_it_reads(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "set"
    one = pickapic(folder, rows_with(plain(20)))
    two = folder / "two.parquet"
    two.write_bytes(one.read_bytes())
    given, output = {"glob": (f"{folder}/*.parquet", two), "folder": (str(folder), two)}.get(how, (str(folder), two))
    if how == "link":
        output = tmp_path / "link.parquet"
        output.symlink_to(two)
    if how == "metadata":
        given = str(FORMS["metadata.parquet"](tmp_path / "images", rows_with(plain(20))))
        output = Path(given) / "metadata.parquet"
    before = output.read_bytes()
    assert main(["data", "convert", given, str(output), "--overwrite"]) == 2
    assert "is one of the inputs" in capsys.readouterr().err
    assert output.read_bytes() == before


def test_files_of_other_splits_and_hidden_ones_are_named(tmp_path: Path) -> None:
    data = pickapic(tmp_path, rows_with(plain(20))).read_bytes()
    for name in (
        "train-0.parquet",
        "validation-0.parquet",
        "TRAIN.note.parquet",
        "._train-0.parquet",
        "more/train-1.parquet",
    ):
        save(tmp_path / name, data)
    text = check_summary(check_pairs(tmp_path))
    assert "passed over 3 parquet files whose names begin with no split: ._train-0.parquet, TRAIN.note.parquet" in text
    assert "passed over 1 parquet files in subfolders: more/train-1.parquet" in text


def test_other_files_of_a_glob_are_named(tmp_path: Path) -> None:
    pickapic(tmp_path, rows_with(plain(20)))
    save(tmp_path / "pairs.json", b"{}")
    assert "passed over 1 that are no .parquet files" in check_summary(check_pairs(tmp_path / "pairs*"))


@pytest.mark.parametrize("error", [OSError(5, "Input/output error", "pairs.parquet"), OSError("no more")])
def test_errors_of_reading_are_not_told_as_errors_of_the_output(error: OSError, tmp_path: Path) -> None:
    def failing() -> Iterator[PairRecord]:
        yield PairRecord("p", plain(1), plain(2), 1.0)
        raise error

    with pytest.raises(
        UserError, match=r"^(pairs.parquet: cannot be read \(Input|the pairs: cannot be read \(no more)"
    ):
        write_pickapic(failing(), tmp_path / "out.parquet")
    assert not list(tmp_path.iterdir())


def test_a_data_set_that_fails_while_it_is_read_is_one_message(tmp_path: Path) -> None:
    path = FORMS["save_to_disk"](tmp_path / "set", rows_with(plain(20)))
    source = open_pairs(path).source
    assert source.num_rows == 3

    class Failing:
        features, cache_files = source.hub.data.features, ()  # type: ignore[attr-defined]

        def __len__(self) -> int:
            return 3

        def select_columns(self, names: list[str]) -> Iterator[Any]:
            yield {"caption": "p", "label_0": 1.0, "jpg_0": {"bytes": plain(1)}, "jpg_1": {"bytes": plain(2)}}
            raise RuntimeError("connection lost")

    source.hub.__dict__["data"] = Failing()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="split 'train': could not be read as rows of a data set: connection lost"):
        list(source.rows())


def test_pictures_that_are_cut_and_enlarged_are_told(tmp_path: Path) -> None:
    rows = [
        PairRow("wide", encoded(Image.new("RGB", (1600, 200), (1, 2, 3))), encoded(Image.new("RGB", (512, 512)))),
        PairRow("small", encoded(Image.new("RGB", (8, 8), (1, 2, 3))), encoded(Image.new("RGB", (1024, 512)))),
    ]
    text = check_summary(check_pairs(pickapic(tmp_path, rows)))
    lost = "leaves out 68.8% of the area (median), 87.5% at worst (1600 x 200); 2 lose more than 20%"
    assert f"2 of 4 images are not square: a square from the middle is trained on, which {lost}" in text
    assert "shapes: 2 1:1, 1 2:1, 1 otherwise wide" in text
    assert "2 of 4 images are enlarged when trained at 512 px, the smallest from 8 x 8" in text
    assert "4 of 4 images are enlarged when trained at 1024 px" in text


# --- twin folders ----------------------------------------------------------------------------------------------------


def twin(folder: Path, name: str, number: int, caption: str | None = None) -> None:
    for side in ("chosen", "rejected"):
        save(folder / side / name, plain(number + (side == "chosen")))
    if caption is not None:
        save((folder / "chosen" / name).with_suffix(".txt"), caption)


def prompts_of(folder: Path) -> list[str]:
    return [record.prompt for record in open_pairs(folder)]


@pytest.mark.parametrize("place", ["beside", "chosen"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("name", ["captions", "metadata"])
def test_captions_are_found_by_path(name: str, kind: str, place: str, tmp_path: Path) -> None:
    """Each image's own line, of either side and another split, in any order: never another image's."""
    for number in range(3):
        twin(tmp_path / "train", f"{number}.png", 20 * number)
    prefix = "train/chosen/" if place == "beside" else ""
    lines = [{"file_name": f"{prefix}{n}.png", "text": f"caption {n}"} for n in (2, 0, 1)]
    if place == "beside":
        lines += [{"file_name": f"train/rejected/{n}.png", "text": f"caption {n}"} for n in range(3)]
        lines += [{"file_name": f"validation/chosen/{n}.png", "text": "of another split"} for n in range(3)]
    folder = tmp_path / "train" if place == "beside" else tmp_path / "train" / "chosen"
    save_table(folder / f"{name}.{kind}", lines)
    assert prompts_of(tmp_path) == ["caption 0", "caption 1", "caption 2"]
    notes = open_pairs(tmp_path).source.notes
    lost = ["passed over 3 captions that name no image"] if place == "beside" else []
    assert [words for note in notes for words in lost if words in note] == lost
    assert len(notes) == len(lost)  # the table itself is read, and not among what is passed over


@pytest.mark.parametrize(
    ("first", "second"),
    list(itertools.combinations(["chosen entry", "rejected entry", "bare entry", "chosen text", "rejected text"], 2)),
)
@pytest.mark.parametrize("agree", [True, False])
def test_two_captions_of_a_pair_must_agree(agree: bool, first: str, second: str, tmp_path: Path) -> None:
    twin(tmp_path, "0.png", 0)
    entries = []
    for number, way in enumerate((first, second)):
        text, side = f"caption {0 if agree else number}", way.split()[0]
        if "text" in way:
            save(tmp_path / side / "0.txt", text)
        else:
            entries.append({"file_name": "0.png" if side == "bare" else f"{side}/0.png", "text": text})
    if entries:
        save_table(tmp_path / "metadata.jsonl", entries)
    if not agree:
        with pytest.raises(
            UserError, match=r"0.png: two captions for one pair: 'caption \d' \(.*\) and 'caption \d' \(.*"
        ):
            prompts_of(tmp_path)
    elif "rejected" in first and "rejected" in second:
        with pytest.raises(UserError, match="0.png: no caption; the one in .* is of the rejected image alone"):
            prompts_of(tmp_path)
    else:
        assert prompts_of(tmp_path) == ["caption 0"]


@pytest.mark.parametrize("prefix", ["", "./", "/data/of/another/machine/", "set\\"])
def test_captions_that_were_written_elsewhere(prefix: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for number in range(2):
        twin(folder, f"{number}.png", 20 * number)
    slash = "\\" if "\\" in prefix else "/"
    lines = [{"file_name": f"{prefix}chosen{slash}{n}.png", "text": f"caption {n}"} for n in (1, 0)]
    save_table(folder / "captions.jsonl", lines)
    assert prompts_of(folder) == ["caption 0", "caption 1"]


def test_captions_of_two_places_elsewhere_are_nobodys(tmp_path: Path) -> None:
    twin(tmp_path, "0.png", 0)
    lines = [{"file_name": f"{split}/chosen/0.png", "text": split} for split in ("one", "two")]
    save_table(tmp_path / "captions.jsonl", lines)
    with pytest.raises(UserError, match="0.png: no caption; write it into chosen/0.txt"):
        prompts_of(tmp_path)


TEXTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "folder": (make_folder, r"0.txt: the caption cannot be read \(is a folder, not a file\)"),
    "pipe": (make_pipe, r"0.txt: the caption cannot be read \(is a pipe, not a file\)"),
    "device": (make_device, r"0.txt: the caption cannot be read \(is a device, not a file\)"),
    "latin-1": (lambda file: file.write_bytes("Café".encode("latin-1")) and None, r"0.txt: not UTF-8 text \(byte 3\)"),
    "utf-16": (lambda file: file.write_bytes("Cafe".encode("utf-16")) and None, r"0.txt: not UTF-8 text \(byte 0\)"),
    "empty": (lambda file: file.write_bytes(b"") and None, "the caption is empty"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_captions_that_cannot_be_read(text: str, tmp_path: Path) -> None:
    make, problem = TEXTS[text]
    twin(tmp_path, "0.png", 0)
    twin(tmp_path, "1.png", 20, "a good one")
    make(tmp_path / "chosen" / "0.txt")
    with pytest.raises(UserError, match=problem):
        prompts_of(tmp_path)
    assert [record.prompt for record in open_pairs(tmp_path, on_bad_row="skip")] == ["a good one"]


def test_subfolders_and_every_ending_are_read_and_the_rest_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        "10.png",
        "9.png",
        "more/9.png",
        "more/deep/1.bmp",
        "SHOUT.PNG",
        "with space.png",
        "a.b.c.png",
        "Grüße.png",
    ]
    for number, name in enumerate(names):
        twin(tmp_path, name, 4 * number, name)
    save(tmp_path / "chosen/.hidden.png", plain(1))
    save(tmp_path / "chosen/raw.heic", b"x")
    save(tmp_path / "rejected/notes.md", b"x")
    save(tmp_path / "chosen/nobody.txt", b"x")
    assert sorted(prompts_of(tmp_path)) == sorted(names)
    assert prompts_of(tmp_path).index("9.png") < prompts_of(tmp_path).index("10.png")
    assert main(["data", "check", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for part in (
        "Ready to train: 8 pairs",
        "1 .heic",
        "1 .txt",
        "raw.heic",
        "nobody.txt",
        "1 hidden: .hidden.png",
        "notes.md",
    ):
        assert part in told


def test_an_umlaut_is_one_letter_however_it_is_written(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(kind, "für.png") for kind in ("NFC", "NFD"))
    save(tmp_path / "chosen" / composed, plain(1))
    save(tmp_path / "rejected" / apart, plain(2))
    save_table(tmp_path / "captions.jsonl", [{"file_name": f"chosen/{apart}", "text": "for"}])
    assert prompts_of(tmp_path) == ["for"]


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize("names", [("a.png", "a.jpg"), ("a.png", "a.PNG"), ("sub/a.png", "sub/a.webp")])
def test_two_images_of_one_name_in_a_folder_are_refused(names: tuple[str, str], side: str, tmp_path: Path) -> None:
    twin(tmp_path, names[0], 3, "a cat")
    save(tmp_path / side / names[1], plain(9))
    assert main(["data", "check", str(tmp_path)]) == 2
    with pytest.raises(UserError, match=rf"{side}: both a\.\w+ and a\.\w+[\s\S]*keep one of the two"):
        prompts_of(tmp_path)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_images_without_a_partner_are_named(side: str, tmp_path: Path) -> None:
    twins(tmp_path, rows_with(plain(20)))
    next((tmp_path / side).glob("1.png")).unlink()
    report = check_pairs(tmp_path)
    assert report.votes.num_usable == 2
    assert f"column '{side}': no image" in check_summary(report)
    assert "1 row with a broken or missing image" in check_summary(report)


@pytest.mark.parametrize("command", ["convert", "label"])
def test_nothing_is_written_beside_what_is_read(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = FORMS["metadata.jsonl"](tmp_path / "images", rows_with(plain(20)))
    output = str(Path(folder) / "new.parquet")
    argv = ["data", "convert", str(folder), output]
    if command == "label":
        argv = ["label", str(folder), "--scorer", "shapes", "--cache_dir", str(tmp_path / "cache"), "--output", output]
    assert main(argv) == 2
    assert "the next reading would take it for one of them" in capsys.readouterr().err
    assert not Path(output).exists()
