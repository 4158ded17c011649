"""``dfb benchmark`` end to end: generated and given images, the figures, baselines, kills, and bad input."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killing
import numpy as np
import pytest
import shapes_images
from image_world import all_scenes, degrade, exact_scores, render
from PIL import Image

from diffusion_feedback.cli.main import main
from diffusion_feedback.data.scores import read_scores
from diffusion_feedback.evaluation.benchmarks.published import STYLES
from diffusion_feedback.shapes import scorer
from diffusion_feedback.workflows.benchmark_folder import load_run

Run = Callable[..., int]


@pytest.fixture
def bench(tmp_path: Path) -> Run:
    """``dfb benchmark`` into ``tmp_path / name``, with a cache of the test's own."""

    def run(name: str, benchmark: str, *flags: str) -> int:
        where = ["--output_dir", str(tmp_path / name), "--cache_dir", str(tmp_path / "cache"), "--workers", "1"]
        return main(["benchmark", benchmark, *where, *flags])

    return run


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def captions(folder: Path) -> list[str]:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    return list(dict.fromkeys(row["prompt"] for row in rows))


def write_captions(path: Path, prompts: list[str]) -> str:
    path.write_text("\n".join(prompts) + "\n")
    return str(path)


@pytest.fixture
def given(tmp_path: Path) -> tuple[str, ...]:
    """Flags for two pictures of each of 12 captions, and the file of these captions."""
    folder = shapes_images.write_folder(tmp_path / "set", 12, 2)
    return "--prompts", write_captions(tmp_path / "captions.txt", captions(folder)), "--images", str(folder)


def verified(folder: Path) -> list[float]:
    """The verifier's own mean for each prompt of ``folder``, in the order of the prompts."""
    found: dict[str, list[float]] = {}
    for line in (folder / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        image = Image.open(folder / row["file_name"])
        found.setdefault(row["prompt"], []).append(float(exact_scores([image], [row["prompt"]])[0]))
    return [statistics.fmean(scores) for scores in found.values()]


# --- figures ---------------------------------------------------------------------------------------------------------


def test_figures_are_the_verifier_s(tmp_path: Path, bench: Run, given: tuple[str, ...]) -> None:
    assert bench("run", "shapes", *given) == 0
    results, values = read(tmp_path / "run" / "results.json"), verified(tmp_path / "set")
    found = results["scorers"]["shapes"]
    assert found["recipe_id"] == "shapes.1/box-64/fp32"
    assert found["overall"]["mean"] == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert found["overall"]["standard_error"] == pytest.approx(statistics.stdev(values) / 12**0.5, abs=1e-6)
    for size, figures in found["styles"].items():
        own = [v for v, prompt in zip(values, captions(tmp_path / "set"), strict=True) if f"a {size} " in prompt]
        assert (figures["num_prompts"], figures["complete"]) == (len(own), True)
        assert figures["mean"] == pytest.approx(statistics.fmean(own), abs=1e-6)
    assert (results["num_images"], results["missing_prompts"]) == (24, 0)
    assert "published" not in results
    assert len(read_scores(tmp_path / "run" / "scores.parquet")) == 24


def test_the_folder_explains_itself(tmp_path: Path, bench: Run, given: tuple[str, ...]) -> None:
    assert bench("run", "shapes", *given) == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"benchmark.json", "prompts.jsonl", "scores.parquet", "results.json", "report.html", "README.md"}
    readme = (tmp_path / "run" / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in names - {"README.md"})
    settings = read(tmp_path / "run" / "benchmark.json")
    assert settings["recipes"] == {"shapes": "shapes.1/box-64/fp32"}
    assert settings["images"] == str(tmp_path / "set")
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(words in page for words in ("Highest", "Lowest", "Means, shapes", "all prompts", "small", "large"))


def write_styles(root: Path, count: int, suffix: str = "png", style_of_images: str = "") -> tuple[Path, Path]:
    """Prompt files and images of the HPSv2 benchmark in its own layout, with captions of Shapes for prompts."""
    scenes = all_scenes()
    for number, style in enumerate(STYLES):
        chosen = scenes[number * 100 : number * 100 + count]
        (root / "prompts").mkdir(parents=True, exist_ok=True)
        (root / "prompts" / f"{style}.json").write_text(json.dumps([scene.caption for scene in chosen]))
        (root / "images" / style).mkdir(parents=True)
        for index, scene in enumerate(chosen):
            rng = np.random.default_rng([number, index])
            picture = degrade(render(scene, rng), "clean" if index % 2 else "noisy", rng)
            picture.save(root / "images" / style / f"{index:05d}.{suffix}")
    return root / "prompts", root / "images"


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_hpsv2_in_its_own_layout(tmp_path: Path, bench: Run, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, images = write_styles(tmp_path, 3, suffix)
    flags = ["--prompts", str(prompts), "--images", str(images), "--scorer", "shapes"]
    assert bench("run", "hpsv2", *flags) == 2
    assert "anime: 3 of 800 prompts; concept-art: 3 of 800" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert bench("run", "hpsv2", *flags, "--allow_short") == 0
    results = read(tmp_path / "run" / "results.json")
    assert list(results["scorers"]["shapes"]["styles"]) == list(STYLES)
    assert results["short"][3] == "photo: 3 of 800 prompts"
    photos = [images / "photo" / f"{index:05d}.{suffix}" for index in range(3)]
    texts = json.loads((prompts / "photo.json").read_text())
    expected = exact_scores([Image.open(path) for path in photos], texts).mean()
    assert results["scorers"]["shapes"]["styles"]["photo"]["mean"] == pytest.approx(float(expected), abs=1e-6)
    assert "Not the whole benchmark" in (tmp_path / "run" / "report.html").read_text()


# --- generation ------------------------------------------------------------------------------------------------------


@pytest.fixture
def generated(tmp_path: Path, tiny_pipelines: dict[str, Path]) -> list[str]:
    prompts = [scene.caption for scene in all_scenes()[:600:150]]
    flags = ["--prompts", write_captions(tmp_path / "captions.txt", prompts), "--model", str(tiny_pipelines["sd"])]
    return [*flags, "--num_inference_steps", "2", "--generation_batch_size", "3"]


def test_generated_images_and_their_manifest(tmp_path: Path, bench: Run, generated: list[str]) -> None:
    assert bench("run", "shapes", *generated, "--seeds", "0", "5") == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metadata.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 5] * 4
    assert {row["settings"]["noise"] for row in rows} == {"by prompt and seed"}
    settings = read(tmp_path / "run" / "benchmark.json")
    assert {row["model_hash"] for row in rows} == {settings["model_hash"]}
    assert settings["generation"]["num_inference_steps"] == 2
    assert [len(images) for images in load_run(tmp_path / "run").images] == [2] * 4
    # The folder is an image folder itself, so that other scorers may judge the same images elsewhere.
    flags = ["--prompts", str(tmp_path / "captions.txt"), "--images", str(tmp_path / "run")]
    assert bench("again", "shapes", *flags) == 0
    one, two = (read(tmp_path / name / "results.json") for name in ("run", "again"))
    assert one == two


def test_the_same_command_again_changes_nothing(
    tmp_path: Path, bench: Run, generated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench("run", "shapes", *generated) == 0
    first = contents(tmp_path / "run")
    monkeypatch.setattr(scorer, "_judge", lambda *_: pytest.fail("scored again"))
    assert bench("run", "shapes", *generated) == 0
    assert contents(tmp_path / "run") == first


def test_another_setting_is_refused(
    tmp_path: Path, bench: Run, generated: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("run", "shapes", *generated) == 0
    first = contents(tmp_path / "run")
    for flags, named in (
        (["--guidance_scale", "3"], "generation.guidance_scale = 7.5, this one has 3.0"),
        (["--seed", "1"], "seeds = [0], this one has [1]"),
        (["--allow_missing"], "allow_missing = False"),
        (["--scorer", "shapes", "v:shapes"], "scorers ="),
    ):
        capsys.readouterr()
        assert bench("run", "shapes", *generated, *flags) == 2
        assert named in capsys.readouterr().err
    assert contents(tmp_path / "run") == first
    assert bench("run", "shapes", *generated, "--seed", "1", "--overwrite") == 0
    assert sorted(path.name for path in (tmp_path / "run" / "images").iterdir())[0] == "00000-s1.png"


@pytest.mark.slow
def test_killed_and_repeated_equals_uninterrupted(tmp_path: Path, bench: Run, generated: list[str]) -> None:
    prompts = [scene.caption for scene in all_scenes()[::20]]
    write_captions(tmp_path / "captions.txt", prompts)
    flags = [*generated, "--num_inference_steps", "8", "--generation_batch_size", "2"]
    assert bench("whole", "shapes", *flags) == 0
    broken = tmp_path / "broken"
    command = ["benchmark", "shapes", *flags, "--output_dir", str(broken), "--cache_dir", str(tmp_path / "other")]
    hits = killing.kill_often(command, kills=4, begun=(broken / "images").exists, span=0.5, seed="benchmark")
    assert hits >= 2
    assert main(command) == 0
    whole, found = contents(tmp_path / "whole"), contents(broken)
    for name in ("scores.parquet", "results.json", "prompts.jsonl", "metadata.jsonl"):
        assert found[name] == whole[name], name
    for path in broken.glob("*"):  # only what a killed process was writing may be left, under a hidden name
        assert path.name in whole or path.name == "images" or path.name.startswith("."), path


# --- baselines -------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path, bench: Run, given: tuple[str, ...]) -> list[str]:
    """A baseline run of noisy pictures, and the flags of a run of clean and of noisy ones of the same captions."""
    noisy = tmp_path / "noisy"
    shutil.copytree(tmp_path / "set", noisy)
    for number, caption in enumerate(captions(noisy)):
        scene = next(scene for scene in all_scenes() if scene.caption == caption)
        rng = np.random.default_rng([99, number])
        for seed in range(2):
            kind = "noisy" if number % 3 else "clean"
            degrade(render(scene, rng), kind, rng).save(noisy / "images" / f"{number:05d}-s{seed}.png")
    assert bench("base", "shapes", *given[:2], "--images", str(noisy)) == 0
    return [*given, "--baseline", str(tmp_path / "base")]


def test_the_comparison_is_by_prompt(tmp_path: Path, bench: Run, two: list[str]) -> None:
    assert bench("run", "shapes", *two) == 0
    before, after = verified(tmp_path / "noisy"), verified(tmp_path / "set")
    found = read(tmp_path / "run" / "results.json")["baseline"]
    won = found["scorers"]["shapes"]["overall"]["win_rate"]
    assert won["num"] == 12
    assert won["wins"] == sum(b > a for a, b in zip(before, after, strict=True))
    assert won["losses"] == sum(b < a for a, b in zip(before, after, strict=True))
    difference = found["scorers"]["shapes"]["overall"]["mean_difference"]["value"]
    assert difference == pytest.approx(statistics.fmean(after) - statistics.fmean(before), abs=1e-6)
    assert 0 < found["scorers"]["shapes"]["overall"]["permutation_p_value"] <= 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(
        words in page for words in ("Largest gains", "Typical cases", "Largest losses", "win rate, run against base")
    )
    assert "start from the same seed" not in page  # of given images nobody knows


def test_a_tie_margin_makes_ties(tmp_path: Path, bench: Run, two: list[str]) -> None:
    assert bench("run", "shapes", *two, "--tie_margin", "2") == 0
    found = read(tmp_path / "run" / "results.json")["baseline"]
    assert (found["tie_margin"], found["scorers"]["shapes"]["overall"]["win_rate"]["ties"]) == (2.0, 12)


def test_other_prompts_are_no_baseline(
    tmp_path: Path, bench: Run, two: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_captions(tmp_path / "other.txt", captions(tmp_path / "set")[:11])
    assert bench("run", "shapes", *two, "--prompts", other) == 2
    assert "base has other prompts" in capsys.readouterr().err
    assert bench("run", "pickapic", *two, "--scorer", "shapes") == 2
    assert "base is a run of shapes, this run is one of pickapic" in capsys.readouterr().err
    assert bench("run", "shapes", *two, "--baseline", str(tmp_path / "set")) == 2
    assert "set: no benchmark.json" in capsys.readouterr().err
    (tmp_path / "base" / "results.json").unlink()
    assert bench("run", "shapes", *two) == 2
    assert "so the run is not finished" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# --- images that do not fit ------------------------------------------------------------------------------------------


def test_missing_images(
    tmp_path: Path, bench: Run, two: list[str], given: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        (tmp_path / "set" / "images" / f"00003-s{seed}.png").unlink()
    assert bench("run", "shapes", *given) == 2
    missing = captions(tmp_path / "set")[3]
    assert f"1 image missing, of 12 prompts; the first of them:\n  an image of '{missing}'" in capsys.readouterr().err
    assert bench("run", "shapes", *given, "--allow_missing") == 0
    results = read(tmp_path / "run" / "results.json")
    assert (results["missing_prompts"], results["scorers"]["shapes"]["overall"]["complete"]) == (1, False)
    assert "run is incomplete" in (tmp_path / "run" / "report.html").read_text()
    assert "INCOMPLETE: 1 of 12 missing" in capsys.readouterr().out
    # The baseline is whole, so it need not be made again to be compared on what both have.
    assert bench("paired", "shapes", *two, "--allow_missing") == 0
    assert "of 11; 1 of 12 prompts left out, as one of the runs lacks them)" in capsys.readouterr().out
    found = read(tmp_path / "paired" / "results.json")["baseline"]
    assert (found["num_prompts"], found["left_out"]) == (11, 1)
    assert "11 of 12 prompts have a scored image in both runs" in (tmp_path / "paired" / "report.html").read_text()


def test_a_hundred_missing_images_are_counted_and_twenty_named(
    tmp_path: Path, bench: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write_captions(tmp_path / "captions.txt", [scene.caption for scene in all_scenes()[:101]])
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "00100.png")
    assert (
        bench("run", "pickapic", "--prompts", prompts, "--images", str(tmp_path / "images"), "--scorer", "shapes") == 2
    )
    lines = capsys.readouterr().err.splitlines()
    assert "100 images missing, of 101 prompts" in lines[0]
    assert lines[1:21] == [f"  {index:05d}.png" for index in range(20)]
    assert lines[21].startswith("  -> ")


def test_more_images_than_prompts_are_told(
    tmp_path: Path, bench: Run, given: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_captions(tmp_path / "few.txt", captions(tmp_path / "set")[:10])
    assert bench("run", "shapes", "--prompts", few, "--images", given[3]) == 0
    assert "4 images of" in capsys.readouterr().out


def test_broken_images(tmp_path: Path, bench: Run, given: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set" / "images" / "00002-s0.png").write_bytes(b"no image")
    (tmp_path / "set" / "images" / "00002-s1.png").write_bytes(b"")
    assert bench("run", "shapes", *given) == 2
    assert "00002-s" in capsys.readouterr().err
    assert not (tmp_path / "run" / "results.json").exists()
    assert bench("run", "shapes", *given, "--on_bad_image", "skip") == 2
    assert "give --allow_missing too" in capsys.readouterr().err
    assert bench("skipped", "shapes", *given, "--on_bad_image", "skip", "--allow_missing") == 0
    assert read(tmp_path / "skipped" / "results.json")["missing_prompts"] == 1


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--images", ""], "--images: is empty"),
        (["--model", "x"], "--model or --images: both are given"),
        (["--tie_margin", "-1"], "--tie_margin: got -1.0"),
        (["--tie_margin", "nan"], "--tie_margin: got nan"),
        (["--generation_batch_size", "0"], "--generation_batch_size: got 0"),
        (["--seeds", "1", "1"], "--seeds: got [1, 1]"),
        (["--scorer", "shape"], "unknown scorer 'shape'"),
        (["--prompts", "absent.txt"], "absent.txt: no such file or folder"),
        (["--images", "absent"], "absent: no such folder"),
    ],
)
def test_bad_flags(
    tmp_path: Path,
    bench: Run,
    given: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    named: str,
) -> None:
    assert bench("run", "shapes", *given, *flags) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "run" / "results.json").exists()


def test_unknown_benchmarks_and_foreign_folders(
    tmp_path: Path, bench: Run, given: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("run", "hpsv3", *given) == 2
    assert "unknown benchmark 'hpsv3'" in capsys.readouterr().err
    assert bench("run", "pickapic", *given[2:]) == 2
    assert "pickapic has no prompts of its own" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text("precious")
    for flags in ([], ["--overwrite"]):
        assert bench("run", "shapes", *given, *flags) == 2
        assert "is there already, and holds no benchmark.json" in capsys.readouterr().err
        assert (tmp_path / "run" / "README.md").read_text() == "precious"
    (tmp_path / "file").write_text("precious")
    assert bench("file/run", "shapes", *given) == 2
    assert "file/run: cannot be written: Not a directory" in capsys.readouterr().err


def test_overwriting_replaces_nothing_before_there_is_something_better(
    tmp_path: Path, bench: Run, given: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("run", "shapes", *given) == 0
    first = contents(tmp_path / "run")
    for flags, named in (
        (["--scorer", "shapez"], "unknown scorer 'shapez'"),
        (["--scorer", f"pickscore={tmp_path / 'absent'}"], "absent: no such folder"),
        (["--device", "gpu"], "--device gpu: cannot be used"),
        (["--baseline", str(tmp_path / "run")], "is the --output_dir"),
        (["--model", str(tmp_path / "absent")], "both are given"),
    ):
        capsys.readouterr()
        assert bench("run", "shapes", *given, "--overwrite", *flags) == 2
        assert named in capsys.readouterr().err
        assert contents(tmp_path / "run") == first
    assert bench("run", "shapes", *given, "--overwrite", "--batch_size", "3") == 0
    assert contents(tmp_path / "run") == first


def test_half_written_files_are_swept(tmp_path: Path, bench: Run, given: tuple[str, ...]) -> None:
    """No second run works in the folder, so they are those of a run that was killed."""
    assert bench("run", "shapes", *given) == 0
    left = [tmp_path / "run" / f".results.json.{name}.tmp" for name in ("1", "0123456789ab")]
    for path in left:
        path.write_text("half")
    assert bench("run", "shapes", *given) == 0
    assert not any(path.exists() for path in left)


def test_scores_of_other_weights_are_not_mixed(
    tmp_path: Path, bench: Run, given: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("run", "shapes", *given) == 0
    settings = read(tmp_path / "run" / "benchmark.json")
    settings["recipes"]["shapes"] = "shapes.0/other"
    (tmp_path / "run" / "benchmark.json").write_text(json.dumps(settings))
    assert bench("run", "shapes", *given) == 2
    assert "holds scores of {'shapes': 'shapes.0/other'}" in capsys.readouterr().err


def test_neither_model_nor_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "hpsv2", "--scorer", "shapes", "--output_dir", str(tmp_path / "run")]) == 2
    assert "--model or --images: neither is given" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
