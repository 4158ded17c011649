"""Small image folders of the Shapes world, as the field writes them: PNG files and metadata.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from image_world import all_scenes, degrade, render


def write_folder(folder: Path, num_prompts: int = 4, per_prompt: int = 2, seed: int = 0) -> Path:
    """``per_prompt`` pictures of each of ``num_prompts`` captions; the later ones of a prompt are noisier."""
    scenes = all_scenes()
    (folder / "images").mkdir(parents=True)
    rows = []
    for prompt in range(num_prompts):
        scene = scenes[(37 * prompt + seed) % len(scenes)]
        for number in range(per_prompt):
            rng = np.random.default_rng([seed, prompt, number])
            picture = degrade(render(scene, rng), "clean" if number == 0 else "noisy", rng)
            name = f"images/{prompt:05d}-s{number}.png"
            picture.save(folder / name)
            rows.append({"file_name": name, "prompt": scene.caption, "seed": number})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
