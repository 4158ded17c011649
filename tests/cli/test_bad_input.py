"""Bad input to ``dfb train``: a clear error that names what is wrong, exit code 2, and nothing half-written."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pairs_data
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusion_feedback.cli.main import main

MakeRecipe = Callable[..., Path]
Table = dict[str, list[Any]]


def table(path: Path, **changes: Any) -> Path:
    """Eight good pairs, with whole columns replaced or (None) left out, as plain pyarrow writes them."""
    columns: Table = {
        "caption": [f"picture {i}" for i in range(8)],
        "jpg_0": [pairs_data.jpeg(180, 2 * i) for i in range(8)],
        "jpg_1": [pairs_data.jpeg(70, 2 * i + 1) for i in range(8)],
        "label_0": [1.0] * 8,
        "label_1": [0.0] * 8,
    }
    columns = {name: value for name, value in {**columns, **changes}.items() if value is not None}
    pq.write_table(pa.table(columns), path)
    return path


def with_image(data: bytes) -> list[bytes]:
    good = [pairs_data.jpeg(180, 2 * i) for i in range(8)]
    return [*good[:3], data, *good[4:]]


def bomb() -> bytes:
    """A PNG header that claims 60,000 x 60,000 pixels over a few real bytes."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


BAD_TABLES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "missing column": ({"jpg_1": None}, ["jpg_1", "bad.parquet"]),
    "wrong dtype": ({"label_0": ["yes"] * 8}, ["label_0", "bad.parquet"]),
    "truncated JPEG": ({"jpg_0": with_image(pairs_data.jpeg(90, 99)[:300])}, ["bad.parquet", "row 3", "jpg_0"]),
    "zero-byte image": ({"jpg_0": with_image(b"")}, ["bad.parquet", "row 3", "jpg_0", "0 bytes"]),
    "decompression bomb": ({"jpg_0": with_image(bomb())}, ["bad.parquet", "row 3", "jpg_0", "pixels"]),
    "empty caption": ({"caption": [*["a"] * 3, "", *["a"] * 4]}, ["bad.parquet", "row 3", "caption"]),
    "all ties": ({"label_0": [0.5] * 8, "label_1": [0.5] * 8}, ["bad.parquet", "8 ties", "soft"]),
    "labels that do not add up": ({"label_1": [1.0] * 8}, ["bad.parquet", "label_1"]),
}


@pytest.mark.parametrize("case", list(BAD_TABLES))
def test_bad_tables(case: str, make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, named = BAD_TABLES[case]
    recipe = make_recipe(data={"train": str(table(tmp_path / "bad.parquet", **changes)), "validation": None})
    assert main(["train", "--config", str(recipe)]) == 2
    message = capsys.readouterr().err
    for word in named:
        assert word in message
    assert "->" in message, "the message says what to do"
    assert not recipe.with_suffix("").exists()


def test_empty_data(make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = pa.table({
        "caption": pa.array([], pa.string()), "jpg_0": pa.array([], pa.binary()), "jpg_1": pa.array([], pa.binary()),
        "label_0": pa.array([], pa.float64()), "label_1": pa.array([], pa.float64()),
    })  # fmt: skip
    pq.write_table(empty, tmp_path / "empty.parquet")
    recipe = make_recipe(data={"train": str(tmp_path / "empty.parquet")})
    assert main(["train", "--config", str(recipe)]) == 2
    assert "0 usable pairs" in capsys.readouterr().err


def test_bad_rows_are_skipped_counted_and_listed(
    make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path / "bad.parquet", jpg_0=with_image(b""), caption=["", *[f"picture {i}" for i in range(7)]])
    data = {"train": str(path), "validation": None, "on_bad_row": "skip"}
    recipe = make_recipe(data=data, training={"max_train_steps": 1, "train_batch_size": 6})
    assert main(["train", "--config", str(recipe)]) == 0
    printed = capsys.readouterr().out
    assert "2 bad rows skipped" in printed
    assert "row 0" in printed
    assert "row 3" in printed


def unusual_images() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    wide = Image.fromarray(rng.integers(0, 65536, (16, 16), dtype=np.uint16))
    images = {
        "CMYK.jpg": rgb.convert("CMYK"),
        "palette.png": rgb.convert("P"),
        "alpha.png": rgb.convert("RGBA"),
        "sixteen.png": wide,
        "grey.webp": rgb.convert("L"),
    }
    found = {}
    for name, image in images.items():
        buffer = io.BytesIO()
        image.save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[name.rpartition(".")[2]])
        found[name] = buffer.getvalue()
    return found


def test_unusual_images_are_converted(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    unusual = [*unusual_images().values(), *(pairs_data.jpeg(180, i) for i in range(3))]
    path = table(tmp_path / "unusual.parquet", jpg_0=unusual)
    recipe = make_recipe(data={"train": str(path), "validation": None}, training={"max_train_steps": 1})
    assert main(["train", "--config", str(recipe)]) == 0


def test_long_captions_are_told_once_with_their_number(
    make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = [f"{'x' * 80} {i}" for i in range(3)] + [f"short {i}" for i in range(5)]
    path = table(tmp_path / "long.parquet", caption=captions)
    recipe = make_recipe(data={"train": str(path), "validation": None}, training={"max_train_steps": 1})
    assert main(["train", "--config", str(recipe)]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("note: 3 captions are longer than the text encoder reads") == 1
    assert "token" not in printed.err.lower()


def test_weights_with_nan(
    make_recipe: MakeRecipe, tmp_path: Path, tiny_pipelines: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_pipelines["sd"], model)
    file = model / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["decoder.conv_in.weight"][0, 0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    recipe = make_recipe(model={"pretrained_model_name_or_path": str(model)})
    assert main(["train", "--config", str(recipe)]) == 2
    assert "vae: weight 'decoder.conv_in.weight' holds 9 values" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--model.family", "sdx"], ["unknown family 'sdx'", "did you mean 'sdxl'"]),
        (["--model.pretrained_model_name_or_path", "./absent"], ["./absent", "no such folder"]),
        (["--data.train", "absent.parquet"], ["absent.parquet"]),
        (["--objective.name", "dpoo"], ["unknown objective 'dpoo'", "did you mean 'dpo'"]),
        (["--objective.label_smoothin", "0.1"], ["label_smoothin", "label_smoothing"]),
        (["--training.learnin_rate", "1"], ["training.learnin_rate", "did you mean --training.learning_rate"]),
        (["training.learning_rate=1"], ["'training.learning_rate'", "write --training.learning_rate VALUE"]),
        (["--training.learning_rate", "fast"], ["training.learning_rate", "fast"]),
        (["--training.train_batch_size", "0"], ["training.train_batch_size", "1 or more"]),
        (["--training.train_batch_size", "99"], ["effective batch of 99", "24 usable ones"]),
        (["--model.lora_targets", "[nowhere]"], ["no layer", "'nowhere'"]),
        (["--objective.beta", "-1"], ["objective.beta", "above 0"]),
        (["--optimizer.beta1", "2"], ["optimizer", "beta"]),
        (["--model.dtype", "bfloat16"], ["training.mixed_precision", "bf16"]),
        (["--validation.num_inference_steps", "0"], ["validation.num_inference_steps", "1 or more"]),
        (["--resume", "--overwrite"], ["--resume and --overwrite contradict"]),
        (["--data.random_crop", "true"], ["data.random_crop", "data.cache: false"]),
        (["--training.report_to", "[nosuchtracker]"], ["nosuchtracker"]),
        (["--config", "absent.yaml"], ["absent.yaml", "no such recipe file"]),
    ],
)
def test_bad_settings(
    make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str], flags: list[str], named: list[str]
) -> None:
    recipe = make_recipe(objective={"name": "dpo", "beta": 500})
    assert main(["train", "--config", str(recipe), *flags]) == 2
    message = capsys.readouterr().err
    for word in named:
        assert word in message
    assert not recipe.with_suffix("").exists()


def test_heldout_pairs_must_be_others(
    make_recipe: MakeRecipe, pair_files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(data={"validation": str(pair_files["train"])})
    assert main(["train", "--config", str(recipe)]) == 2
    assert "24 of its 24 pairs are training pairs too" in capsys.readouterr().err


def test_unknown_keys_of_a_file(make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(training={"learning_rat": 1e-3})
    assert main(["train", "--config", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert recipe.name in message
    assert "training.learning_rat" in message
    assert "did you mean 'learning_rate'" in message


def test_folder_of_another_run_is_kept(make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(training={"max_train_steps": 1})
    folder = recipe.with_suffix("")
    assert main(["train", "--config", str(recipe)]) == 0
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    capsys.readouterr()
    assert main(["train", "--config", str(recipe)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main(["train", "--config", str(recipe), "--training.seed", "5", "--resume"]) == 2
    assert "--resume with another training.seed: 0 became 5" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert main(["train", "--config", str(recipe), "--resume"]) == 0
    assert "already complete" in capsys.readouterr().out
    assert main(["train", "--config", str(recipe), "--overwrite", "--training.seed", "5"]) == 0


def test_folder_of_something_else_is_kept(make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe()
    folder = recipe.with_suffix("")
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    assert main(["train", "--config", str(recipe), "--overwrite"]) == 2
    assert "is no run" in capsys.readouterr().err
    assert (folder / "thesis.txt").read_text() == "years of work"


def test_output_that_cannot_be_written(make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    """Below a file no folder can be made, whoever asks; so the test holds for root too."""
    recipe = make_recipe()
    blocked = recipe.parent / "blocked"
    blocked.write_text("a file")
    assert main(["train", "--config", str(recipe), "--output_dir", str(blocked / "run")]) == 2
    assert str(blocked / "run") in capsys.readouterr().err
    assert main(["train", "--config", str(recipe), "--data.cache_dir", str(blocked / "cache")]) == 2
    assert str(blocked / "cache") in capsys.readouterr().err
    assert blocked.read_text() == "a file"
