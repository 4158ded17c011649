"""Writes the table of docs/memory.md: memory of runs of published models, counted without their weights.

    python -m tools.memory_table            about a quarter of an hour on one core
    python -m tools.memory_table --models sd15 --print

One pass is counted at one pair; what it takes grows in proportion with the pairs in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from diffusion_feedback.config.recipe import DataConfig, ModelConfig, Recipe, TrainingConfig
from diffusion_feedback.models.published import PUBLISHED
from diffusion_feedback.workflows.training.memory import gibibytes
from diffusion_feedback.workflows.training.published_memory import memory_need

PAGE = Path(__file__).resolve().parent.parent / "docs" / "memory.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
HEAD = (
    "| model | px | tuning | checkpointing | optimizer | weights | states | per pair | 1 pair | 4 pairs | 8 pairs |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)
# Tuning, whether activations are computed again, rank, optimizers.
FORMS = [
    ("lora", False, 16, ["adamw"]),
    ("lora", True, 16, ["adamw"]),
    ("lora", True, 128, ["adamw"]),
    ("full", True, 8, ["adamw", "adafactor"]),
]


def rows(model: str) -> Iterator[str]:
    """The rows of one model."""
    for tuning, checkpointing, rank, optimizers in FORMS:
        for optimizer in optimizers:
            recipe = _recipe(model, tuning, checkpointing, rank, optimizer)
            need = memory_need(recipe)
            sizes = [replace(need, one_pass=pairs * need.one_pass).total for pairs in (1, 4, 8)]
            form = f"lora, rank {rank}" if tuning == "lora" else "full"
            cells = [model, PUBLISHED[model].resolution, form, "on" if checkpointing else "off", optimizer]
            counts = [need.network + need.frozen, need.states, need.one_pass, *sizes]
            yield (
                "| "
                + " | ".join(map(str, [*cells, *(gibibytes(count).removesuffix(" GiB") for count in counts)]))
                + " |"
            )


def _recipe(model: str, tuning: str, checkpointing: bool, rank: int, optimizer: str) -> Recipe:
    is_lora = tuning == "lora"
    return Recipe(
        model=ModelConfig(
            pretrained_model_name_or_path=model,
            family=PUBLISHED[model].family,
            tuning="lora" if is_lora else "full",
            lora_rank=rank,
            dtype="bfloat16" if is_lora else "float32",
            gradient_checkpointing=checkpointing,
        ),
        data=DataConfig(train="pairs"),
        output_dir="run",
        optimizer={"name": optimizer},
        training=TrainingConfig(train_batch_size=1, mixed_precision="bf16"),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Count, and write or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED))
    parser.add_argument("--print", action="store_true", help="print the table, and leave the page as it is")
    given = parser.parse_args(argv)
    table = HEAD
    for model in given.models:
        for row in rows(model):
            print(row, flush=True)
            table += f"\n{row}"
    if not given.print:
        before, rest = PAGE.read_text("utf-8").split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}", "utf-8")


if __name__ == "__main__":
    main()
