"""The whole circle of AI feedback on the embedded world, beside people's labels and beside judges that know too little.

    python -m experiments.ai_feedback                              # three seeds a judge, an hour or two on two CPU cores
    python -m experiments.ai_feedback --runs ai-0 human-0 few-0    # one

    base model -> dfb generate -> dfb label (four judges) -> dfb train -> dfb benchmark (exact verifier) -> dfb report

The judges are the embedded scorer (ai), the simulated annotator behind assets/pairs (human), a scorer trained on too few
pairs (few), and one trained on the same few pairs from random weights (blank). Every arrow is a dfb command; its output goes to OUTPUT_DIR/logs, and what is done is not done again, so
a killed run goes on. The result is OUTPUT_DIR/report.html and results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

from diffusion_feedback.records import atomic_write

JUDGES = ("ai", "human", "few", "blank")
SAMPLING = ["--num_inference_steps", "15", "--guidance_scale", "2.0"]
MODEL, SCORER, HUMAN_PAIRS = "assets/shapes-sd", "assets/shapes-scorer", "assets/pairs/train-00000.parquet"
FEW_PAIRS = 24  # what the third judge is trained on; the embedded scorer has seen 2,352
CANDIDATES = 14  # images a prompt, as many as the human pairs were made of


@dataclass(frozen=True)
class Circle:
    """The commands of one circle; ``done`` marks stand in OUTPUT_DIR/done."""

    folder: Path
    threads: int

    def run(self, name: str, *command: str) -> None:
        """Run ``dfb command`` unless it is done, with its output in the logs. Raises SystemExit where it fails."""
        mark = self.folder / "done" / name
        if mark.exists():
            return
        log = self.folder / "logs" / f"{name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"{time.strftime('%H:%M:%S')} {name}: dfb {' '.join(command)}", flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        with log.open("a", encoding="utf-8") as file:
            code = subprocess.run(
                [sys.executable, "-m", "diffusion_feedback", *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
            ).returncode
        if code:
            raise SystemExit(f"{name} failed ({code}); see {log}")
        mark.parent.mkdir(exist_ok=True)
        mark.touch()

    def scorers(self, judges: Sequence[str]) -> list[str]:
        """A benchmark is judged by the verifier, by the embedded scorer, and by the judge that made the labels."""
        own = [f"{judge}:pickscore={self.folder}/{judge}-scorer" for judge in judges if judge in ("few", "blank")]
        return ["--scorer", "shapes", f"ai:pickscore={SCORER}", *own]

    def prepare(self, jobs: int) -> None:
        """The candidates, the third judge, the labels, and the base model's images."""
        folder = self.folder
        few = ["--config", "configs/shapes_scorer.yaml", "--data.max_train_pairs", str(FEW_PAIRS)]
        few += ["--training.train_batch_size", str(FEW_PAIRS)]
        seeds = [str(seed) for seed in range(CANDIDATES)]
        generate = ["generate", MODEL, "--prompts", "assets/prompts/train.txt", "--seeds", *seeds, *SAMPLING]
        first = [
            (
                "candidates",
                [*generate, "--noise", "prompt", "--batch_size", "32", "--output_dir", f"{folder}/candidates"],
            ),
            ("few-scorer", ["train", *few, "--output_dir", f"{folder}/few-scorer"]),
        ]
        blank_clip(folder / "blank-clip")
        blank = ["--model.pretrained_model_name_or_path", f"{folder}/blank-clip"]
        first.append(("blank-scorer", ["train", *few, *blank, "--output_dir", f"{folder}/blank-scorer"]))
        self.run_all(first, jobs)
        label = ["label", f"{folder}/candidates", "--rule", "opposite", "--cache_dir", f"{folder}/cache"]
        self.run("label-ai", *label, "--scorer", f"pickscore={SCORER}", "--output", f"{folder}/ai.parquet")
        for judge in ("few", "blank"):
            own = ["--scorer", f"pickscore={folder}/{judge}-scorer", "--output", f"{folder}/{judge}.parquet"]
            self.run(f"label-{judge}", *label, *own)
        self.benchmark("base", JUDGES)

    def pairs(self, judge: str) -> str:
        """The training pairs that ``judge`` has labelled."""
        return HUMAN_PAIRS if judge == "human" else str(self.folder / f"{judge}.parquet")

    def tune(self, run: str) -> None:
        """Diffusion-DPO on the judge's pairs under the seed of ``run`` (JUDGE-SEED), and its benchmark."""
        judge, _, seed = run.partition("-")
        own = ["--data.train", self.pairs(judge), "--training.seed", seed, "--output_dir", f"{self.folder}/{run}"]
        own += ["--data.cache_dir", f"{self.folder}/cache"]
        started = (self.folder / run / "recipe.yaml").exists()
        resume = ["--resume"] if started else []
        self.run(f"train-{run}", "train", "--config", "configs/shapes_ai_dpo_lora.yaml", *own, *resume)
        self.benchmark(run, [judge], "--lora", f"{self.folder}/{run}", "--baseline", f"{self.folder}/benchmark/base")

    def benchmark(self, run: str, judges: Sequence[str], *more: str) -> None:
        """The held-out prompts under the model of ``run``."""
        command = ["benchmark", "shapes", "--model", MODEL, *SAMPLING, "--generation_batch_size", "32"]
        command += [*self.scorers(judges), *more]
        command += ["--cache_dir", f"{self.folder}/cache", "--output_dir", f"{self.folder}/benchmark/{run}"]
        self.run(f"benchmark-{run}", *command)

    def run_all(self, commands: Sequence[tuple[str, list[str]]], jobs: int) -> None:
        """Run several commands, ``jobs`` at a time."""
        with ThreadPoolExecutor(jobs) as pool:
            for _ in pool.map(lambda named: self.run(named[0], *named[1]), commands):
                pass


def blank_clip(folder: Path) -> None:
    """Write the embedded CLIP model with random weights: a judge that starts from nothing."""
    if (folder / "model.safetensors").exists():
        return
    shutil.copytree("assets/shapes-clip", folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    CLIPModel(CLIPConfig.from_pretrained(folder)).save_pretrained(folder)


@dataclass(frozen=True)
class Outcome:
    """What one run's benchmark says: win rates against the base, [value, low, high], by scorer."""

    run: str
    win_rates: dict[str, list[float]]

    @classmethod
    def read(cls, folder: Path, run: str) -> Outcome:
        """From the run's results.json."""
        scorers = json.loads((folder / "benchmark" / run / "results.json").read_text("utf-8"))["baseline"]["scorers"]
        rates = {name: comparison["overall"]["win_rate"] for name, comparison in scorers.items()}
        return cls(run, {name: [rate["win_rate"], rate["low"], rate["high"]] for name, rate in rates.items()})

    def __str__(self) -> str:
        names = {"shapes": "verified"}
        cells = [
            f"{names.get(name, name)} {value:.3f} ({low:.3f} to {high:.3f})"
            for name, (value, low, high) in self.win_rates.items()
        ]
        return f"{self.run:<9} " + "   ".join(cells)


def main() -> None:
    """Parse arguments, go round the circle for every judge and seed, and join the benchmarks into one report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [f"{judge}-{seed}" for judge in JUDGES for seed in range(3)]
    parser.add_argument("--runs", nargs="+", default=every, metavar="JUDGE-SEED", help=f"default: {' '.join(every)}")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/ai_feedback"))
    parser.add_argument("--jobs", type=int, default=2, help="commands at a time, each with one thread a core it gets")
    arguments = parser.parse_args()
    folder = arguments.output_dir
    start = time.monotonic()
    circle = Circle(folder, max(1, (os.cpu_count() or 1) // arguments.jobs))
    circle.prepare(arguments.jobs)
    if unknown := [run for run in arguments.runs if not re.fullmatch(rf"({'|'.join(JUDGES)})-\d+", run)]:
        parser.error(f"--runs: {unknown[0]!r} is not JUDGE-SEED with a judge of {', '.join(JUDGES)}")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for _ in pool.map(circle.tune, arguments.runs):
            pass
    outcomes = [Outcome.read(folder, run) for run in arguments.runs]
    with atomic_write(folder / "results.json") as file:
        file.write_text(json.dumps({outcome.run: outcome.win_rates for outcome in outcomes}, indent=2) + "\n", "utf-8")
    report = ["report", *(f"{folder}/benchmark/{name}" for name in ("base", *arguments.runs)), "--overwrite"]
    title = "AI feedback: a good judge, people, and judges that know too little"
    subprocess.run(
        [sys.executable, "-m", "diffusion_feedback", *report, "--title", title, "--output", f"{folder}/report.html"],
        check=True,
    )
    print("\nwin rates against the base with 95 % intervals, by judge")
    print("\n".join(map(str, outcomes)))
    print(f"{(time.monotonic() - start) / 60:.0f} minutes; open {folder / 'report.html'}")


if __name__ == "__main__":
    main()
