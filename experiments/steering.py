"""Runs that are steered, measured on the embedded models: how far each ends from the run that was never touched.

    python -m experiments.steering                    # images and texts, a few minutes on two CPU cores
    python -m experiments.steering --steps 4 --only texts

Of images (a small Stable Diffusion) and texts (a small language model), by dfb commands alone:

    whole         20 steps of 16 pairs, as 2 x 8 accumulated, constant learning rate
    lengthened    10 steps, then --resume with 20
    as 4 x 4      the same 10 steps, then --resume with 4 x 4
    two processes the same 10 steps, then --resume as two processes, 2 x 4 each

The first must be equal to the last bit. The others add the same terms in another order: the largest difference of a
weight is printed beside the largest change of a weight in the steps that were steered, and must be below a hundredth of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from diffusion_feedback.training.checkpoints import load_checkpoint

RECIPES = {"images": "configs/shapes_dpo_lora.yaml", "texts": "configs/captions_dpo_lora.yaml"}
COMMON = {
    "training.lr_scheduler": "constant",
    "training.lr_warmup_steps": "0",
    "training.checkpointing_steps": "1000000",
    "training.train_batch_size": "2",
    "training.gradient_accumulation_steps": "8",
    "data.validation": "null",
    "data.max_validation_pairs": "null",
    "validation.steps": "0",
    "validation.num_prompts": "0",
}
TOLERANCE = 0.01  # of the largest change of a weight
CUTS = {
    "lengthened": ({}, 1),
    "as 4 x 4": ({"training.train_batch_size": "4", "training.gradient_accumulation_steps": "4"}, 1),
    "two processes": ({"training.gradient_accumulation_steps": "4"}, 2),
}


def train(recipe: str, folder: Path, settings: Mapping[str, str], *, processes: int = 1, resume: bool = False) -> None:
    """``dfb train`` by ``recipe`` in ``folder``. Raises SystemExit where it fails."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "diffusion_feedback", "train"]
    command += ["--config", recipe, "--output_dir", str(folder), *(["--resume"] if resume else [])]
    for key, value in settings.items():
        command += [f"--{key}", value]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    for line in done.stdout.splitlines():
        if line.startswith(("changed ", "learning rate ")):
            print(f"    {line}", flush=True)


def weights(folder: Path) -> dict[str, Tensor]:
    """The trained weights of the newest checkpoint in ``folder``."""
    newest = max((folder / "checkpoints").glob("step-*"))
    return load_checkpoint(newest)[1]["policy"]


def largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest absolute difference of a weight. Raises ValueError for other names."""
    if one.keys() != other.keys():
        raise ValueError("the runs have trained other weights")
    return max(float((value.double() - other[name].double()).abs().max()) for name, value in one.items())


def measure(kind: str, folder: Path, steps: int) -> bool:
    """Run all ways on ``kind``, and print how far each ends from the whole run; returns whether all are near enough."""
    recipe, half, full = RECIPES[kind], {"training.max_train_steps": str(steps)}, str(2 * steps)
    cache = {"data.cache_dir": str(folder / "cache")}
    train(recipe, folder / "whole", {**COMMON, **cache, "training.max_train_steps": full})
    train(recipe, folder / "half", {**COMMON, **cache, **half})
    whole, change = weights(folder / "whole"), largest_difference(weights(folder / "half"), weights(folder / "whole"))
    is_near = True
    for name, (cut, processes) in CUTS.items():
        place = folder / name.replace(" ", "_")
        shutil.copytree(folder / "half", place)
        settings = {**COMMON, **cache, **cut, "training.max_train_steps": full}
        print(f"{kind}, {name}:", flush=True)
        train(recipe, place, settings, processes=processes, resume=True)
        difference = largest_difference(weights(place), whole)
        limit = TOLERANCE * change if cut else 0.0
        is_near &= difference <= limit
        said = "equal to the last bit" if difference == 0 else f"{difference / change:.1e} of the largest change"
        print(f"    largest difference {difference:.3g}, change {change:.3g}: {said} (allowed {limit:.3g})", flush=True)
    return is_near


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is requested; 1 where a run ends too far from the whole one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--steps", type=int, default=10, help="steps before a run is steered, and after")
    parser.add_argument("--only", choices=list(RECIPES))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/steering"))
    given = parser.parse_args(argv)
    if given.output_dir.exists():
        raise SystemExit(f"{given.output_dir}: is there already; remove it, or give another --output_dir")
    kinds = [given.only] if given.only else list(RECIPES)
    near = [measure(kind, given.output_dir / kind, given.steps) for kind in kinds]
    return 0 if all(near) else 1


if __name__ == "__main__":
    sys.exit(main())
