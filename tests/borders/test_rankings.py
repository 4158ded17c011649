"""Rankings as HPDv2, HPDv3 and ImageReward publish them: the pairs in them, ties, half of a form, and every command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from image_world import all_scenes, degrade, exact_scores, render
from PIL import Image

from diffusion_feedback.cli.main import main
from diffusion_feedback.data.index import PairIndex
from diffusion_feedback.data.readers import open_pairs
from diffusion_feedback.errors import UserError
from diffusion_feedback.records import PairRecord

# What each level of red is worth, by the item that it stands in; the same in every form.
RANKS = [[2, 1, 3], [1, 1, 2, 1]]


def draw(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level, 0, 0)).save(path)


def items(images: str, order: str, more: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Ranks for a key of ranks, votes for a key of votes."""
    found = []
    for number, ranks in enumerate(RANKS):
        names = [f"{number}/{k}.png" for k in range(len(ranks))]
        values = [4 - rank for rank in ranks] if order == "human_preference" else ranks
        found.append({"prompt": f"prompt {number}", images: names, order: values, **more})
    return found


FORMS: dict[str, tuple[str, str, Mapping[str, Any]]] = {
    "HPDv2 test": ("image_path", "rank", {"raw_annotations": [{"rank": [1, 2], "user_hash": "x"}]}),
    "HPDv2 train": ("file_path", "human_preference", {}),
    "ImageReward": ("generations", "ranking", {"id": "005658-0040"}),
}
ROOTS = [".", "test", "images", "test_images"]


def write(root: Path, rows: object, *, below: str = ".", name: str = "test.json") -> Path:
    for number, ranks in enumerate(RANKS):
        for k in range(len(ranks)):
            draw(root / below / f"{number}/{k}.png", 50 * number + 10 * k + 5)
    lines = isinstance(rows, list) and name.endswith(".jsonl")
    text = "".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows)  # type: ignore[attr-defined]
    (root / name).write_text(text)
    return root / name


def red(data: bytes) -> int:
    import io

    pixel = Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


def told(records: list[PairRecord]) -> list[tuple[str, int, int, float]]:
    return [(record.prompt, red(record.image_0), red(record.image_1), record.label_0) for record in records]


def expected() -> list[tuple[str, int, int, float]]:
    """Every two images of an item, by hand: the lower rank is the better one."""
    first = [(0, 1, 0.0), (0, 2, 1.0), (1, 2, 1.0)]
    second = [(0, 1, 0.5), (0, 2, 1.0), (0, 3, 0.5), (1, 2, 1.0), (1, 3, 0.5), (2, 3, 0.0)]
    return [(f"prompt {n}", 50 * n + 10 * a + 5, 50 * n + 10 * b + 5, label)
            for n, found in enumerate((first, second)) for a, b, label in found]  # fmt: skip


@pytest.mark.parametrize("below", ROOTS)
@pytest.mark.parametrize("form", FORMS)
def test_every_two_images_are_a_pair(form: str, below: str, tmp_path: Path) -> None:
    """Images beside the file, or in the folder that the archive unpacks to."""
    reader = open_pairs(write(tmp_path, items(*FORMS[form]), below=below), ties="soft")
    assert told(list(reader)) == expected()
    assert reader.num_rows == 9
    assert (reader.log.counts.usable, reader.log.counts.ties) == (9, 3)
    assert list(reader.source.notes) == (
        [] if below == "." else [f"{tmp_path}/test.json: images are read from {tmp_path / below}"]
    )
    assert [location[0] for _, location in reader.scan() if location] == [0] * 3 + [1] * 6


def test_a_run_finds_the_images_again(tmp_path: Path) -> None:
    """The chosen and the rejected picture of each pair, opened as training opens them."""
    index = PairIndex.build(open_pairs(write(tmp_path, items(*FORMS["ImageReward"]))))
    batch = index.batch(range(len(index)), 0)
    found = {
        (prompt, *(image.open().getpixel((0, 0))[0] for image in images))  # type: ignore[index]
        for prompt, *images in zip(batch.prompts, batch.chosen, batch.rejected, strict=True)
    }
    right = {(p, a, b) if label else (p, b, a) for p, a, b, label in expected() if label != 0.5}
    assert found == right


@pytest.mark.parametrize("form", FORMS)
def test_lines_and_ties(form: str, tmp_path: Path) -> None:
    reader = open_pairs(write(tmp_path, items(*FORMS[form]), name="test.jsonl"))
    assert told(list(reader)) == [pair for pair in expected() if pair[3] != 0.5]


def hpdv3(root: Path, **more: Any) -> Path:
    rows = [{"prompt": f"prompt {n}", "path1": f"{n}/0.png", "path2": f"{n}/1.png", **more} for n in range(2)]
    return write(root, rows)


def test_hpdv3(tmp_path: Path) -> None:
    """The first path is the preferred one; how sure people were is not read."""
    reader = open_pairs(hpdv3(tmp_path, confidence=0.9, choice_dist=[9, 1], model1="a", model2="b"))
    assert told(list(reader)) == [("prompt 0", 5, 15, 1.0), ("prompt 1", 55, 65, 1.0)]
    assert reader.source.unused == ["choice_dist", "confidence"]
    pairs = PairIndex.build(reader).pairs
    assert [pair.models[::-1] if pair.swapped else pair.models for pair in pairs] == [("a", "b")] * 2


GOOD = {"prompt": "x", "image_path": ["0/0.png", "0/1.png"], "rank": [1, 2]}
BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "fewer ranks": ({"rank": [1]}, "key 'rank': found 1 ranks for 2 images"),
    "one rank": ({"rank": 1}, "key 'rank': found 1 ranks for 2 images"),
    "no rank": ({"rank": None}, "key 'rank': found None ranks for 2 images"),
    "a word": ({"rank": [1, "second"]}, "key 'rank': found 'second', not a number"),
    "true": ({"rank": [True, False]}, "key 'rank': found True, not a number"),
    "one image": ({"image_path": ["0/0.png"], "rank": [1]}, "not a list of two images or more"),
    "no list": ({"image_path": "0/0.png"}, "not a list of two images or more"),
    "a number for a path": ({"image_path": ["0/0.png", 3]}, "found 3, not the path of an image"),
    "an image twice": ({"image_path": ["0/0.png", "0/0.png"]}, "0/0.png stands twice"),
    "no such image": ({"image_path": ["0/0.png", "gone.png"]}, "no such file"),
    "a way out of the folder": ({"image_path": ["0/0.png", "../x.png"]}, "leads out of"),
    "no prompt": ({"prompt": ""}, "the caption is empty"),
    "a number for a prompt": ({"prompt": 3}, "found 3, not a caption"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_item_is_named_or_skipped(case: str, tmp_path: Path) -> None:
    changes, message = BAD_ROWS[case]
    path = write(tmp_path, [GOOD, GOOD | changes])
    with pytest.raises(UserError, match=message) as error:
        list(open_pairs(path))
    assert "item 1" in error.value.problem
    reader = open_pairs(path, on_bad_row="skip")
    assert len(list(reader)) == 1
    assert len(reader.log.skipped) == 1


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != key}


HALVES: dict[str, tuple[object, str]] = {
    "images without an order": ([without("rank")], "no order of the images among 'prompt', 'image_path'"),
    "one path alone": ([{"prompt": "x", "path1": "0/0.png"}], "no order of the images among 'prompt', 'path1'"),
    "an item lacks its order": ([GOOD, without("rank")], "item 1: no 'rank'"),
    "a text among the items": ([GOOD, "x"], "item 1: found 'x', not an object"),
    "an order without images": ([without("image_path")], "not a file of pairs"),
    "an object of items": ({"data": [GOOD]}, "not a file of pairs"),
}


@pytest.mark.parametrize("case", HALVES)
def test_half_of_a_form_is_refused(case: str, tmp_path: Path) -> None:
    rows, message = HALVES[case]
    with pytest.raises(UserError, match=message) as error:
        list(open_pairs(write(tmp_path, rows)))
    assert error.value.remedy


@pytest.mark.parametrize("form", [*FORMS, "HPDv3"])
def test_check_and_convert(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = hpdv3(tmp_path) if form == "HPDv3" else write(tmp_path, items(*FORMS[form]))
    assert main(["data", "check", str(path)]) == 0
    assert "rankings" in capsys.readouterr().out
    assert main(["data", "convert", str(path), str(tmp_path / "pairs.parquet")]) == 0
    rows = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    found = [(row["caption"], red(row["jpg_0"]), red(row["jpg_1"]), row["label_0"]) for row in rows]
    assert found == ([("prompt 0", 5, 15, 1.0), ("prompt 1", 55, 65, 1.0)] if form == "HPDv3" else expected())


def test_texts_with_such_keys_stay_texts(tmp_path: Path) -> None:
    rows = [{"prompt": "Write.", "generations": ["one", "two"], "ranking": [1, 2], "file_path": "src/main.py"}]
    with pytest.raises(UserError, match="not a file of pairs"):
        open_pairs(write(tmp_path, rows))


# --- what HPSv2 and ImageReward report of them -----------------------------------------------------------------------


def world(root: Path, order: str) -> tuple[Path, list[list[float]], list[list[int]]]:
    """Rankings of pictures of the Shapes world: the file, the verifier's scores, and the ranks of every item."""
    rng = np.random.default_rng(5)
    scenes = all_scenes()
    rows, scores, ranks = [], [], []
    for number in range(8):
        scene, others = scenes[37 * number], rng.choice(len(scenes), 2 + number % 4, replace=False)
        shown = [scene, *(scenes[int(other)] for other in others)]
        pictures = [degrade(render(one, rng), str(rng.choice(["clean", "noisy"])), rng) for one in shown]
        names = [f"{number}/{k}.png" for k in range(len(pictures))]
        for name, picture in zip(names, pictures, strict=True):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(root / name)
        opened = [Image.open(root / name) for name in names]
        scores.append([float(score) for score in exact_scores(opened, [scene.caption] * len(names))])
        own = (rng.permutation(len(names)) + 1).tolist() if order == "rank" else rng.integers(1, 4, len(names)).tolist()
        own = own if len(set(own)) > 1 else [1, *own[1:-1], 2]
        ranks.append(own)
        key = "image_path" if order == "rank" else "generations"
        rows.append({"prompt": scene.caption, key: names, order: own})
    (root / "test.json").write_text(json.dumps(rows))
    return root / "test.json", scores, ranks


def decided(scores: list[float], ranks: list[int]) -> list[float]:
    """1 for every two images of unlike rank that the scores order alike, 0 for the others, one half for equal scores."""
    found = []
    for a in range(len(ranks)):
        for b in range(a + 1, len(ranks)):
            if ranks[a] != ranks[b]:
                better, worse = (a, b) if ranks[a] < ranks[b] else (b, a)
                found.append(0.5 if scores[better] == scores[worse] else float(scores[better] > scores[worse]))
    return found


@pytest.mark.parametrize("order", ["rank", "ranking"])
def test_the_accuracies_that_are_published(order: str, tmp_path: Path) -> None:
    """Micro as ImageReward computes it; macro as HPSv2 does: one minus the share of inverted pairs, for each ranking."""
    path, scores, ranks = world(tmp_path, order)
    argv = ["calibrate", str(path), "--per_prompt", "--scorer", "shapes", "--output_dir", str(tmp_path / "out")]
    assert main([*argv, "--cache_dir", str(tmp_path / "cache")]) == 0
    (found,) = json.loads((tmp_path / "out" / "calibration.json").read_text())["scorers"].values()
    credits = [decided(*item) for item in zip(scores, ranks, strict=True)]
    every = [credit for own in credits for credit in own]
    assert found["accuracy"]["value"] == pytest.approx(sum(every) / len(every), abs=1e-12)
    macro = np.mean([np.mean(own) for own in credits])
    assert found["accuracy_per_prompt"]["value"] == pytest.approx(macro, abs=1e-12)
    assert abs(macro - sum(every) / len(every)) > 1e-3
    if order == "rank":  # no ties: the formula of HPSv2's own evaluation
        inverted = [sum(1 - credit for credit in own) for own in credits]
        pairs = [len(own) * (len(own) - 1) / 2 for own in ranks]
        assert macro == pytest.approx(np.mean([1 - n / of for n, of in zip(inverted, pairs, strict=True)]), abs=1e-12)


def test_one_prompt_of_two_rankings_counts_twice(tmp_path: Path) -> None:
    path, scores, ranks = world(tmp_path, "rank")
    rows = json.loads(path.read_text())
    for row in rows[:4]:
        row["prompt"] = rows[0]["prompt"]
    path.write_text(json.dumps(rows))
    scores[:4] = [
        [float(score) for score in exact_scores([Image.open(tmp_path / n) for n in row["image_path"]], [row["prompt"]] * len(row["rank"]))]
        for row in rows[:4]
    ]  # fmt: skip
    argv = ["calibrate", str(path), "--scorer", "shapes", "--output_dir", str(tmp_path / "out")]
    assert main([*argv, "--cache_dir", str(tmp_path / "cache")]) == 0
    (found,) = json.loads((tmp_path / "out" / "calibration.json").read_text())["scorers"].values()
    macro = np.mean([np.mean(decided(*item)) for item in zip(scores, ranks, strict=True)])
    assert found["accuracy_per_prompt"]["value"] == pytest.approx(macro, abs=1e-12)
