"""``dfb generate`` on a tiny real pipeline: prompts x seeds x model (+ LoRA) to a folder that ``datasets`` reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from diffusion_feedback.cli.main import main

SHORT = ["--num_inference_steps", "2"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\na dog\na tree\n")
    return path


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {p.name: np.asarray(Image.open(p)).astype(int) for p in sorted((folder / "images").iterdir())}


def test_a_folder_that_datasets_reads(tmp_path: Path, prompts: Path, tiny_pipelines: dict[str, Path]) -> None:
    out = tmp_path / "out"
    command = ["generate", str(tiny_pipelines["sd"]), "--prompts", str(prompts), "--seeds", "0", "7"]
    assert main([*command, "--output_dir", str(out), *SHORT]) == 0
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["seed"]) for row in rows] == [
        (p, s) for p in ("a cat", "a dog", "a tree") for s in (0, 7)
    ]
    assert len({row["model_hash"] for row in rows}) == 1
    assert rows[0]["settings"]["num_inference_steps"] == 2
    data = load_dataset("imagefolder", data_dir=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(data) == 6
    assert {"image", "prompt", "seed"} <= set(data.column_names)


def test_batch_size_does_not_matter(tmp_path: Path, prompts: Path, tiny_pipelines: dict[str, Path]) -> None:
    for size in ("1", "3"):
        command = ["generate", str(tiny_pipelines["sd"]), "--prompts", str(prompts), "--batch_size", size]
        assert main([*command, "--output_dir", str(tmp_path / size), *SHORT]) == 0
    one, three = pixels(tmp_path / "1"), pixels(tmp_path / "3")
    assert one.keys() == three.keys()
    assert max(np.abs(one[name] - three[name]).max() for name in one) <= 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(tmp_path: Path, prompts: Path, tiny_pipelines: dict[str, Path], dtype: str) -> None:
    command = ["generate", str(tiny_pipelines["sd"]), "--prompts", str(prompts), *SHORT, "--output_dir"]
    assert main([*command, str(tmp_path / "full")]) == 0
    assert main([*command, str(tmp_path / "half"), "--dtype", dtype]) == 0
    full, half = pixels(tmp_path / "full"), pixels(tmp_path / "half")
    assert max(np.abs(full[name] - half[name]).mean() for name in full) < 4


def test_lora_is_another_model(
    tmp_path: Path,
    prompts: Path,
    tiny_pipelines: dict[str, Path],
    make_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = make_recipe(training={"max_train_steps": 3, "learning_rate": 0.1})
    assert main(["train", "--config", str(recipe)]) == 0
    command = ["generate", str(tiny_pipelines["sd"]), "--prompts", str(prompts), *SHORT, "--output_dir"]
    assert main([*command, str(tmp_path / "base")]) == 0
    assert main([*command, str(tmp_path / "tuned"), "--lora", str(recipe.with_suffix(""))]) == 0
    base, tuned = pixels(tmp_path / "base"), pixels(tmp_path / "tuned")
    assert any(np.abs(base[name] - tuned[name]).max() > 1 for name in base)
    capsys.readouterr()
    assert main([*command, str(tmp_path / "base"), "--lora", str(recipe.with_suffix(""))]) == 2
    assert "holds images of model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--batch_size", "0"], "--batch_size: got 0"),
        (["--seeds", "1", "1"], "--seeds"),
        (["--height", "30"], "--height: got 30"),
        (["--family", "flux"], "unknown family 'flux'"),
        (["--lora", "./absent"], "./absent: no such file or folder"),
        (["--device", "cuda:99"], "device cuda:99"),
        (["--prompts", "absent.txt"], "absent.txt"),
    ],
)
def test_bad_flags(
    tmp_path: Path,
    prompts: Path,
    tiny_pipelines: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    named: str,
) -> None:
    out = tmp_path / "out"
    command = ["generate", str(tiny_pipelines["sd"]), "--prompts", str(prompts), "--output_dir", str(out)]
    assert main([*command, *flags]) == 2
    assert named in capsys.readouterr().err
    assert not out.exists()


def test_noise_of_each_prompt_s_own(tmp_path: Path, tiny_pipelines: dict[str, Path]) -> None:
    """With the bare seed equal prompts in two places get equal images; with their own noise other prompts differ."""
    from diffusion_feedback.generation.images import own_noise

    asked: list[list[int]] = []

    def sampler(prompts: object, seeds: object) -> list[Image.Image]:
        asked.append(list(seeds))  # type: ignore[call-overload]
        return []

    own_noise(sampler)(["a cat", "a dog", "a cat"], [0, 0, 1])
    assert len(set(asked[0])) == 3
    own_noise(sampler)(["a dog"], [0])
    assert asked[1] == asked[0][1:2]

    path = tmp_path / "prompts.txt"
    path.write_text("a cat\na dog\n")
    command = ["generate", str(tiny_pipelines["sd"]), "--prompts", str(path), *SHORT, "--output_dir"]
    assert main([*command, str(tmp_path / "out"), "--noise", "prompt"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert {row["settings"]["noise"] for row in rows} == {"by prompt and seed"}
    assert main([*command, str(tmp_path / "out")]) == 2  # the folder holds images of other noise


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--device", "meta"], "--device meta: cannot be used"),
        (["--negative_prompt", "dull", "--guidance_scale", "1"], "--negative_prompt: means nothing"),
    ],
)
def test_flags_without_a_meaning(
    flags: list[str],
    words: str,
    tmp_path: Path,
    prompts: Path,
    tiny_pipelines: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["generate", str(tiny_pipelines["sd"]), "--prompts", str(prompts), "--output_dir", str(tmp_path / "out")]
    assert main([*argv, *flags]) == 2
    assert words in capsys.readouterr().err
