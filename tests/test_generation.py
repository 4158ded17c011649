"""Prompts of every format, and image folders that come out the same whatever kills their writer."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import copytree
from typing import Any

import datasets
import pandas as pd
import pytest
from PIL import Image

from diffusion_feedback.errors import UserError
from diffusion_feedback.generation.images import generate_images, load_generated, own_noise
from diffusion_feedback.prompts import read_prompts
from diffusion_feedback.records import ImageRecord
from diffusion_feedback.workflows.generating import generate

PROMPTS = [f"a picture of thing {index}, “quoted”" for index in range(6)]
SETTINGS = {"num_inference_steps": 4, "guidance_scale": 7.5, "size": (8, 8)}


def sample(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
    """One small image for each (prompt, seed), a function of the two alone."""
    sources = [random.Random(f"{prompt}|{seed}") for prompt, seed in zip(prompts, seeds, strict=True)]
    return [Image.frombytes("RGB", (8, 8), source.randbytes(192)) for source in sources]


def run(
    folder: Path, prompts: Sequence[str] = PROMPTS, seeds: Sequence[int] = (0, 3), **changes: Any
) -> list[ImageRecord]:
    options = {"sampler": sample, "model_hash": "m1", "settings": SETTINGS, "batch_size": 4} | changes
    return generate_images(prompts, seeds, folder, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class CountingSampler:
    """Counts the images asked for, and fails like a killed process after ``limit`` batches."""

    def __init__(self, limit: int = 1000) -> None:
        self.batches: list[list[tuple[str, int]]] = []
        self.limit = limit

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        if len(self.batches) == self.limit:
            raise KeyboardInterrupt
        self.batches.append(list(zip(prompts, seeds, strict=True)))
        return sample(prompts, seeds)


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_from_text_skip_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cat\r\n\n  a dög \n\n".encode())
    assert [record.prompt for record in read_prompts(path)] == ["a cat", "a dög"]


def test_prompts_from_tables_keep_the_other_columns(tmp_path: Path) -> None:
    rows = [{"caption": "a cat", "style": "photo"}, {"caption": "a dog, running", "style": "paint"}]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    pd.DataFrame(rows).to_parquet(tmp_path / "p.parquet")
    pd.DataFrame(rows).to_csv(tmp_path / "p.csv", index=False)
    for suffix in ("jsonl", "parquet", "csv"):
        found = read_prompts(tmp_path / f"p.{suffix}")
        assert [record.prompt for record in found] == ["a cat", "a dog, running"]
        assert [dict(record.extra) for record in found] == [{"style": "photo"}, {"style": "paint"}]


def test_prompt_goes_before_caption_and_text(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"text": "t", "caption": "c", "prompt": "p\u2028q"}')
    (record,) = read_prompts(tmp_path / "p.jsonl")
    assert (record.prompt, dict(record.extra)) == ("p\u2028q", {"text": "t", "caption": "c"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "\n \n", "p.txt: holds no prompts"),
        ("p.txt", b"\xff\xfe", "p.txt: not UTF-8 text"),
        ("p.json", "[]", "holds no prompts"),
        ("p.jsn", "[]", "cannot read prompts from a file ending in '.jsn'(.|\n)*did you mean '.json'"),
        ("p.jsonl", '{"promt": "a"}', "line 1: no column 'prompt'(.|\n)*did you mean 'promt'"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ""}', "line 2, column 'prompt': found ''"),
        ("p.jsonl", '{"prompt": 3}', "line 1, column 'prompt': found 3"),
        ("p.jsonl", '{"prompt": ', "line 1: not JSON"),
        ("p.jsonl", '"a cat"', "line 1: found '\"a cat\"'"),
        ("p.csv", "prompt,style\na cat,big,photo\n", "line 2: 3 cells, the header has 2"),
        ("p.csv", 'prompt\n"a cat\na dog\n', "line 3: not CSV"),
        ("p.jsonl", '{"prompt": "\\ud83d"}', "line 1: not JSON"),
        ("p.csv", "style\nphoto\n", "line 2: no column 'prompt', 'prompts', 'caption', 'text'"),
        ("p.parquet", b"nonsense", "p.parquet: could not be read as a parquet file"),
    ],
)
def test_broken_prompt_files_are_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message):
        read_prompts(path)


def test_missing_prompt_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.txt: no such file"):
        read_prompts(tmp_path / "none.txt")


# --- generation ------------------------------------------------------------------------------------------------------


def test_a_folder_holds_every_prompt_under_every_seed(tmp_path: Path) -> None:
    records = run(tmp_path)
    assert [record.file_name for record in records[:3]] == [
        "images/00000-s0.png",
        "images/00000-s3.png",
        "images/00001-s0.png",
    ]
    loaded = load_generated(tmp_path)
    assert [record for record, _ in loaded] == records
    assert len(records) == 12
    for record, path in loaded:
        (expected,) = sample([record.prompt], [record.seed])
        assert Image.open(path).tobytes() == expected.tobytes()


def test_datasets_loads_the_folder(tmp_path: Path) -> None:
    run(tmp_path / "images_of_run")
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "images_of_run"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["prompt"][:2] == [PROMPTS[0], PROMPTS[0]]
    assert loaded["seed"][:2] == [0, 3]
    assert loaded[0]["image"].size == (8, 8)
    assert loaded[0]["settings"]["guidance_scale"] == 7.5
    first = json.loads((tmp_path / "images_of_run/metadata.jsonl").read_text().splitlines()[0])
    assert next(iter(first)) == "file_name"


def test_a_finished_folder_is_left_alone(tmp_path: Path) -> None:
    run(tmp_path)
    before = contents(tmp_path)
    counting = CountingSampler()
    assert run(tmp_path, sampler=counting) == [record for record, _ in load_generated(tmp_path)]
    assert counting.batches == []
    assert contents(tmp_path) == before


def test_images_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    run(tmp_path / "one", batch_size=1)
    run(tmp_path / "many", batch_size=5)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_a_run_that_was_interrupted_hands_over_the_same_batches(tmp_path: Path) -> None:
    whole, first, second = CountingSampler(), CountingSampler(limit=1), CountingSampler()
    run(tmp_path / "whole", sampler=whole)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", sampler=first)
    run(tmp_path / "cut", sampler=second)
    assert first.batches + second.batches == whole.batches
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_seeds_and_prompts_may_be_added(tmp_path: Path) -> None:
    run(tmp_path / "grown", prompts=PROMPTS[:4], seeds=[3])
    counting = CountingSampler()
    run(tmp_path / "grown", seeds=[3, 0], sampler=counting)
    assert sum(map(len, counting.batches)) == 8
    run(tmp_path / "whole")
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")


def _truncate_last_line(folder: Path) -> None:
    path = folder / "metadata.jsonl"
    path.write_bytes(path.read_bytes()[:-25])


def _lose_an_image(folder: Path) -> None:
    (folder / "images/00002-s3.png").unlink()


def _leave_temporary_files(folder: Path) -> None:
    (folder / "images/.00002-s3.png.77.tmp").write_bytes(b"half")
    (folder / ".metadata.jsonl.77.tmp").write_bytes(b"half")
    (folder / "images/00099-s3.png").write_bytes(b"an image whose row was never written")
    (folder / ".pending.json").write_text('["images/00099-s3.png"]')


@pytest.mark.parametrize("damage", [_truncate_last_line, _lose_an_image, _leave_temporary_files])
def test_damage_is_mended(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    run(tmp_path)
    before = contents(tmp_path)
    damage(tmp_path)
    run(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_hash": "m2"}, "images of model 'm1', this run is of 'm2'"),
        (
            {"settings": SETTINGS | {"guidance_scale": 5.0}},
            "made with guidance_scale = 7.5, this run has guidance_scale = 5.0",
        ),
        ({"settings": SETTINGS | {"eta": 1}}, "made with eta = 'unset', this run has eta = 1"),
        (
            {"prompts": ["another", *PROMPTS[1:]]},
            "00000-s0.png shows 'a picture of thing 0, “quoted”', this run has 'another'",
        ),
        ({"prompts": PROMPTS[:5]}, "holds images/00005-s0.png, which this run does not request"),
        ({"seeds": [0]}, "holds images/00000-s3.png, which this run does not request"),
    ],
)
def test_images_of_another_run_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    run(tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path / "run", **changes)
    assert "`overwrite`" in caught.value.remedy
    assert contents(tmp_path / "run") == before
    run(tmp_path / "run", overwrite=True, **changes)
    run(tmp_path / "fresh", **changes)
    assert contents(tmp_path / "run") == contents(tmp_path / "fresh")


def test_files_of_other_names_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/notes.txt").write_text("mine")
    run(tmp_path, overwrite=True)
    assert (tmp_path / "images/notes.txt").read_text() == "mine"


def test_a_sampler_that_leaves_images_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        run(tmp_path, sampler=lambda prompts, seeds: sample(prompts, seeds)[:-1])


def test_broken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no metadata.jsonl"):
        load_generated(tmp_path)
    run(tmp_path)
    (tmp_path / "images/00001-s0.png").unlink()
    with pytest.raises(UserError, match=r"images/00001-s0.png is missing"):
        load_generated(tmp_path)
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"file_name": "a.png"}\n' + path.read_text())
    with pytest.raises(UserError, match=r"line 1: not the record of a generated image: has no 'prompt'"):
        load_generated(tmp_path)
    path.write_text("")
    with pytest.raises(UserError, match="holds no images"):
        load_generated(tmp_path)


# --- kills -----------------------------------------------------------------------------------------------------------

KILL_PROMPTS = [f"{index}" for index in range(120)]


def run_for_kill(folder: Path) -> None:
    run(folder, prompts=KILL_PROMPTS, batch_size=3)


def test_killed_at_random_moments_the_folder_ends_the_same(tmp_path: Path) -> None:
    run_for_kill(tmp_path / "whole")
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += "from pathlib import Path; from test_generation import run_for_kill\n"
    code += f"print('ready', flush=True); run_for_kill(Path({str(tmp_path / 'killed')!r}))"
    moments, kills, left = random.Random(5), 0, list[int]()
    for _ in range(40):
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.15))
        child.send_signal(signal.SIGKILL)
        child.stdout.close()
        if child.wait() == -signal.SIGKILL and (tmp_path / "killed/metadata.jsonl").exists():
            kills += 1
            left.append(len((tmp_path / "killed/metadata.jsonl").read_bytes().splitlines()))
        if kills >= 5:
            break
    assert kills >= 5
    assert 0 < left[0] < 240, "the first kill must fall in the middle of the run"
    run_for_kill(tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


# --- noise -----------------------------------------------------------------------------------------------------------


def test_every_prompt_and_seed_starts_from_its_own_noise() -> None:
    seen: list[int] = []

    def sampler(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        seen.extend(seeds)
        return sample(prompts, seeds)

    own_noise(sampler)(["a cat", "a dog", "a cat"], [0, 0, 1])
    own_noise(sampler)(["a cat"], [0])
    assert len(set(seen[:3])) == 3
    assert seen[3] == seen[0]
    # The committed assets were made from these numbers: SHA-256 over the length-prefixed text, its first 60 bits.
    text = b"a cat/0"
    assert seen[0] == int(hashlib.sha256(len(text).to_bytes(8, "little") + text).hexdigest()[:15], 16)


def test_the_manifest_says_where_the_model_lay(tmp_path: Path, tiny_pipelines: dict[str, Path]) -> None:
    moved = Path(copytree(tiny_pipelines["sd"], tmp_path / "moved"))
    for model in (tiny_pipelines["sd"], moved):  # the same model goes on from another place, and the last one is named
        rows = generate(str(model), ["a cat"], output_dir=tmp_path / "images", num_inference_steps=1)
    (line,) = (tmp_path / "images" / "metadata.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["model_path"] == str(moved.resolve())
    assert "lora_path" not in row
    assert ImageRecord.from_json(line).to_json() == line
    assert len(rows) == 1
