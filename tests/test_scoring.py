"""Scores in Python: ``dfb.score`` on images of every form, and scorers that users write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pairs_data
import pytest
import shapes_images
from PIL import Image

import diffusion_feedback as dfb
from diffusion_feedback.cli.main import main
from diffusion_feedback.data.scores import read_scores

SHAPES = "shapes"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shapes_images.write_folder(tmp_path / "set", 3, 2)


def opened(file: str | Path) -> Image.Image:
    with Image.open(file) as image:
        return image.copy()


def brightness(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    return [float(np.asarray(image).mean()) for image in images]


def by_image(image: Image.Image, prompt: str) -> float:
    return float(np.asarray(image).mean())


def test_the_command_and_the_call_give_the_same_table(folder: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    table = dfb.score(folder, scorers=SHAPES, cache_dir=cache)
    output = tmp_path / "scores.parquet"
    assert main(["score", str(folder), "--scorer", SHAPES, "--cache_dir", cache, "--output", str(output)]) == 0
    table.to_parquet(tmp_path / "own.parquet")
    assert read_scores(tmp_path / "own.parquet") == read_scores(output)
    assert table.column_names[:5] == ["image", "image_key", "prompt", "scorer", "recipe_id"]


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_the_call_writes_the_command_s_bytes(
    folder: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, own, other = str(tmp_path / "cache"), tmp_path / f"own{ending}", tmp_path / f"other{ending}"
    table = dfb.score(folder, scorers=SHAPES, cache_dir=cache, output=str(own))
    assert capsys.readouterr() == ("", "")
    assert main(["score", str(folder), "--scorer", SHAPES, "--cache_dir", cache, "--output", str(other)]) == 0
    assert f"{other}: 6 scores of 6 images" in capsys.readouterr().out
    assert own.read_bytes() == other.read_bytes()
    assert len(table) == 6
    with pytest.raises(dfb.UserError, match="(?s)exists already.*`overwrite`"):
        dfb.score(folder, scorers=SHAPES, cache_dir=cache, output=own)
    own.write_text("of before")
    dfb.score(folder, scorers=SHAPES, cache_dir=cache, output=own, overwrite=True)
    assert own.read_bytes() == other.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"set", "cache", own.name, other.name}


def test_outputs_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    def refused(problem: str, images: Any = folder, **keywords: Any) -> None:
        with pytest.raises(dfb.UserError, match=problem):
            dfb.score(images, **{"scorers": SHAPES, "cache_dir": None, **keywords})

    prompts = tmp_path / "prompts.csv"
    prompts.write_text("file_name,prompt\na.png,a small red circle on a blue background\n")
    (tmp_path / "plain").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "plain" / "a.png")
    refused("is an input", tmp_path / "plain", prompts=prompts, output=prompts, overwrite=True)
    assert prompts.read_text().startswith("file_name")
    pairs = tmp_path / "pairs.parquet"
    pairs_data.write_pairs(pairs)
    refused("is an input", str(pairs), output=pairs, overwrite=True)
    refused("a name that ends in .parquet or .csv or .jsonl", output=tmp_path / "scores.xlsx")
    refused("`overwrite`: nothing is written without `output`", overwrite=True)


def test_a_prompt_is_no_path(folder: Path, tmp_path: Path) -> None:
    pictures = [opened(file) for file in sorted(folder.rglob("*.png"))[:2]]
    for number, prompt in enumerate(("~ 3 apples ~", "~nobody in particular")):
        own = tmp_path / f"{number}.parquet"
        dfb.score(pictures, prompt, scorers=brightness, cache_dir=None, output=own)
        assert {record.prompt for record in read_scores(own)} == {prompt}
        dfb.label(pictures, prompt, scorers=brightness, cache_dir=None, output=tmp_path / f"pairs-{number}.parquet")


def test_settings_of_data_sets_mean_nothing_for_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for keywords in ({"split": "test"}, {"revision": "main"}):
        for images in ([Image.new("RGB", (8, 8))], folder):
            with pytest.raises(dfb.UserError, match=f"`{next(iter(keywords))}`: means nothing for these images"):
                dfb.score(images, scorers=brightness, cache_dir=None, **keywords)
    output = str(folder.with_name("s.csv"))
    assert main(["score", str(folder), "--split", "test", "--scorer", SHAPES, "--output", output]) == 2
    assert "--split: means nothing for these images" in capsys.readouterr().err
    dfb.score([Image.new("RGB", (8, 8))], "a cat", scorers=brightness, cache_dir=None, split="train")


def test_a_list_of_files_keeps_its_order_and_the_shell_s_does_not(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in (10, 1, 2)]
    function = f"function={tmp_path / 'red.py'}:red"
    (tmp_path / "red.py").write_text("def red(image):\n    return image.getpixel((0, 0))[0]\n")
    assert dfb.score(files, scorers=function, cache_dir=None)["score"] == [10, 1, 2]
    assert dfb.score(files, "a cat", scorers=function, cache_dir=None)["image"] == files
    assert dfb.score(str(tmp_path / "*.png"), scorers=function, cache_dir=None)["score"] == [1, 2, 10]
    output = tmp_path / "scores.csv"
    assert main(["score", *files, "--scorer", function, "--output", str(output)]) == 0
    assert [record.score for record in read_scores(output)] == [1, 2, 10]


def test_images_of_every_form_have_the_same_scores(folder: Path, tmp_path: Path) -> None:
    expected = dfb.score(folder, scorers=SHAPES, cache_dir=None)
    files = [str(folder / name) for name in expected["image"]]
    prompts = expected["prompt"]
    pictures = [opened(file) for file in files]
    data = datasets.Dataset.from_dict({"image": files, "caption": prompts}).cast_column("image", datasets.Image())
    for images, texts in ((files, prompts), (pictures, prompts), (data, None), (iter(pictures), tuple(prompts))):
        table = dfb.score(images, texts, scorers=[SHAPES], cache_dir=None)
        assert table["score"] == expected["score"]
        assert table["prompt"] == prompts
    backwards = dfb.score(files[::-1], prompts[::-1], scorers=SHAPES, cache_dir=None)
    assert backwards["score"] == expected["score"][::-1]  # a list keeps its order
    assert dfb.score(data, scorers=SHAPES, cache_dir=None)["image_key"] == expected["image_key"]


def test_what_was_scored_is_not_scored_again(folder: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def counted(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        calls.append(len(images))
        return brightness(images, prompts)

    scorer = dfb.scorer_from(counted, name="bright")
    for _ in range(2):
        table = dfb.score(folder, scorers=scorer, cache_dir=str(tmp_path / "cache"))
    assert sum(calls) == len(table) == 6
    assert set(table["scorer"]) == {"bright"}


def test_functions_are_called_as_their_parameters_say(folder: Path) -> None:
    def picture(image: Image.Image) -> float:
        return float(np.asarray(image).mean())

    class Scaled:
        def __call__(self, images: Any, prompts: Any, *, factor: float = 1.0) -> Any:
            return factor * np.array(brightness(images, prompts))

    expected = dfb.score(folder, scorers=brightness, cache_dir=None)["score"]
    assert expected == dfb.score(folder, scorers=by_image, cache_dir=None)["score"]
    assert expected == dfb.score(folder, scorers=picture, cache_dir=None)["score"]
    doubled = dfb.score(folder, scorers=dfb.scorer_from(Scaled(), factor=2.0), cache_dir=None)
    assert doubled["score"] == pytest.approx([2 * value for value in expected], rel=1e-6)
    assert doubled["scorer"][0] == "Scaled"


def test_a_file_and_its_hash(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text("def size(image, *, power=1):\n    return image.width**power\n")
    names = [f"function={file}:size", f"square:function={file}:size,power=2"]
    table = dfb.score(folder, scorers=names, cache_dir=None)
    width = opened(folder / table["image"][0]).width
    assert dict(zip(table["scorer"], table["score"], strict=True)) == {"size": width, "square": width**2}
    before = table["recipe_id"][0]
    file.write_text("def size(image, *, power=1):\n    return image.height**power\n")
    assert dfb.score(folder, scorers=names[0], cache_dir=None)["recipe_id"][0] != before


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("return [1.0] * (len(images) + 1)", "scores for"),
        ("return 0.5", "no list can be made"),
        ("return [float('nan')] * len(images)", "is nan"),
        ("return ['x'] * len(images)", "'x' for image 1"),
        ("raise RuntimeError('no weights')", "RuntimeError in .*rewards.py, line 2: no weights"),
        ("raise SystemExit(3)", "SystemExit in"),
    ],
)
def test_functions_that_fail_are_one_error(folder: Path, tmp_path: Path, body: str, problem: str) -> None:
    (tmp_path / "rewards.py").write_text(f"def judge(images, prompts):\n    {body}\n")
    with pytest.raises(dfb.UserError, match=f"scorer judge: .*{problem}"):
        dfb.score(folder, scorers=f"function={tmp_path / 'rewards.py'}:judge", cache_dir=None)


@pytest.mark.parametrize(
    ("keywords", "problem"),
    [
        ({"batchsize": 2}, "`batchsize`: is no setting"),
        ({"batch_size": 0}, "`batch_size`: got 0"),
        ({"dtype": "float64"}, "`dtype`: got 'float64'"),
        ({"prompts": ["a cat"]}, "1 prompts for 2 images"),
        ({"images": []}, "`images`: is empty"),
        ({"images": [1]}, "`images`: holds a int"),
        ({"scorers": []}, "`scorers`: none is given"),
        ({"scorers": [3]}, "`scorers`: got 3"),
        ({"scorers": lambda: 1.0}, "is called with images and prompts"),
    ],
)
def test_bad_calls_name_the_parameter(keywords: dict[str, Any], problem: str) -> None:
    images = [Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "red")]
    with pytest.raises(dfb.UserError, match=problem):
        dfb.score(**{"images": images, "prompts": "a cat", "scorers": brightness, "cache_dir": None, **keywords})


def test_a_loaded_scorer() -> None:
    scorer = dfb.load_scorer(SHAPES)
    caption = "a small red circle on a blue background"
    assert scorer.score([Image.new("RGB", (64, 64), "red")], [caption]).shape == (1,)


def test_functions_see_rgb_pictures_of_every_mode() -> None:
    scorer = dfb.scorer_from(by_image)
    base = Image.effect_noise((16, 16), 60).convert("RGB")
    for mode in ("RGBA", "CMYK", "P", "L", "LA"):
        image = base.convert(mode)
        assert scorer.score([image], ["a cat"]).item() == pytest.approx(by_image(image.convert("RGB"), ""))
