"""How fast a DPO step on texts is, and what memory it takes: against trl's DPOTrainer, and with shared prompts.

    python -m benchmarks.text                                  # on the CPU, about ten minutes
    python -m benchmarks.text --device cuda --pairs 16 --layers 12 --width 768
    python -m benchmarks.text --steps 4 --repeats 1            # a quick look

The model is like GPT-2, with random weights; texts are random words. Both sides train all weights in float32 with fused
AdamW, clipped gradients and no gradient checkpointing, on the same batches in the same order, padded alike, and both
read their usual metrics at every step. After each step of trl's, in the same process, one of ours is taken, so that
whatever else the machine does slows both.

  step              policy and reference in every step
  cached            the reference's log-probabilities are computed before (not timed), on both sides
  shared prompts    our step alone, on prompts four times as long as completions: prompts shared, and not

Peak memory is that of a process that runs one way alone. Where tokens or losses of the two sides differ, nothing is
reported and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from diffusion_feedback.records import atomic_write

from .text_ways import Setting, memory_of, now, products, shared_and_apart, side_by_side

WARM_UP = 2
ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-4
# How many times as fast as the other way ours has to be.
BARS = {"step": 2.0, "cached": 1.7, "shared prompts": 1.3}
WAYS = ("trl", "ours", "trl cached", "ours cached", "ours long", "ours long shared")
SMALLER = (("ours", "trl"), ("ours cached", "trl cached"), ("ours long shared", "ours long"))
MB = 1e6


def timing(name: str, ours: Any, theirs: Any) -> dict[str, Any]:
    """Seconds of each step of both ways after the warm-up. Raises SystemExit where their losses differ."""
    gap = max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True))
    if not gap <= TOLERANCE:
        sys.exit(f"{name}: the losses differ by {gap:.2g}: {ours.losses[:5]} and {theirs.losses[:5]}")
    clocks = {"ours": ours.clock, "theirs": theirs.clock}
    seconds = {way: {"wall": clock.wall[WARM_UP:], "cpu": clock.cpu[WARM_UP:]} for way, clock in clocks.items()}
    return {"seconds": seconds, "loss_gap": gap, "last_loss": ours.losses[-1]}


def joined(runs: Sequence[Mapping[str, Any]], pairs: int) -> dict[str, Any]:
    """What the repeats say together: medians over all steps, and over the ratios of steps side by side."""
    joint: dict[str, Any] = {"loss_gap": max(run["loss_gap"] for run in runs), "last_loss": runs[0]["last_loss"]}
    for kind in ("wall", "cpu"):
        ours, theirs = ([second for run in runs for second in run["seconds"][way][kind]] for way in ("ours", "theirs"))
        ratios = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
        joint[kind] = {
            "ours": statistics.median(ours),
            "theirs": statistics.median(theirs),
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }
    joint["pairs_per_second"] = {way: pairs / joint["wall"][way] for way in ("ours", "theirs")}
    return joint


def peaks(setting: Setting, long: Setting, threads: int) -> dict[str, dict[str, int]]:
    """Peak memory of every way, each in a process of its own."""
    memory = {}
    for way in WAYS:
        arguments = {"way": way, "setting": asdict(replace(long if "long" in way else setting, steps=4))}
        call = [sys.executable, "-m", "benchmarks.text", "--alone", json.dumps(arguments), "--threads", str(threads)]
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{way}: {done.stderr[-2000:]}")
        memory[way] = json.loads(done.stdout.splitlines()[-1])
        print(f"{way}: peak {memory[way]['peak'] / MB:.0f} MB", file=sys.stderr)
    return memory


def product_rate(setting: Setting) -> float:
    """Floating point operations in a second (of processor time, on a CPU) of the head's matrix product."""
    clock = time.process_time if setting.device == "cpu" else lambda: now(setting.device)
    rows = 2 * setting.pairs * setting.completion
    left = torch.randn(rows, setting.width, device=setting.device)
    right = torch.randn(setting.vocabulary, setting.width, device=setting.device)
    best = float("inf")
    for _ in range(4):
        start = clock()
        left @ right.t()
        best = min(best, clock() - start)
    return 2 * rows * setting.width * setting.vocabulary / best


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All three comparisons, and the memory of every way."""
    steps = given.steps + WARM_UP
    setting = Setting(
        given.layers, given.width, given.vocabulary, given.prompt, given.completion, given.pairs, steps, given.device
    )
    long = replace(setting, prompt=4 * given.completion)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in BARS}
    least_seconds: dict[str, float] = {}
    rate = product_rate(setting)
    for repeat in range(given.repeats):
        for name in BARS:
            if name == "shared prompts":
                ours, theirs = shared_and_apart(long, cached=False)
            else:
                ours, theirs = side_by_side(setting, cached=name == "cached")
                batches = [ours.batch(number) for number in range(WARM_UP, steps)]
                least_seconds[name] = products(setting, batches, cached=name == "cached", everywhere=False) / rate
            runs[name].append(timing(name, ours, theirs))
            seconds = {way: statistics.median(s["wall"]) for way, s in runs[name][-1]["seconds"].items()}
            print(f"repeat {repeat + 1}: {name}: {seconds['ours']:.3f} s, {seconds['theirs']:.3f} s", file=sys.stderr)
    import trl

    is_cuda = given.device.startswith("cuda")
    return {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()},
        "machine": torch.cuda.get_device_name() if is_cuda else f"{torch.get_num_threads()} threads",
        "versions": {"trl": trl.__version__, "torch": torch.__version__},
        "speed": {name: joined(each, given.pairs) for name, each in runs.items()},
        "least_seconds": least_seconds,
        "memory": {} if given.speed_only else peaks(setting, long, torch.get_num_threads()),
    }


def table(measured: Mapping[str, Any]) -> str:
    """What was measured, as Markdown."""
    given, versions = measured["settings"], measured["versions"]
    lines = [
        f"GPT-2-like model of {given['layers']} layers x {given['width']}, vocabulary {given['vocabulary']}, float32 on"
        f" {given['device']} ({measured['machine']}); {given['pairs']} pairs per step, prompts of about {given['prompt']}"
        f" tokens, completions of about {given['completion']}; trl {versions['trl']}, torch {versions['torch']};"
        f" medians over {given['repeats']} x {given['steps']} steps, taken in turns.\n",
        "| DPO step | ours, pairs/s | trl, pairs/s | times as fast | in processor time | bar |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, speed in measured["speed"].items():
        both = speed["pairs_per_second"]
        what = "shared prompts (4 x completion), against our own unshared" if name == "shared prompts" else name
        lines.append(
            f"| {what} | {both['ours']:.2f} | {both['theirs']:.2f} | {speed['wall']['ratio']:.2f}"
            f" | {speed['cpu']['ratio']:.2f} | {BARS[name]} |"
        )
    if measured["memory"]:
        lines += ["\n| peak memory | MB | MB beyond libraries and model |", "| --- | --- | --- |"]
    for way, memory in measured["memory"].items():
        lines.append(f"| {way} | {memory['peak'] / MB:.0f} | {(memory['peak'] - memory['before']) / MB:.0f} |")
    gap = max(speed["loss_gap"] for speed in measured["speed"].values())
    lines.append(f"\nLargest difference of a step's loss between two ways: {gap:.1e}.")
    for name, floor in measured["least_seconds"].items():
        seconds = measured["speed"][name]["cpu" if given["device"] == "cpu" else "wall"]["ours"]
        what = "processor time" if given["device"] == "cpu" else "time"
        lines.append(f"{name}: matrix products alone take {floor:.3f} s, {floor / seconds:.0%} of our step's {what}.")
    short = [name for name, bar in BARS.items() if measured["speed"][name]["wall"]["ratio"] < bar]
    smaller = SMALLER if measured["memory"] else ()
    over = [ours for ours, other in smaller if measured["memory"][ours]["peak"] >= measured["memory"][other]["peak"]]
    lines.append(f"Below the bar: {', '.join([*short, *(f'memory of {way}' for way in over)]) or 'none'}.")
    return "\n".join(lines)


def alone(arguments: Mapping[str, Any]) -> None:
    """Run one way and print its memory."""
    setting = Setting(**arguments["setting"])
    print(json.dumps(memory_of(arguments["way"].replace(" long", ""), setting)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, print the table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cpu")
    add("--steps", type=int, default=10, help=f"timed steps of each repeat, after {WARM_UP} to warm up")
    add("--repeats", type=int, default=3)
    add("--pairs", type=int, default=4, help="pairs of a step")
    add("--threads", type=int, help="torch's threads (default: torch's own choice)")
    add("--layers", type=int, default=4)
    add("--width", type=int, default=256)
    add("--vocabulary", type=int, default=50257)
    add("--prompt", type=int, default=60, help="tokens")
    add("--completion", type=int, default=40, help="tokens")
    add("--speed_only", action="store_true", help="leave out the memory of each way, which takes a process each")
    add("--output", type=Path, help="write the numbers here as JSON, and the table beside them as Markdown")
    add("--alone", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.alone:
        alone(json.loads(given.alone))
        return
    del given.alone
    measured = measure(given)
    if given.output:
        for path, text in (
            (given.output, json.dumps(measured, indent=2)),
            (given.output.with_suffix(".md"), table(measured)),
        ):
            with atomic_write(path) as temporary:
                temporary.write_text(text + "\n", "utf-8")
    print(table(measured))


if __name__ == "__main__":
    main()
