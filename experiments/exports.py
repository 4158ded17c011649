"""Every form that results are exported in, of a run on the embedded model: how exactly each is read back.

    python -m experiments.exports --output_dir runs/exports            # trains an image LoRA and a text adapter first
    python -m experiments.exports --run RUN --output_dir runs/exports  # of a run that is there

Prints a line for each form and precision: relative error of the model's output as the target reads the files (the largest
difference, as a share of the largest value), bytes, and what the card calls its reader. Ends with an error where a form in
float32 is above 1e-5.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import diffusion_feedback as dfb
from diffusion_feedback.catalog.formats import EXPORT_FORMATS

STEPS = 6
# Alpha is not the rank, so that a reader that lost it would be seen; convolutions have names of their own.
LORA = {
    "model.lora_rank": 4,
    "model.lora_alpha": 12.0,
    "model.lora_targets": ["attention", "feed_forward", "convolutions"],
}
FAST = {"training.max_train_steps": STEPS, "training.learning_rate": 1e-3, "validation.num_prompts": 0}


def trained(folder: Path) -> Iterator[Path]:
    """An image LoRA run, a checkpoint of it, and a text adapter, of a few steps each."""
    recipe = dfb.load_recipe("configs/shapes_dpo_lora.yaml", {**LORA, **FAST, "output_dir": str(folder / "images")})
    yield dfb.train(recipe).path
    yield sorted((folder / "images" / "checkpoints").iterdir())[-1]
    recipe = dfb.load_recipe("configs/captions_dpo_lora.yaml", {**FAST, "output_dir": str(folder / "texts")})
    yield dfb.train(recipe).path


def main() -> None:
    """Export and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run; by default short ones are trained")
    parser.add_argument("--output_dir", type=Path, required=True)
    given = parser.parse_args()
    print(f"{'result':<24}{'form':<13}{'dtype':<10}{'error':>9}{'MiB':>8}  files")
    for run in [given.run] if given.run else trained(given.output_dir / "runs"):
        for name in EXPORT_FORMATS:
            for dtype in ("float32", "float16", "bfloat16"):
                place = given.output_dir / f"{run.name}-{name}-{dtype}"
                try:
                    done = dfb.export(run, place, format=name, dtype=dtype, overwrite=True)
                except dfb.UserError as refused:
                    print(f"{run.name:<24}{name:<13}refused: {str(refused).splitlines()[0]}")
                    break
                size = sum(done.files.values()) / 2**20
                print(
                    f"{run.name:<24}{name:<13}{dtype:<10}{done.error:>9.1e}{size:>8.2f}  {min(done.files, key=len)}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
