"""Prompts of benchmarks in every form, the images found for them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion_feedback.data.prompt_images import find_images
from diffusion_feedback.data.prompt_sets import read_prompt_set
from diffusion_feedback.errors import UserError
from diffusion_feedback.records import PromptRecord

STYLES = {"anime": "benchmark/anime.json", "photo": "benchmark/photo.json"}


def pairs(found: object) -> list[tuple[str, str | None]]:
    return [(prompt.prompt, prompt.extra.get("style")) for prompt in found.prompts]  # type: ignore[attr-defined]


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "benchmark/"])
def test_a_folder_with_one_file_a_style(tmp_path: Path, place: str) -> None:
    write(tmp_path / f"{place}anime.json", json.dumps(["a girl", " a boy "]))
    write(tmp_path / f"{place}photo.json", json.dumps(["a cat"]))
    found = read_prompt_set(str(tmp_path), files=STYLES)
    assert pairs(found) == [("a girl", "anime"), ("a boy", "anime"), ("a cat", "photo")]
    assert [path.name for path in found.files] == ["anime.json", "photo.json"]


def test_a_style_that_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path / "anime.json", '["a"]')
    with pytest.raises(UserError, match=r"photo.json missing"):
        read_prompt_set(str(tmp_path), files=STYLES)
    with pytest.raises(UserError, match="is a folder"):
        read_prompt_set(str(tmp_path), files={})


def test_the_file_of_one_style_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "photo.json", '["a", "b"]')
    assert pairs(read_prompt_set(str(path), files=STYLES)) == [("a", "photo"), ("b", "photo")]


def test_tables_of_every_form(tmp_path: Path) -> None:
    rows = [{"Prompt": 'a "red" cat, sitting', "Category": "Colors"}, {"Prompt": "two dogs", "Category": "Counting"}]
    expected = [('a "red" cat, sitting', "Colors"), ("two dogs", "Counting")]
    write(tmp_path / "p.json", json.dumps(rows))
    write(tmp_path / "p.jsonl", "\n\n".join(map(json.dumps, rows)) + "\n")
    write(tmp_path / "p.csv", '\ufeffPrompt,Category\n"a ""red"" cat, sitting",Colors\r\ntwo dogs,Counting\n')
    write(tmp_path / "p.tsv", 'Prompt\tCategory\r\na "red" cat, sitting\tColors\r\n\r\ntwo dogs\tCounting\r\n')
    table = [row | {"jpg_0": b"not to be read"} for row in rows]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "p.parquet")
    for suffix in ("json", "jsonl", "csv", "tsv", "parquet"):
        found = read_prompt_set(str(tmp_path / f"p.{suffix}"), files={}, style_columns=("style", "category"))
        assert pairs(found) == expected, suffix


def test_a_quotation_mark_at_the_start_of_a_tsv_cell_is_part_of_the_prompt(tmp_path: Path) -> None:
    """As in PartiPrompts: a csv reader would take it for the start of a quoted cell, and drop it."""
    line = '"G I G G L E" painted in thick colorful lettering\tIllustrations\tWriting & Symbols\t'
    path = write(tmp_path / "p.tsv", f"Prompt\tCategory\tChallenge\tNote\n{line}\n")
    found = read_prompt_set(str(path), files={}, style_columns=("category",))
    assert pairs(found) == [('"G I G G L E" painted in thick colorful lettering', "Illustrations")]


def test_lines_skip_blanks_and_take_their_style_from_the_prompt(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "\ufeffa small cat\r\n\r\n   \n a large d\u00f6g\u2028two \n")
    found = read_prompt_set(str(path), files={}, style_of=lambda prompt: prompt.split()[1])
    assert pairs(found) == [("a small cat", "small"), ("a large d\u00f6g\u2028two", "large")]


def test_duplicates_are_left_out_on_request(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "b\na\nb\n a\nc\n")
    assert [p for p, _ in pairs(read_prompt_set(str(path), files={}))] == ["b", "a", "b", "a", "c"]
    found = read_prompt_set(str(path), files={}, unique=True)
    assert ([p for p, _ in pairs(found)], found.duplicates) == (["b", "a", "c"], 2)


def test_the_hub_gives_the_files_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, file: str, *, repo_type: str) -> str:
        asked.append((repository, file, repo_type))
        return str(write(tmp_path / Path(file).name, '["a"]'))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert len(read_prompt_set("zhwang/HPDv2", files=STYLES).prompts) == 2
    assert asked == [("zhwang/HPDv2", file, "dataset") for file in STYLES.values()]
    read_prompt_set("hf://datasets/owner/name/data/p.json", files=STYLES)
    assert asked[-1] == ("owner/name", "data/p.json", "dataset")
    with pytest.raises(UserError, match="which of its files"):
        read_prompt_set("owner/name", files={})


def test_without_a_network_the_files_to_get_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # The real client, which is offline in these tests.
    with pytest.raises(UserError, match=r"zhwang/HPDv2/benchmark/anime.json: .*not to be had from the hub") as found:
        read_prompt_set("zhwang/HPDv2", files=STYLES)
    assert "put anime.json, photo.json from https://huggingface.co/datasets/zhwang/HPDv2" in found.value.remedy


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", "{}", "p.json: holds an object, not a list"),
        ("p.json", "3", "p.json: holds 3, not a list"),
        ("p.json", "[", "p.json: not JSON"),
        ("p.json", "[]", "p.json: holds no prompts"),
        ("p.json", '["a", 5]', "p.json, item 1: found 5, not a prompt"),
        ("p.json", '["a", ["b"]]', r"p.json, item 1: found \['b'\], not a prompt"),
        ("p.json", '["a", " "]', "p.json, item 1: found ' ', not a prompt"),
        ("p.json", '[{"text_of": "a"}]', "p.json, item 0: no column 'prompt'"),
        ("p.json", '[{"prompt": null}]', "p.json, item 0, column 'prompt': found None"),
        ("p.json", "[" * 100_000, "p.json: not JSON"),
        ("p.json", "9" * 5000, "p.json: not JSON"),
        ("p.json", r'["\ud83d"]', "p.json: not JSON .*surrogates not allowed"),
        ("p.jsonl", r'{"prompt": "\uD83D"}', "p.jsonl, line 1: not JSON"),
        ("p.csv", 'prompt\n"a cat\na dog\n', "p.csv, line 3: not CSV"),
        ("p.csv", "prompt\n" + "x" * 200_000 + "\n", "p.csv, line 2: not CSV"),
        ("p.json", b'["caf\xe9"]', r"p.json: not UTF-8 text \(line 1, byte 5\)"),
        ("p.txt", b"caf\xe9", r"p.txt: not UTF-8 text \(line 1, byte 3\)"),
        ("p.txt", "\n \n", "p.txt: holds no prompts"),
        ("p.tsv", "Prompt\tCategory\na\n", "p.tsv, line 2: 1 cells, the header has 2"),
        ("p.tsv", "Prompt\tCategory\na\t\n", "p.tsv, line 2, column 'Category': found ''"),
        ("p.csv", "prompt,category\na,b,c\n", "p.csv, line 2: 3 cells, the header has 2"),
        ("p.jsonl", "[1]\n", r"p.jsonl, line 1: found '\[1\]'"),
        ("p.parquet", "no table", "p.parquet: could not be read as a parquet file"),
        ("p.doc", "a", "cannot read prompts from a file ending in '.doc'"),
    ],
)
def test_files_that_are_not_valid_are_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        read_prompt_set(str(path), files={}, style_columns=("category",))


@pytest.mark.parametrize("name", ["absent.txt", "prompts/absent.txt", "./absent", "a/b/c", "/absent/x"])
def test_what_is_no_file_and_no_hub_id(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: no such file or folder"):
        read_prompt_set(name, files={})


# --- images ----------------------------------------------------------------------------------------------------------

PROMPTS = [
    PromptRecord("a girl", {"style": "anime"}),
    PromptRecord("a cat", {"style": "photo"}),
    PromptRecord("a dog", {"style": "photo"}),
]


def paint(path: Path, color: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), color).save(path)


def names(found: object) -> list[list[str]]:
    return [[item.name for item in images] for images in found.images]  # type: ignore[attr-defined]


def test_images_by_style_and_place(tmp_path: Path) -> None:
    for name in ("anime/00000.jpg", "photo/00000.png", "photo/00001.webp", "photo/00002.jpeg", "photo/notes.png"):
        paint(tmp_path / name)
    found = find_images(tmp_path, PROMPTS)
    assert names(found) == [["anime/00000.jpg"], ["photo/00000.png"], ["photo/00001.webp"]]
    assert [item.prompt for images in found.images for item in images] == ["a girl", "a cat", "a dog"]
    assert (found.missing, found.left) == ((), ("photo/00002.jpeg", "photo/notes.png"))
    assert found.images[0][0].handle.open().size == (8, 8)


def test_images_of_benchmarks_without_styles_count_through(tmp_path: Path) -> None:
    for name in ("00000.png", "00002.png"):
        paint(tmp_path / name)
    found = find_images(tmp_path, PROMPTS)
    assert (names(found), found.missing) == ([["00000.png"], [], ["00002.png"]], ("00001.png",))


def test_a_missing_image_moves_no_other(tmp_path: Path) -> None:
    for name in ("anime/00000.png", "photo/00001.png"):
        paint(tmp_path / name)
    found = find_images(tmp_path, PROMPTS)
    assert (names(found), found.missing) == ([["anime/00000.png"], [], ["photo/00001.png"]], ("photo/00000.png",))


def metadata(folder: Path, rows: dict[str, str]) -> None:
    for name in rows:
        paint(folder / name)
    lines = (json.dumps({"file_name": name, "prompt": prompt}) for name, prompt in rows.items())
    (folder / "metadata.jsonl").write_text("".join(line + "\n" for line in lines))


def test_images_by_the_prompt_that_their_metadata_names(tmp_path: Path) -> None:
    rows = {"images/x.png": "a dog", "images/y.png": " a girl", "images/z.png": "a tree", "images/w.png": "a dog"}
    metadata(tmp_path, rows)
    found = find_images(tmp_path, PROMPTS)
    assert names(found) == [["images/y.png"], [], ["images/x.png", "images/w.png"]]
    assert (found.missing, found.unused) == (("an image of 'a cat'",), 1)
    (tmp_path / "images/x.png").unlink()
    found = find_images(tmp_path, PROMPTS)
    assert names(found)[2] == ["images/w.png"]
    # The dog keeps one image of two: its mean is another one now.
    assert found.missing == ("an image of 'a cat'", "images/x.png of 'a dog'")


def test_an_image_of_two_prompts_is_refused(tmp_path: Path) -> None:
    """Its score would go to one of them alone, beside the score of that prompt's own image."""
    paint(tmp_path / "x.png")
    rows = [{"file_name": "x.png", "prompt": "a girl"}, {"file_name": "./x.png", "prompt": "a dog"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"line 2: ./x.png stands in line 1 too"):
        find_images(tmp_path, PROMPTS)


def test_names_that_no_file_can_have_are_missing(tmp_path: Path) -> None:
    paint(tmp_path / "x.png")
    rows = [{"file_name": name, "prompt": "a dog"} for name in ("x.png", "y" * 300, "z\0.png")]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = find_images(tmp_path, PROMPTS)
    assert names(found)[2] == ["x.png"]
    assert [line for line in found.missing if line.endswith("of 'a dog'")] == [
        "y" * 300 + " of 'a dog'",
        "z\0.png of 'a dog'",
    ]


def test_a_prompt_that_stands_twice_shares_its_images(tmp_path: Path) -> None:
    metadata(tmp_path, {f"images/{n:05d}-s{seed}.png": "twin" for n in range(2) for seed in range(2)})
    twins = [PromptRecord("twin", {}), PromptRecord("twin", {})]
    assert names(find_images(tmp_path, twins)) == [
        ["images/00000-s0.png", "images/00000-s1.png"],
        ["images/00001-s0.png", "images/00001-s1.png"],
    ]
    (tmp_path / "images/00000-s1.png").unlink()
    (tmp_path / "images/00001-s0.png").unlink()
    (tmp_path / "images/00001-s1.png").unlink()
    assert names(find_images(tmp_path, twins)) == [["images/00000-s0.png"], []]


def test_an_image_of_another_prompt_is_refused(tmp_path: Path) -> None:
    metadata(tmp_path, {"anime/00000.png": "a girl", "photo/00001.png": "a horse"})
    with pytest.raises(UserError, match=r"line 2: photo/00001.png shows 'a horse', the benchmark has 'a dog'"):
        find_images(tmp_path, PROMPTS)


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: no such folder"):
        find_images(tmp_path / "absent", PROMPTS)
    with pytest.raises(UserError, match="holds no image of the benchmark's prompts"):
        find_images(tmp_path, PROMPTS)
    paint(tmp_path / "anime/00000.png")
    paint(tmp_path / "anime/00000.webp")
    with pytest.raises(UserError, match=r"both 00000.png and 00000.webp"):
        find_images(tmp_path, PROMPTS)
    metadata(tmp_path / "other", {"images/a.png": "something else"})
    with pytest.raises(UserError, match=r"metadata.jsonl: holds no image of the benchmark's prompts"):
        find_images(tmp_path / "other", PROMPTS)
    (tmp_path / "other/metadata.jsonl").write_text('{"file_name": "images/a.png"}\n')
    with pytest.raises(UserError, match="line 1: no prompt"):
        find_images(tmp_path / "other", PROMPTS)
