"""Writes the table of docs/memory.md: memory of runs of published models, counted without their weights.

    python -m tools.memory_table            about a quarter of an hour on one core
    python -m tools.memory_table --models sd15 --print

Passes are counted at 1, 4 and 8 pairs; what one more pair takes is the difference between the last two, for one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from diffusion_feedback.catalog import state_bytes
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
PAIRS = (1, 4, 8)
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
        needs = [memory_need(_recipe(model, tuning, checkpointing, rank, pairs)) for pairs in PAIRS]
        per_pair = (needs[-1].one_pass - needs[-2].one_pass) // (PAIRS[-1] - PAIRS[-2])
        for optimizer in optimizers:
            # An optimizer changes its own states alone, so passes are counted once for all of them.
            states = needs[0].states * (4 + state_bytes(optimizer)) // (4 + state_bytes("adamw"))
            sizes = [replace(need, states=int(states)).total for need in needs]
            form = f"lora, rank {rank}" if tuning == "lora" else "full"
            cells = [model, PUBLISHED[model].resolution, form, "on" if checkpointing else "off", optimizer]
            counts = [needs[0].network + needs[0].frozen, states, per_pair, *sizes]
            yield (
                "| "
                + " | ".join(map(str, [*cells, *(gibibytes(count).removesuffix(" GiB") for count in counts)]))
                + " |"
            )


def _recipe(model: str, tuning: str, checkpointing: bool, rank: int, pairs: int) -> Recipe:
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
        optimizer={"name": "adamw"},
        training=TrainingConfig(train_batch_size=pairs, mixed_precision="bf16"),
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
