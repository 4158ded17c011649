"""Benchmark runs on disk with real pictures and scores made up here, written as the command writes them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from sample_report import picture

from diffusion_feedback.catalog import resolve
from diffusion_feedback.evaluation.benchmarks.benchmark import prompts_hash
from diffusion_feedback.evaluation.benchmarks.run import make_run
from diffusion_feedback.records import PromptRecord, ScoreRecord
from diffusion_feedback.workflows.benchmark_folder import RUNS, write_run

RECIPES = {
    "hpsv2": "hpsv2.1/letterbox-224/fp32/0123456789ab",
    "pickscore": "pickscore.1/crop-224/fp32/ba9876543210",
    "shapes": "shapes.1/box-64/fp32",
}


def write_folder(
    folder: Path,
    prompts: Sequence[PromptRecord],
    scores: Mapping[str, Sequence[float | None]],
    *,
    benchmark: str = "pickapic",
    side: int = 16,
    **settings: object,
) -> Path:
    """Write a run of ``benchmark``; ``scores`` are raw values by scorer and prompt, None where the image is missing."""
    pictures = folder.with_name(f"{folder.name}-pictures")
    pictures.mkdir(parents=True, exist_ok=True)
    names: list[tuple[str, ...]] = []
    seed = random.Random(folder.name).randrange(1000)
    for index in range(len(prompts)):
        is_there = all(rows[index] is not None for rows in scores.values())
        names.append((f"{index:05d}.png",) if is_there else ())
        picture(seed + index, side).save(pictures / f"{index:05d}.png")
    own = {
        "benchmark": benchmark,
        "prompts": "prompts.txt",
        "prompts_hash": prompts_hash(prompts),
        "num_prompts": len(prompts),
        "short": [],
        "allow_missing": not all(names),
        "images": str(pictures),
    }
    records = [
        ScoreRecord(name, f"key of {name}", prompt.prompt, scorer, RECIPES[scorer], value, value, 100.0)
        for scorer, rows in scores.items()
        for prompt, images, value in zip(prompts, names, rows, strict=True)
        for name in images
        if value is not None
    ]
    RUNS.open(folder, own | settings, overwrite=True)
    run = make_run(folder, resolve("benchmark", benchmark)(), own | settings, prompts, names, records)
    write_run(run, records, None)
    return folder
