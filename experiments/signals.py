"""SIGTERM at ten random moments of a run: no finished step is lost, and the weights at its end are those of a run without a signal.

    python -m experiments.signals --work runs/signals

trains a LoRA on the embedded pairs twice, once without a break, and once by processes that are each requested to stop at a random
moment, each going on from the checkpoint of the one before. Fails where the checkpoint of the last finished step is not there, or
where weights or metrics differ in one bit.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from diffusion_feedback.runs import checkpoint_steps
from diffusion_feedback.training.checkpoints import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
CLOCK = ("time", "seconds")  # of a line of metrics
SETTINGS = (
    "--training.max_train_steps", "40", "--training.checkpointing_steps", "1000", "--training.train_batch_size", "2",
    "--training.gradient_accumulation_steps", "1", "--training.ema_decay", "0.9", "--data.max_train_pairs", "48",
    "--data.max_validation_pairs", "8", "--validation.steps", "10", "--validation.num_prompts", "0",
    "--validation.prompts", "[]", "--validation.keep_best", "error/chosen",
)  # fmt: skip


def command(folder: Path, cache: Path) -> list[str]:
    """``dfb train`` into ``folder``."""
    recipe = str(ROOT / "configs" / "shapes_dpo_lora.yaml")
    where = ["--output_dir", str(folder), "--data.cache_dir", str(cache)]
    return [sys.executable, "-m", "diffusion_feedback", "train", "--config", recipe, *SETTINGS, *where, "--resume"]


def rows(folder: Path) -> list[dict[str, object]]:
    """The lines of metrics without what a clock says."""
    path = folder / "metrics.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    parsed = [json.loads(line) for line in lines if line.endswith("}")]
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in parsed]


def finished_steps(folder: Path) -> int:
    """How many updates the metrics tell of."""
    return sum("grad_norm" in row for row in rows(folder))


def interrupt(folder: Path, cache: Path, moments: random.Random) -> str:
    """One process that is stopped at a random moment; says what came of it. Raises AssertionError where a step is lost."""
    before, later, delay = finished_steps(folder), moments.randint(1, 3), moments.uniform(0, 0.5)
    process = subprocess.Popen(command(folder, cache), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)
    while process.poll() is None and finished_steps(folder) < before + later:
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    output = process.communicate()[0].decode(errors="replace")
    done, kept = finished_steps(folder), max(checkpoint_steps(folder), default=0)
    assert process.returncode == 128 + signal.SIGTERM, output[-2000:]
    assert kept == done, f"{done} steps are finished, the newest checkpoint is of {kept}"
    return f"exit {process.returncode}; step {done} was the last to finish, checkpoint of step {kept} is there"


def main() -> None:
    """Train without a signal and with ten, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a new folder")
    parser.add_argument("--signals", type=int, default=10, help="how many (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    given = parser.parse_args()
    work = given.work.resolve()
    whole, broken, cache = (work / name for name in ("whole", "broken", "cache"))
    subprocess.run(command(whole, cache), check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    moments = random.Random(given.seed)
    for number in range(given.signals):
        print(f"signal {number + 1:2}: {interrupt(broken, cache, moments)}", flush=True)
    subprocess.run(command(broken, cache), check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    states = [load_checkpoint(checkpoint_steps(folder)[40])[1] for folder in (whole, broken)]
    tensors = [{(name, key): value for name, state in each.items() for key, value in state.items()} for each in states]
    assert tensors[0].keys() == tensors[1].keys()
    differing = [key for key, value in tensors[0].items() if not torch.equal(value, tensors[1][key])]
    print(f"weights: {len(differing)} of {len(tensors[0])} tensors differ from those of the run without a signal")
    print(f"metrics: {len(rows(whole))} lines, {'equal' if rows(whole) == rows(broken) else 'NOT EQUAL'}")
    best = [json.loads((folder / "best.json").read_text("utf-8")) for folder in (whole, broken)]
    print(f"best step: {best[0]['step']} and {best[1]['step']}")
    if differing or rows(whole) != rows(broken) or best[0] != best[1]:
        raise SystemExit("the runs differ")


if __name__ == "__main__":
    main()
