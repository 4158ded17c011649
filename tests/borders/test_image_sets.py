"""Every form that images and their prompts come in: the right prompt for each image, or a message; nothing lost silently.

The pictures are clean ones of the Shapes world, so the exact verifier says whether a picture got its own caption.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_world import all_scenes, exact_scores, render
from PIL import Image

from diffusion_feedback.cli.main import main
from diffusion_feedback.data.image_sets import ImageSet, open_image_set
from diffusion_feedback.data.scores import read_scores
from diffusion_feedback.errors import UserError
from diffusion_feedback.prompts import read_prompts

Build = Callable[[Path], tuple[list[str], dict[str, Any]]]
"""Writes a form below a folder; gives the paths and the settings (prompts: a file, prompt: a text)."""


@cache
def scene(number: int) -> tuple[str, Image.Image]:
    """A caption of its own for each number, and its clean picture."""
    scenes = all_scenes()
    found = scenes[(37 * number) % len(scenes)]
    return found.caption, render(found, np.random.default_rng(number))


def caption(number: int) -> str:
    return scene(number)[0]


def draw(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scene(number)[1].save(path, **({"lossless": True} if path.suffix == ".webp" else {}))
    return path


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return str(path)


def lines(path: Path, numbers: Any) -> str:
    return write(path, "".join(f"{caption(number)}\n" for number in numbers))


def jsonl(path: Path, *rows: object) -> str:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def numbered(names: list[str], numbers: list[int], prompts: list[int], form: str = "txt") -> Build:
    """Pictures ``names[i]`` of scene ``numbers[i]``, and a file of ``prompts``."""

    def build(root: Path) -> tuple[list[str], dict[str, Any]]:
        for name, number in zip(names, numbers, strict=True):
            draw(root / "set" / name, number)
        if form == "json":
            file = write(root / "p.json", json.dumps([caption(number) for number in prompts]))
        else:
            file = lines(root / "p.txt", prompts)
        return [str(root / "set")], {"prompts": file}

    return build


def ordered(names: list[str], form: str = "txt") -> Build:
    return numbered(names, list(range(len(names))), list(range(len(names))), form)


def seeds(pattern: str, start: int = 0, prompts: int = 4, each: int = 3) -> Build:
    names = [pattern.format(i + start, k + start) for i in range(prompts) for k in range(each)]
    return numbered(names, [i for i in range(prompts) for _ in range(each)], list(range(prompts)))


def models(root: Path) -> tuple[list[str], dict[str, Any]]:
    for model in ("sd2", "sd10"):
        for i in range(11):
            draw(root / "set" / model / f"{i}.png", i)
    return [str(root / "set")], {"prompts": lines(root / "p.txt", range(11))}


def models_of_metadata(root: Path) -> tuple[list[str], dict[str, Any]]:
    for model in ("a", "b"):
        for i in range(2):
            draw(root / "set" / model / "images" / f"{i}.png", i)
        rows = [{"file_name": f"images/{i}.png", "prompt": caption(i)} for i in range(2)]
        jsonl(root / "set" / model / "metadata.jsonl", *rows)
    return [str(root / "set")], {}


def several_folders(root: Path) -> tuple[list[str], dict[str, Any]]:
    for model in ("a", "b"):
        for i in range(11):
            draw(root / model / f"{i}.png", i)
    return [str(root / "a"), str(root / "b") + "/"], {"prompts": lines(root / "p.txt", range(11))}


def files_of_a_shell(root: Path) -> tuple[list[str], dict[str, Any]]:
    files = sorted(str(draw(root / "set" / f"{i}.png", i)) for i in range(12))
    return files, {"prompts": lines(root / "p.txt", range(12))}


def a_glob(root: Path) -> tuple[list[str], dict[str, Any]]:
    for i in range(12):
        draw(root / "set" / f"{i}.png", i)
    return [str(root / "set" / "*.png")], {"prompts": lines(root / "p.txt", range(12))}


def one_prompt(root: Path) -> tuple[list[str], dict[str, Any]]:
    files = [str(draw(root / name, 5)) for name in ("x/a.png", "x/b.png", "c.png")]
    return [str(root / "x"), files[2]], {"prompt": caption(5)}


def captions(root: Path) -> tuple[list[str], dict[str, Any]]:
    for i in range(3):
        write(draw(root / "set" / f"{i}.png", i).with_suffix(".txt"), f"\ufeff{caption(i)}\r\n")
    return [str(root / "set")], {}


def metadata(form: str, column: str = "prompt") -> Build:
    def build(root: Path) -> tuple[list[str], dict[str, Any]]:
        rows = [{"file_name": f"{i}.png", column: caption(i)} for i in (2, 0, 1)]
        for i in range(3):
            draw(root / "set" / f"{i}.png", i)
        if form == "jsonl":
            jsonl(root / "set" / "metadata.jsonl", *rows)
        elif form == "csv":
            write(
                root / "set" / "metadata.csv",
                f"file_name,{column}\n" + "".join(f"{i}.png,{caption(i)}\n" for i in (2, 0, 1)),
            )
        else:
            pq.write_table(pa.Table.from_pylist(rows), root / "set" / "metadata.parquet")
        return [str(root / "set")], {}

    return build


def a_metadata_file(root: Path) -> tuple[list[str], dict[str, Any]]:
    paths, settings = metadata("jsonl")(root)
    return [f"{paths[0]}/metadata.jsonl"], settings


def geneval(root: Path) -> tuple[list[str], dict[str, Any]]:
    for i in range(11):
        place = root / "set" / f"{i:05d}"
        jsonl(place / "metadata.jsonl", {"tag": "colors", "include": [], "prompt": caption(i)})
        draw(place / "grid.png", 99)
        for k in range(2):
            draw(place / "samples" / f"{k:04d}.png", i)
    return [str(root / "set")], {}


def one_of_geneval(root: Path) -> tuple[list[str], dict[str, Any]]:
    return [f"{geneval(root)[0][0]}/00003"], {}


def compbench(root: Path) -> tuple[list[str], dict[str, Any]]:
    for i in range(4):
        for k in range(2):
            draw(root / "set" / "samples" / f"{caption(i)}_{2 * i + k:06d}.png", i)
        draw(root / "set" / f"{caption(i)}-grid-{i:05d}.png", 99)
    return [str(root / "set")], {}


def imagereward(root: Path) -> tuple[list[str], dict[str, Any]]:
    ids = ["005695-0057", "000304-0153", "005784-0093"]
    for model in ("sd1-4", "dalle2"):
        for i, own in enumerate(ids):
            for k in range(2):
                draw(root / "set" / model / f"{own}_{k}.png", i)
    rows = [{"id": own, "prompt": caption(i)} for i, own in enumerate(ids)]
    return [str(root / "set")], {"prompts": write(root / "benchmark-prompts.json", json.dumps(rows))}


def named_files(root: Path) -> tuple[list[str], dict[str, Any]]:
    for i in range(3):
        draw(root / "set" / f"{i}.png", i)
    table = "file_name,prompt\n" + "".join(f"{i}.png,{caption(i)}\n" for i in (2, 0, 1, 7))
    return [str(root / "set")], {"prompts": write(root / "p.csv", table)}


ENDINGS = [".png", ".webp", ".tiff", ".bmp", ".gif", ".jfif"]
GOOD: dict[str, Build] = {
    "0 to 11": ordered([f"{i}.png" for i in range(12)]),
    "0 to 11, a JSON list": ordered([f"{i}.png" for i in range(12)], "json"),
    "1 to 100": ordered([f"{i}.png" for i in range(1, 101)]),
    "00000": ordered([f"{i:05d}.png" for i in range(12)]),
    "img1 to img12": ordered([f"img{i}.png" for i in range(1, 13)]),
    "sample (2)": ordered([f"sample ({i}).png" for i in range(1, 13)]),
    "step numbers": ordered([f"step-{i}.png" for i in (5, 50, 500, 1000)]),
    "two numbers, a prompt each": ordered([f"{i}_{k}.png" for i in range(3) for k in range(9, 12)]),
    "letters": ordered(["a.png", "b.png", "c.png"]),
    "numbers with gaps": ordered(["3.png", "20.png", "100.png"]),
    "every ending": ordered([f"{i}{ending}" for i, ending in enumerate(ENDINGS * 2)]),
    "a capital ending": ordered([f"{i}.PNG" for i in range(12)]),
    "subfolders in order": ordered([f"{part}/{i}.png" for part in ("part2", "part10") for i in range(11)]),
    "00000_0": seeds("{:05d}_{}.png"),
    "0_0": seeds("{}_{}.png", prompts=11),
    "00000-s0": seeds("{:05d}-s{}.png"),
    "1_1": seeds("{}_{}.png", start=1),
    "folders of models": models,
    "folders of models with metadata": models_of_metadata,
    "several folders": several_folders,
    "files in the order of a shell": files_of_a_shell,
    "a glob": a_glob,
    "one prompt": one_prompt,
    "captions": captions,
    "metadata.jsonl": metadata("jsonl"),
    "metadata.csv": metadata("csv"),
    "metadata.parquet": metadata("parquet"),
    "metadata.jsonl, Caption": metadata("jsonl", "Caption"),
    "metadata.csv, text": metadata("csv", "text"),
    "a metadata file itself": a_metadata_file,
    "GenEval": geneval,
    "a folder of GenEval": one_of_geneval,
    "T2I-CompBench": compbench,
    "ImageReward's benchmark": imagereward,
    "prompts that name files": named_files,
}  # fmt: skip


def opened(build: Build, root: Path) -> ImageSet:
    paths, settings = build(root)
    if "prompts" in settings:
        settings["prompts"] = read_prompts(settings["prompts"])
    return open_image_set(paths, **settings)


@pytest.mark.parametrize("form", GOOD)
def test_every_image_has_its_own_prompt(form: str, tmp_path: Path) -> None:
    found = opened(GOOD[form], tmp_path)
    assert found.items
    scores = [float(exact_scores([item.handle.open()], [item.prompt])[0]) for item in found.items]
    lossy = any(item.name.endswith(".jfif") for item in found.items)
    assert min(scores) > (0.8 if lossy else 0.88), dict(zip([item.name for item in found.items], scores, strict=True))
    assert len({item.name for item in found.items}) == len(found.items)


def test_the_check_above_can_fail(tmp_path: Path) -> None:
    found = opened(numbered(["0.png", "1.png"], [1, 0], [0, 1]), tmp_path)
    assert max(float(exact_scores([item.handle.open()], [item.prompt])[0]) for item in found.items) < 0.8


COUNTS = {
    "00000_0": 12,
    "0_0": 33,
    "folders of models": 22,
    "folders of models with metadata": 4,
    "several folders": 22,
    "GenEval": 22,
    "a folder of GenEval": 2,
    "T2I-CompBench": 8,
    "ImageReward's benchmark": 12,
}


@pytest.mark.parametrize("form", COUNTS)
def test_no_image_is_lost(form: str, tmp_path: Path) -> None:
    assert len(opened(GOOD[form], tmp_path).items) == COUNTS[form]


# --- what is said ----------------------------------------------------------------------------------------------------


def test_the_first_pairings_are_told(tmp_path: Path) -> None:
    (note,) = opened(ordered([f"{i}.png" for i in range(12)]), tmp_path).notes
    first, *rest = note.splitlines()
    assert first.endswith(
        "in the order of the names, numbers counted: 2.png stands before 10.png, not as in a list of texts:"
    )
    assert [line.split() for line in rest] == [
        *([f"{i}.png", "->", *repr(caption(i)).split()] for i in range(3)),
        ["..."],
        ["11.png", "->", *repr(caption(11)).split()],
    ]


def test_notes(tmp_path: Path) -> None:
    """What is left out, and which of two sources was taken."""

    def notes(build: Build, name: str) -> str:
        return "\n".join(opened(build, tmp_path / name).notes)

    def odd(root: Path) -> tuple[list[str], dict[str, Any]]:
        paths, settings = captions(root)
        write(root / "set" / "x.heic", "")
        write(root / "set" / ".hidden.png", "")
        return paths, settings | {"prompts": lines(root / "p.txt", range(3))}

    told = notes(odd, "odd")
    assert "passed over 1 of no image ending (1 .heic): x.heic; 1 hidden: .hidden.png" in told
    assert "the prompts that are given are taken, not those in 3 .txt files" in told

    def partly(root: Path) -> tuple[list[str], dict[str, Any]]:
        paths, settings = metadata("jsonl")(root)
        draw(root / "set" / "3.png", 3)
        draw(root / "set" / "10.png", 3)
        write(root / "set" / "metadata.csv", "file_name\n3.png\n")
        return paths, settings

    told = notes(partly, "partly")
    assert "lists 3 images; 2 of the folder are not listed: 3.png, 10.png" in told
    assert "metadata.jsonl is read, metadata.csv beside it is not" in told
    assert "11 images outside of samples/ left out, the first: 00000/grid.png" in notes(geneval, "geneval")
    assert "4 grids are left out" in notes(compbench, "compbench")
    assert "1 prompt is of no image here, the first: 7.png" in notes(named_files, "named")

    def loose(root: Path) -> tuple[list[str], dict[str, Any]]:
        paths, settings = models_of_metadata(root)
        draw(root / "set" / "overview.png", 0)
        return paths, settings

    assert "1 image outside of them left out, the first: overview.png" in notes(loose, "loose")


# --- one image, several prompts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["rows", "a list"])
def test_one_image_under_several_prompts(form: str, tmp_path: Path) -> None:
    draw(tmp_path / "set" / "0.png", 0)
    prompts = [caption(0), caption(1)]
    rows = [{"file_name": "0.png", "prompt": prompt} for prompt in prompts]
    jsonl(
        tmp_path / "set" / "metadata.jsonl", *(rows if form == "rows" else [{"file_name": "0.png", "prompt": prompts}])
    )
    output = tmp_path / "scores.jsonl"
    argv = ["score", str(tmp_path / "set"), "--scorer", "shapes", "--output", str(output)]
    assert main([*argv, "--cache_dir", str(tmp_path / "cache")]) == 0
    assert [(row.sample, row.prompt) for row in read_scores(output)] == [("0.png", prompt) for prompt in prompts]
    right, wrong = (row.score for row in read_scores(output))
    assert right > 0.95 > wrong


# --- refusals --------------------------------------------------------------------------------------------------------


def with_prompts(names: list[str], prompts: str, name: str = "p.txt") -> Build:
    def build(root: Path) -> tuple[list[str], dict[str, Any]]:
        for each in names:
            draw(root / "set" / each, 0)
        return [str(root / "set")], {"prompts": write(root / name, prompts)}

    return build


def with_rows(*rows: dict[str, Any], names: tuple[str, ...] = ("0.png",)) -> Build:
    def build(root: Path) -> tuple[list[str], dict[str, Any]]:
        for name in names:
            draw(root / "set" / name, 0)
        jsonl(root / "set" / "metadata.jsonl", *rows)
        return [str(root / "set")], {}

    return build


def given(path: str, **settings: Any) -> Build:
    def build(root: Path) -> tuple[list[str], dict[str, Any]]:
        write(root / "set" / "picture.heic", "")
        draw(root / "images" / "0.png", 0)
        return [str(root / part) for part in path.split(" ")], settings

    return build


def own_prompts(build: Build) -> Build:
    def again(root: Path) -> tuple[list[str], dict[str, Any]]:
        return build(root)[0], {"prompt": "a cat"}

    return again


def gone_with_prompts(root: Path) -> tuple[list[str], dict[str, Any]]:
    return [str(root / "gone")], {"prompt": "a cat"}


BAD: dict[str, tuple[Build, str]] = {
    "too few prompts": (with_prompts(["0.png", "1.png"], "a\n"), "2 images, and 1 prompts(.|\n)*`prompt` gives one to all"),
    "a number is missing": (with_prompts([f"{i}.png" for i in (0, 1, 3)], "a\nb\nc\nd\n"), "no image has the number 2"),
    "the same number twice": (with_prompts(["1.png", "01.png"], "a\nb\n"), "01.png and 1.png have the same number"),
    "capitals": (with_prompts(["B.png", "a.png"], "a\nb\n"), "the order of names is not clear"),
    "seeds of fewer prompts": (with_prompts(["0_0.png", "0_1.png", "1_0.png"], "a\nb\nc\nd\n"), "3 images, and 4 prompts"),
    "seeds from 2": (with_prompts(["2_0.png", "2_1.png", "3_0.png", "3_1.png"], "a\nb\n"), "4 images, and 2 prompts"),
    "folders of unlike numbers": (with_prompts(["a/0.png", "a/1.png", "b/0.png"], "a\nb\n"), "3 images, and 2 prompts"),
    "an id that is not there": (
        with_prompts(["x_0.png", "z_0.png"], json.dumps([{"id": "x", "prompt": "a"}, {"id": "y", "prompt": "b"}]), "p.json"),
        "z_0.png begins with the id of no prompt",
    ),
    "an id twice": (
        with_prompts(["x_0.png"], json.dumps([{"id": "x", "prompt": "a"}, {"id": "x", "prompt": "b"}]), "p.json"),
        "two prompts have the same 'id'",
    ),
    "a file without a prompt": (
        with_prompts(["0.png", "1.png"], "file_name,prompt\n0.png,a\n", "p.csv"),
        r"no prompt names 1.png in its column 'file_name' \(1 of 2 images\)",
    ),
    "a name without its folder": (
        with_prompts(["a/0.png", "b/0.png"], "file_name,prompt\n0.png,a\n", "p.csv"),
        "several files are named 0.png",
    ),
    "metadata without the file": (with_rows({"file_name": "1.png", "prompt": "a"}), r"line 1: '1.png' is missing"),
    "metadata that repeats itself": (
        with_rows(*[{"file_name": "0.png", "prompt": "a"}] * 2),
        "line 2: 0.png stands in line 1 too, with the same prompt",
    ),
    "a number for a prompt": (with_rows({"file_name": "0.png", "prompt": 3}), "line 1: found 3, not a prompt"),
    "prompts beside metadata": (own_prompts(metadata("jsonl")), "names its own prompts"),
    "prompts beside GenEval's": (own_prompts(geneval), "names its own prompts"),
    "prompts beside folders of metadata": (own_prompts(models_of_metadata), "names its own prompts"),
    "no image": (given("set"), r"no images, and no pairs in this folder \(.*1 of no image ending \(1 .heic\)"),
    "a file that is none": (given("set/picture.heic"), "not a file of pairs"),
    "nothing there": (given("gone"), "no such file or folder"),
    "a picture that is not there": (given("gone.png"), "no such file or folder"),
    "a glob of nothing": (given("gone/*.png"), "no file has such a name"),
    "twice the same folder": (given("images images"), "is given twice"),
    "twice the same file": (given("images/0.png images/0.png"), "is given twice"),
    "a file and its folder": (given("images/0.png images"), "is given twice"),
    "nothing there, with prompts": (gone_with_prompts, "no such file or folder"),
    "as many folders as prompts": (
        with_prompts(["a/0.png", "a/1.png", "b/0.png", "b/1.png"], "a\nb\n"),
        "2 folders of 2 images each, and as many prompts",
    ),
    "samples of half of the prompts": (
        with_prompts(["0_0.png", "0_1.png", "1_0.png", "1_1.png"], "a\nb\nc\nd\n"),
        "0_0.png looks like an image of prompt 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", BAD)
def test_what_does_not_fit_is_refused(form: str, tmp_path: Path) -> None:
    build, message = BAD[form]
    with pytest.raises(UserError, match=message) as error:
        opened(build, tmp_path)
    assert error.value.remedy


# --- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return ["--scorer", "shapes", "--cache_dir", str(tmp_path_factory.mktemp("cache"))]


def test_score_and_label_join_numbered_pictures_alike(
    tmp_path: Path, cached: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    paths, settings = numbered(
        [f"{i}.png" for i in range(12)], [i // 2 for i in range(12)], [i // 2 for i in range(12)]
    )(tmp_path)
    flags = ["--prompts", settings["prompts"], *cached]
    assert main(["score", *paths, *flags, "--output", str(tmp_path / "scores.csv")]) == 0
    told = capsys.readouterr().out
    assert "2.png stands before 10.png" in told
    assert "12 scores of 12 images" in told
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["prompt"]) for row in rows] == [(f"{i}.png", caption(i // 2)) for i in range(12)]
    assert min(float(row["score"]) for row in rows) > 0.95
    label = ["label", *paths, *flags, "--ties", "half", "--output", str(tmp_path / "pairs.parquet")]
    assert main(label) in (0, 2)  # equal pictures of one prompt make no pair
    draw(tmp_path / "set" / "0.png", 30)  # now the second picture of the first prompt is the better one
    assert main([*label[:-1], str(tmp_path / "better.parquet")]) == 0
    (pair,) = pq.read_table(tmp_path / "better.parquet").to_pylist()
    assert (pair["caption"], {pair["image_0_name"], pair["image_1_name"]}) == (caption(0), {"0.png", "1.png"})


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_every_output_reads_back_the_same(ending: str, tmp_path: Path, cached: list[str]) -> None:
    paths, settings = several_folders(tmp_path)
    argv = ["score", *paths, "--prompts", settings["prompts"], *cached]
    assert main([*argv, "--output", str(tmp_path / "a.parquet")]) == 0
    assert main([*argv, "--output", str(tmp_path / f"b.{ending}")]) == 0
    assert read_scores(tmp_path / f"b.{ending}") == read_scores(tmp_path / "a.parquet")


def test_means_by_folder(tmp_path: Path, cached: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    paths, settings = several_folders(tmp_path)
    shutil.copy(tmp_path / "b" / "1.png", tmp_path / "b" / "0.png")  # one picture of b is wrong
    output = tmp_path / "scores.parquet"
    argv = ["score", *paths, "--prompts", settings["prompts"], *cached, "--output", str(output)]
    assert main(argv) == 0
    told = capsys.readouterr().out.splitlines()
    by_folder = {name: [row.score for row in read_scores(output) if f"/{name}/" in row.sample] for name in ("a", "b")}
    for name, path in (("a", tmp_path / "a"), ("b", tmp_path / "b")):
        (line,) = [line for line in told if line.startswith(f"{path} ")]
        assert line.split()[1:] == ["11", f"{sum(by_folder[name]) / 11:.4f}"]
    models(tmp_path)
    argv = ["score", str(tmp_path / "set"), "--prompts", settings["prompts"], *cached, "--output", str(output)]
    assert main([*argv, "--overwrite"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in told if line.startswith("sd")] == [["sd2", "11"], ["sd10", "11"]]


def test_every_broken_picture_is_told_at_once(
    tmp_path: Path, cached: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    paths, settings = ordered([f"{i}.png" for i in range(12)])(tmp_path)
    for name in ("3.png", "10.png"):
        (tmp_path / "set" / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    argv = ["score", *paths, "--prompts", settings["prompts"], *cached, "--output", str(tmp_path / "s.csv")]
    assert main(argv) == 2
    told = capsys.readouterr().err
    for words in ("2 of 12 images cannot be read", "3.png", "10.png", "--on_bad_image skip"):
        assert words in told
    assert main([*argv, "--on_bad_image", "skip"]) == 0
    assert "10 scores of 10 images; 2 left out" in capsys.readouterr().out
    rows = read_scores(tmp_path / "s.csv")
    assert [row.prompt for row in rows] == [caption(i) for i in range(12) if i not in (3, 10)]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--promp", "x"], "--promp"),
        (["--prompt", "x", "--prompts", "p.txt"], "both are given"),
        (["--prompt", " "], "--prompt: is empty"),
    ],
)
def test_flags(
    flags: list[str], words: str, tmp_path: Path, cached: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "0.png", 0)
    assert main(["score", str(tmp_path), *flags, *cached, "--output", str(tmp_path / "s.csv")]) == 2
    assert words in capsys.readouterr().err


def test_label_pairs_images_of_two_folders(tmp_path: Path, cached: list[str]) -> None:
    """The same prompts drawn by two models: every picture of one meets that of the other."""
    paths, settings = several_folders(tmp_path)
    for i in range(11):
        draw(tmp_path / "b" / f"{i}.png", i + 40)
    output = tmp_path / "pairs.parquet"
    assert main(["label", *paths, "--prompts", settings["prompts"], *cached, "--output", str(output)]) == 0
    rows = pq.read_table(output).to_pylist()
    found = {(row["caption"], *sorted([row["image_0_name"], row["image_1_name"]])) for row in rows}
    assert found == {(caption(i), f"{tmp_path}/a/{i}.png", f"{tmp_path}/b/{i}.png") for i in range(11)}
    assert all((row["label_0"] == 1.0) == row["image_0_name"].startswith(f"{tmp_path}/a") for row in rows)


def test_copies_of_a_broken_picture_are_counted(
    tmp_path: Path, cached: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(12):
        draw(tmp_path / "set" / f"{i}.png", i)
    for name in ("3.png", "7.png", "10.png"):
        (tmp_path / "set" / name).write_bytes(b"no picture")
    argv = ["score", str(tmp_path / "set"), "--prompt", caption(0), *cached, "--output", str(tmp_path / "s.csv")]
    assert main(argv) == 2
    told = capsys.readouterr().err
    for words in ("3 of 12 images cannot be read", "7.png: the same file as 3.png", "10.png: the same file as 3.png"):
        assert words in told
    assert main([*argv, "--on_bad_image", "skip"]) == 0
    told = capsys.readouterr().out
    assert "3 images left out" in told
    assert "9 scores of 9 images; 3 left out" in told
