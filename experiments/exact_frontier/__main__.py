"""Preference methods against the exact frontier of reward and divergence, in a world where both can be enumerated.

    python -m experiments.exact_frontier --seeds 0 1 2 --output runs/frontier          # everything, over an hour of one core
    python -m experiments.exact_frontier --seeds 0 --methods sft dpo best_of_n         # a part
    python -m experiments.exact_frontier --report_only --docs docs/frontier.md         # tables and figure from what is there

Every policy is a small transformer, trained by the package's own loop, steps and objectives. Its divergence from the
fine-tuned model and its expected reward are sums over all completions, and so is the best reward at that divergence (see
world.py). Results are written one file a seed, method and setting; what is there is not computed again, and a
training that was killed goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from diffusion_feedback.records import atomic_write

from .bench import Bench, timed
from .methods import METHODS
from .report import bars, draw, read_rows, table, write_docs
from .world import ExactWorld


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights, data, labels and rollouts")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--world", type=int, default=0, help="seed of source and reward")
    parser.add_argument("--output", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep_trainings", action="store_true", help="keep the folders of the trainings of done seeds")
    parser.add_argument("--report_only", action="store_true", help="no training: tables and figure of what is there")
    parser.add_argument("--docs", type=Path, help="Markdown page whose tables are replaced; the figure goes beside it")
    return parser.parse_args(arguments)


def run_seed(world: ExactWorld, seed: int, methods: Sequence[str], output: Path) -> None:
    """All settings of ``methods`` that have no result yet."""
    folder = output / f"seed-{seed}"
    bench = Bench(world, seed, folder / "trainings")
    for name in methods:
        method = METHODS[name]
        for setting in method.settings:
            file = folder / f"{name}-{setting:g}.json"
            if file.exists():
                continue
            begin = time.process_time()
            row = timed(method.run(bench, setting), begin)
            with atomic_write(file) as beside:
                beside.write_text(
                    json.dumps({"seed": seed, "method": name, "setting": setting, **row}, indent=1), "utf-8"
                )
            shown = {key: round(value, 4) for key, value in row.items() if isinstance(value, float)}
            print(f"{time.strftime('%H:%M:%S')} seed {seed} {name} {setting:g}: {shown}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the tables and draw the figure."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    world = ExactWorld.draw(options.world)
    if not options.report_only:
        for seed in options.seeds:
            run_seed(world, seed, options.methods, options.output)
            if not options.keep_trainings and set(options.methods) == set(METHODS):
                shutil.rmtree(options.output / f"seed-{seed}" / "trainings", ignore_errors=True)
    rows = read_rows(options.output, options.seeds)
    if not rows:
        raise SystemExit(f"{options.output}: no results; run without --report_only first")
    text = f"{table(rows)}\n\n{bars(rows)}\n"
    print(text)
    with atomic_write(options.output / "frontier.md") as file:
        file.write_text(text, "utf-8")
    draw(rows, world, options.output / "frontier.png")
    if options.docs is not None:
        write_docs(options.docs, rows)
        draw(rows, world, options.docs.with_suffix(".png"))


if __name__ == "__main__":
    main(sys.argv[1:])
