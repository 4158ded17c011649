"""Every command that writes x every state of what it writes into: told with its remedy, and nothing that stood there lost."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import benchmark_folders
import pytest
import shapes_images
import text_recipes
import tiny_models
import tiny_text

from diffusion_feedback.cli.main import main
from diffusion_feedback.folders import hold_file, hold_folder
from diffusion_feedback.generation.images import generate_images as draw
from diffusion_feedback.generation.images import load_generated
from diffusion_feedback.records import PromptRecord

ROOT = Path(__file__).parents[2]
PAIRS = ROOT / "assets" / "pairs" / "validation-00000.parquet"
REWARD = "def length(prompts, completions):\n    return [float(len(c)) for c in completions]\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of all commands. Read only."""
    root = tmp_path_factory.mktemp("world")
    shapes_images.write_folder(root / "set", 3, 2)
    captions = dict.fromkeys(
        json.loads(line)["prompt"] for line in (root / "set/metadata.jsonl").read_text().splitlines()
    )
    (root / "set" / "captions.txt").write_text("".join(f"{caption}\n" for caption in captions))
    tiny_models.save_sd(root / "sd")
    tiny_text.save_tiny_lm(root / "lm")
    (root / "reward.py").write_text(REWARD)
    (root / "prompts.txt").write_text("a red circle\nthe cat sat\n")
    (root / "heldout.txt").write_text("good better\non a blue\n")
    for name, shift in (("base", 0.0), ("other", 0.1)):
        prompts = [PromptRecord(f"prompt {number}", {}) for number in range(6)]
        scores = {"hpsv2": [0.2 + 0.01 * number + shift for number in range(6)]}
        benchmark_folders.write_folder(root / name, prompts, scores)
    text_recipes.write_jsonl(root / "pairs.jsonl", text_recipes.pairs(4))
    rollouts = {"reward": f"function={root / 'reward.py'}:length", "max_new_tokens": 2}
    text_recipes.write_recipe(
        root, root / "lm", "rounds", data={"train": str(root / "prompts.txt"), "validation": None},
        training={"max_train_steps": 1, "train_batch_size": 1}, validation={"num_prompts": 0}, rollouts=rollouts,
        rounds={"num_rounds": 1, "num_samples": 3, "heldout_prompts": str(root / "heldout.txt")},
    )  # fmt: skip
    text_recipes.write_recipe(
        root, root / "lm", "train", training={"max_train_steps": 1}, validation={"num_prompts": 0}
    )
    return root


def command(name: str, world: Path, out: Path) -> list[str]:
    """The arguments of a command whose output is ``out``."""
    prompts, cache = str(world / "prompts.txt"), ["--cache_dir", str(world / "cache")]
    found: dict[str, list[str]] = {
        "train": ["train", "--config", str(world / "train.yaml"), "--output_dir", str(out)],
        "rounds": ["rounds", "--config", str(world / "rounds.yaml"), "--output_dir", str(out)],
        "generate images": [
            "generate", str(world / "sd"), "--prompts", prompts, "--num_inference_steps", "1", "--output_dir", str(out),
        ],
        "generate texts": [
            "generate", str(world / "lm"), "--prompts", prompts, "--max_new_tokens", "2", "--output_dir", str(out),
        ],
        "score": ["score", str(world / "set"), "--scorer", "shapes", *cache, "--output", str(out)],
        "label": ["label", str(world / "set"), "--scorer", "shapes", *cache, "--output", str(out)],
        "calibrate": ["calibrate", str(PAIRS), "--scorer", "shapes", *cache, "--output_dir", str(out)],
        "benchmark": [
            "benchmark", "shapes", "--prompts", str(world / "set" / "captions.txt"), "--allow_short", "--images",
            str(world / "set"), *cache, "--output_dir", str(out),
        ],
        "judge": [
            "judge", str(world / "lm"), str(world / "lm"), "--names", "a", "b", "--prompts", prompts, "--max_new_tokens",
            "2", "--judge", f"function={world / 'reward.py'}:length", "--output_dir", str(out),
        ],
        "data convert": ["data", "convert", str(world / "pairs.jsonl"), str(out)],
        "report": ["report", str(world / "base"), str(world / "other"), "--output", str(out)],
        "demo": ["demo", "--configs", str(ROOT / "configs"), "--prompts", str(ROOT / "assets/prompts/heldout.txt"), "--output_dir", str(out)],
    }  # fmt: skip
    return found[name]


FOLDERS = ("train", "rounds", "generate images", "generate texts", "calibrate", "benchmark", "judge", "demo")
FILES = {"score": "o.parquet", "label": "o.parquet", "data convert": "o.jsonl", "report": "o.html"}
COMMANDS = (*FOLDERS, *FILES)


def output(name: str, place: Path) -> Path:
    return place / FILES.get(name, "out")


@contextmanager
def a_file_in_the_way(out: Path) -> Iterator[None]:
    out.write_text("mine")
    yield
    assert out.read_text() == "mine"


@contextmanager
def a_folder_in_the_way(out: Path) -> Iterator[None]:
    out.mkdir()
    (out / "letter.txt").write_text("mine")
    yield
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("letter.txt", "mine")]


@contextmanager
def under_a_file(out: Path) -> Iterator[None]:
    out.parent.rmdir()
    out.parent.write_text("mine")
    yield
    assert out.parent.read_text() == "mine"


@contextmanager
def a_loop(out: Path) -> Iterator[None]:
    out.symlink_to(out)
    yield
    assert out.is_symlink()


@contextmanager
def locked(out: Path) -> Iterator[None]:
    hold = hold_file if out.suffix else hold_folder
    with hold(out, "dfb other"):
        yield


STATES: dict[str, Callable[[Path], Any]] = {
    "a file in the way": a_file_in_the_way, "a folder in the way": a_folder_in_the_way, "under a file": under_a_file,
    "a loop": a_loop, "locked": locked,
}  # fmt: skip


def refused(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(list(argv)) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    error = said[said.index("error: ") :]
    assert "\n  -> " in error
    return error


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_written_into(
    name: str, state: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    out = output(name, place)
    if state == "a file in the way" and name in FILES:
        pytest.skip("a file that is there is the next test's")
    if (name, state) == ("generate images", "a folder in the way") or (name in FILES and state == "a loop"):
        pytest.skip("images may join other files; a link that leads nowhere is replaced")
    with STATES[state](out):
        error = refused(command(name, world, out), capsys)
        assert str(place) in error
        if state == "locked":
            assert "dfb other (process " in error
            assert "wait until it has ended" in error


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_there_are_kept(
    name: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = output(name, tmp_path)
    with a_file_in_the_way(out):
        assert "exists already" in refused(command(name, world, out), capsys)
    assert main([*command(name, world, out), "--overwrite"]) == 0
    assert out.read_bytes() != b"mine"
    assert [path.name for path in tmp_path.iterdir()] == [out.name], "no lock, no temporary"


BAD = {
    "too long": "x" * 300, "no home": "~nobody-of-this-name/x", "NUL": "a\0b", "no folder can be made": "/proc/1/none",
    "no UTF-8": "\udcff",
}  # fmt: skip


@pytest.mark.parametrize("path", BAD)
@pytest.mark.parametrize("name", COMMANDS)
def test_names_that_no_output_can_have(
    name: str,
    path: str,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = BAD[path] + (Path(FILES[name]).suffix if name in FILES else "")
    refused(command(name, world, Path(given)), capsys)
    assert list(tmp_path.iterdir()) == []


# --- damaged files of output folders ---------------------------------------------------------------------------------

DAMAGES: Mapping[str, bytes] = {
    "empty": b"", "cut": b'{"settings": {"a": 1', "no JSON": b"hello", "a list": b"[1]", "no UTF-8": b"\xff\xfe{}",
    "another": b'{"other": 1}', "nulls": b"\0" * 64, "deep": b"[" * 100_000,
}  # fmt: skip


@pytest.fixture(scope="module")
def done(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that commands have come to their end in; put back after each test."""
    root = tmp_path_factory.mktemp("done")
    for name in ("generate images", "generate texts", "judge", "rounds"):
        assert main(command(name, world, root / name)) == 0
    return root


@contextmanager
def damaged(path: Path, content: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


FOLDER_FILES = [
    ("generate images", "metadata.jsonl"), ("generate texts", "completions.jsonl"), ("judge", "results.json"),
    ("judge", "a/completions.jsonl"), ("rounds", "identity.json"), ("rounds", "recipe.yaml"),
    ("rounds", "round-1/evaluation/divergence.json"),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("name", "file"), FOLDER_FILES)
def test_damaged_files_of_an_output_folder(
    name: str, file: str, damage: str, world: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command(name, world, done / name)
    with damaged(done / name / file, DAMAGES[damage] + b"\n" * (damage != "empty")):
        if damage == "empty" and file.endswith("completions.jsonl"):
            assert main(argv) == 0, "nothing was drawn yet, so all is drawn"
            return
        error = refused(argv, capsys)
        assert Path(file).name in error or (damage == "another" and "holds rounds " in error)


ROWS = [
    *({"file_name": value} for value in (5, None, "../x.png", "/x.png", ["a"])),
    *({"prompt": value} for value in (5, None, ["a"])),
    *({"seed": value} for value in ("a", None, 1.5, True)),
    *({"settings": value} for value in (5, None, "a")),
    {"model_hash": 5},
]


@pytest.mark.parametrize("change", ROWS, ids=json.dumps)
def test_rows_of_another_kind(
    change: dict[str, Any], world: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, file in (("generate images", "metadata.jsonl"), ("generate texts", "completions.jsonl")):
        path = done / name / file
        row = json.loads(path.read_text().splitlines()[0])
        if not set(change) <= set(row) or (name == "generate texts" and change == {"prompt": ["a"]}):
            continue
        with damaged(path, (json.dumps(row | change) + "\n").encode()):
            error = refused(command(name, world, done / name), capsys)
            assert f"{file}, line 1" in error


# --- images without their manifest -----------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("damage", ["lost", "empty", "cut to nothing", "an image more"])
def test_images_whose_manifest_is_lost_are_kept(
    damage: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = command("generate images", world, out)
    assert main(argv) == 0
    whole = contents(out)
    manifest = out / "metadata.jsonl"
    if damage == "lost":
        manifest.unlink()
    elif damage == "an image more":
        (out / "images" / "00007-s0.png").write_bytes(b"somebody's")
    else:
        manifest.write_bytes(b"" if damage == "empty" else manifest.read_bytes()[:20])
    for image in (out / "images").iterdir():
        image.chmod(stat.S_IRUSR)
    before = contents(out)
    error = refused(argv, capsys)
    count, first = (1, "00007-s0.png") if damage == "an image more" else (2, "00000-s0.png")
    assert f"holds {count} images, and metadata.jsonl " in error
    assert f"the first: images/{first}" in error
    assert "--overwrite" in error
    assert contents(out) | {"metadata.jsonl": b""} == before | {"metadata.jsonl": b""}
    assert main([*argv, "--overwrite"]) == 0
    assert contents(out) == whole


@pytest.mark.parametrize("stage", range(6))
def test_overwriting_that_is_killed_goes_on(stage: int, tmp_path: Path) -> None:
    """At every image: what is to be replaced is noted first, so the next run knows that it may."""
    from PIL import Image

    def sampler(level: int, limit: int) -> Any:
        left = [limit]

        def sample(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return [Image.new("L", (8, 8), level + len(prompt)) for prompt in prompts]

        return sample

    prompts = ["a", "bb", "ccc", "dddd", "eeeee"]
    settings: dict[str, Any] = {"settings": {}, "batch_size": 1}
    draw(prompts, [0], tmp_path / "old", sampler=sampler(9, 9), model_hash="old", **settings)
    draw(prompts, [0], tmp_path / "new", sampler=sampler(99, 9), model_hash="new", **settings)
    whole = contents(tmp_path / "new")
    if stage < 5:
        with pytest.raises(KeyboardInterrupt):
            draw(
                prompts, [0], tmp_path / "old", sampler=sampler(99, stage), model_hash="new", overwrite=True, **settings
            )
        draw(prompts, [0], tmp_path / "old", sampler=sampler(99, 9), model_hash="new", **settings)
    else:
        draw(prompts, [0], tmp_path / "old", sampler=sampler(99, 9), model_hash="new", overwrite=True, **settings)
    assert contents(tmp_path / "old") == whole
    assert len(load_generated(tmp_path / "old")) == 5
