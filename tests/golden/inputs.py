"""Fixed inputs of the recorded runs: embedded assets, tiny models, and files cut from both.

Nothing here comes from the package, whose modules may move, nor from the helpers that write other tests' recipes.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import tiny_models
import tiny_ranker
import yaml

ASSETS = Path(__file__).resolve().parents[2] / "assets"
LANGUAGE_MODEL = ASSETS / "captions-lm"
SCORER = ASSETS / "shapes-scorer"
REWARDS = '''
def of_length(prompts, completions):
    """High for many different letters, low for long texts."""
    return [len(set(text)) - 0.1 * len(text) for text in completions]
'''


def read_jsonl(path: Path, count: int | None = None) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, count)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_images(folder: Path, pairs: list[dict[str, Any]]) -> None:
    """Both images of every pair as files, with the prompts in ``metadata.jsonl``."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, pair in enumerate(pairs):
        for side in (0, 1):
            name = f"images/{number:03d}-{side}.img"
            suffix = ".png" if pair[f"jpg_{side}"].startswith(b"\x89PNG") else ".jpg"
            name = name.replace(".img", suffix)
            (folder / name).write_bytes(pair[f"jpg_{side}"])
            rows.append({"file_name": name, "prompt": pair["caption"]})
    write_jsonl(folder / "metadata.jsonl", rows)


def write_inputs(folder: Path) -> Path:
    """Write everything that the runs read, beside the assets, to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_models.save_sd(folder / "sd")
    tiny_models.save_sdxl(folder / "sdxl")
    tiny_ranker.save_clip(folder / "clip")
    (folder / "rewards.py").write_text(REWARDS)
    table = pq.read_table(ASSETS / "pairs" / "validation-00000.parquet")
    pq.write_table(table.slice(0, 24), folder / "train.parquet")
    pq.write_table(table.slice(600, 8), folder / "validation.parquet")
    pq.write_table(table.slice(0, 40), folder / "labelled.parquet")
    _write_images(folder / "images", table.slice(40, 8).to_pylist())
    captions = list(dict.fromkeys(row["caption"] for row in table.slice(40, 8).to_pylist()))
    (folder / "captions.txt").write_text("\n".join(captions) + "\n")
    (folder / "prompts.txt").write_text("a cat\na dog\na tree\n")
    (folder / "heldout.txt").write_text("a bird\na house\n")
    for name, count in (("train", 32), ("validation", 8)):
        rows = read_jsonl(ASSETS / "captions" / f"{name}.jsonl", 3 * count)
        write_jsonl(folder / f"{name}.jsonl", rows[:count])
        write_jsonl(folder / f"{name}-prompts.jsonl", [{"prompt": row["prompt"]} for row in rows])
        walks = [
            {"prompt": row["prompt"], "completion": row[side], "reward": float(side == "chosen")}
            for row in rows[:count] for side in ("chosen", "rejected")
        ]  # fmt: skip
        write_jsonl(folder / f"{name}-trajectories.jsonl", walks)
    return folder


def write_recipe(path: Path, *parts: dict[str, Any]) -> Path:
    """The sections of all ``parts``, the later over the earlier key by key, as a recipe file."""
    recipe: dict[str, Any] = {}
    for part in parts:
        for section, values in part.items():
            recipe[section] = {**recipe.get(section, {}), **values} if isinstance(values, dict) else values
    path.write_text(yaml.safe_dump(recipe))
    return path
