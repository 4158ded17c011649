"""A user's whole day with `dfb`, command by command, on the embedded world: no dead end, no traceback.

    python -m experiments.users_day                     # all jobs, about 15 minutes on two CPU cores
    python -m experiments.users_day --jobs A C          # some of them

    A  own images in pairs and a csv of votes -> viewed, audited, trained on
    B  a base model and prompts -> generated, scored, labelled, tuned, benchmarked against the base, reported
    C  training, Ctrl-C, resumed, lengthened with another learning rate, branched, compared, followed in TensorBoard
    D  the result in plain diffusers, and in the forms of peft, kohya, ComfyUI, merged and as a single file
    E  texts: SFT, DPO, judged, exported
    F  the same from Python: three images, an own reward, an own Dataset
    G  pairs viewed and audited before anyone votes on them
    H  SDXL and families to come: what a dry run says without weights
    I  a benchmark on own images, and on own prompts

Every command, its exit code, its time and its closing line are printed and written to OUTPUT_DIR/walk.md. A command that
ends otherwise than expected, or prints a traceback, ends the walk with exit code 1.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from diffusion_feedback.records import atomic_write

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"
MODEL, SCORER, LANGUAGE_MODEL = ASSETS / "shapes-sd", ASSETS / "shapes-scorer", ASSETS / "captions-lm"
CHEAP = ("--num_inference_steps", "4", "--guidance_scale", "2")
SHORT = ("--max_train_steps", "12", "--train_batch_size", "4", "--validation.num_prompts", "2")


@dataclass
class Walk:
    """The folder that the walk happens in, and what was seen."""

    folder: Path
    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Print ``line`` and keep it for walk.md."""
        print(line, flush=True)
        self.lines.append(line)

    def judge(self, shown: str, output: str, code: int, seconds: float, expected: int, says: str) -> None:
        """Note one command: it fails on another exit code, a traceback, or without what it should say."""
        closing = next((line for line in reversed(output.splitlines()) if line.strip()), "")
        self.say(f"$ {shown}\n    exit {code}, {seconds:.0f} s: {closing.strip()[:200]}")
        faults = [] if code == expected else [f"exit {code} in place of {expected}"]
        faults += ["a traceback"] if "Traceback (most recent call last)" in output else []
        faults += [] if re.search(says, output) else [f"does not say {says!r}"]
        if faults:
            self.failures.append(f"{shown}: {', '.join(faults)}")
            self.say("    FAILED: " + ", ".join(faults) + "\n" + "\n".join(output.splitlines()[-15:]))

    def run(self, *command: object, expected: int = 0, says: str = "", interrupt_at: str = "") -> str:
        """Run ``dfb`` with ``command`` in the folder; Ctrl-C is pressed when a line matches ``interrupt_at``."""
        words = [str(word) for word in command]
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "diffusion_feedback", *words],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        output = ""
        for line in process.stdout:
            output += line
            if interrupt_at and re.search(interrupt_at, line):
                process.send_signal(signal.SIGINT)
                interrupt_at = ""
        code = process.wait()
        self.judge(f"dfb {self.short(words)}", output, code, time.monotonic() - start, expected, says)
        return output

    def python(self, program: str, says: str = "") -> None:
        """Run a program in the folder, as a user would from a notebook."""
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=self.folder, capture_output=True, text=True, check=False
        )
        shown = "python: " + "; ".join(line for line in program.strip().splitlines() if not line.startswith(" "))[:300]
        self.judge(shown, done.stdout + done.stderr, done.returncode, time.monotonic() - start, 0, says)

    def short(self, words: Sequence[str]) -> str:
        """``words`` as one would type them in the repository."""
        return shlex.join(words).replace(str(ROOT) + "/", "")


def prepare(folder: Path) -> None:
    """Write what a user brings: images in pairs with a csv of votes, prompts, texts, and an own reward."""
    rows = pq.read_table(ASSETS / "pairs" / "validation-00000.parquet").slice(0, 60).to_pylist()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    heldout_pairs = pq.read_table(ASSETS / "pairs" / "validation-00000.parquet").slice(300, 24)
    pq.write_table(heldout_pairs, folder / "heldout.parquet")
    with atomic_write(folder / "votes.csv") as file, file.open("w", newline="", encoding="utf-8") as opened:
        votes = csv.writer(opened)
        votes.writerow(["user_id", "prompt", "image_a", "image_b", "vote"])
        for number, row in enumerate(rows):
            names = [f"images/{number:03d}-{side}.jpg" for side in "ab"]
            for name, column in zip(names, ("jpg_0", "jpg_1"), strict=True):
                (folder / name).write_bytes(row[column])
            vote = "a" if row["label_0"] > 0.5 else "b"
            votes.writerow(["anna", row["caption"], *names, vote])
            votes.writerow(["ben", row["caption"], *names, "tie" if number % 10 == 0 else vote])
            votes.writerow(["carla", row["caption"], *names, "both_bad" if number % 20 == 0 else "ab"[number % 2]])
    heldout = (ASSETS / "prompts" / "heldout.txt").read_text("utf-8").splitlines()
    (folder / "prompts.txt").write_text("\n".join(heldout[:8]) + "\n", "utf-8")
    for name, lines in (("train", 200), ("validation", 40)):
        texts = (ASSETS / "captions" / f"{name}.jsonl").read_text("utf-8").splitlines()[:lines]
        (folder / f"{name}.jsonl").write_text("\n".join(texts) + "\n", "utf-8")
    reward = (
        "def brightness(images, prompts):\n    return [sum(image.convert('L').getdata()) / 1e6 for image in images]\n"
    )
    (folder / "my_reward.py").write_text(reward, "utf-8")


def image_run(walk: Walk, output: str, *more: object, **how: object) -> str:
    """A short LoRA run on the embedded model."""
    recipe = ROOT / "configs" / "shapes_dpo_lora.yaml"
    common = ("--pretrained_model_name_or_path", MODEL, "--cache_dir", "cache", "--output_dir", output)
    heldout = ("--data.validation", "heldout.parquet", "--validation.num_inference_steps", 4)
    return walk.run("train", "--config", recipe, *common, *heldout, *more, **how)  # type: ignore[arg-type]


PAIRS = ("--data.train", ASSETS / "pairs" / "train-00000.parquet")


def own_votes(walk: Walk) -> None:
    """A: own images in pairs and a csv of votes into training."""
    walk.run("data", "check", "votes.csv", says="annotator")
    walk.run("data", "view", "votes.csv", "--output", "a/sheet.html", says="sheet.html")
    walk.run("data", "audit", "votes.csv", "--output", "a/audit.html", says="label")
    walk.run("data", "convert", "votes.csv", "a/pairs.parquet", says="pairs")
    image_run(walk, "a/run", "--data.train", "votes.csv", *SHORT, says="report.html")


def tune_and_prove(walk: Walk) -> None:
    """B: generate, score, label, tune, generate again, benchmark, report."""
    prompts = ("--prompts", "prompts.txt")
    walk.run("generate", MODEL, *prompts, "--seeds", 0, 1, 2, 3, *CHEAP, "--output_dir", "b/images")
    walk.run("score", "b/images", "--scorer", f"pickscore={SCORER}", "shapes", "--output", "b/scores.parquet")
    walk.run("label", "b/images", "--scorer", f"pickscore={SCORER}", "--output", "b/pairs.parquet")
    image_run(walk, "b/run", "--data.train", "b/pairs.parquet", *SHORT)
    walk.run("generate", "b/run", *prompts, "--seeds", 0, 1, 2, 3, *CHEAP, "--output_dir", "b/tuned")
    judged = (*prompts, "--scorer", f"pickscore={SCORER}", *CHEAP)
    walk.run("benchmark", "prompts", "--model", MODEL, *judged, "--output_dir", "b/bench-base")
    tuned = ("--model", "b/run", *judged, "--baseline", "b/bench-base", "--output_dir", "b/bench-tuned")
    walk.run("benchmark", "prompts", *tuned, says="labelled")
    walk.run("report", "b/bench-base", "b/bench-tuned", "--output", "b/report.html")


def steer(walk: Walk) -> None:
    """C: Ctrl-C, resume, lengthen, another learning rate, branch, compare, follow."""
    run = (*PAIRS, "--train_batch_size", 4, "--validation.num_prompts", 2, "--validation.steps", 6)
    image_run(walk, "c/run", *run, "--max_train_steps", 400, expected=130, interrupt_at="step", says="--resume")
    image_run(walk, "c/short", *run, "--max_train_steps", 6, "--checkpointing_steps", 3, "--report_to", "tensorboard")
    longer = ("--max_train_steps", 12, "--learning_rate", "5e-5", "--resume")
    image_run(
        walk, "c/short", *run, "--checkpointing_steps", 3, "--report_to", "tensorboard", *longer, says="learning_rate"
    )
    image_run(walk, "c/short", *run, *longer, "--model.lora_rank", 4, expected=2, says="init_from")
    image_run(walk, "c/branch", *run, "--max_train_steps", 6, "--init_from", "c/short@6")
    walk.run("generate", "c/short@6", "--prompts", "prompts.txt", *CHEAP, "--output_dir", "c/images")
    walk.run("report", "c/short", "c/branch", "--output", "c/compared.html")
    walk.python(
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator as E; import pathlib\n"
        "events = [E(str(p.parent)).Reload().Tags() for p in pathlib.Path('c/short').rglob('events.out*')]\n"
        "print(sum(len(e['scalars']) for e in events), 'scalars,', sum(len(e['images']) for e in events), 'images')",
        says=r"[1-9]\d* scalars, [1-9]\d* images",
    )


def give_away(walk: Walk) -> None:
    """D: the result elsewhere."""
    image_run(walk, "d/run", *PAIRS, *SHORT)
    walk.python(
        "import torch; from diffusers import DiffusionPipeline\n"
        f"pipeline = DiffusionPipeline.from_pretrained({str(MODEL)!r}, dtype=torch.float32)\n"
        "pipeline.load_lora_weights('d/run'); print(pipeline.get_active_adapters())",
        says="default",
    )
    for name in ("diffusers", "peft", "kohya", "comfyui", "merged", "single_file"):
        walk.run("export", "d/run", "--format", name, "--output", f"d/{name}", says="error")
    walk.run("push", "d/run", "me/my-lora", "--dry_run", says="pytorch_lora_weights")


def texts(walk: Walk) -> None:
    """E: SFT, DPO and a judge on own texts."""
    data = ("--data.train", "train.jsonl", "--data.validation", "validation.jsonl", "--max_train_steps", 12)
    model = ("--pretrained_model_name_or_path", LANGUAGE_MODEL)
    for name in ("sft", "dpo"):
        recipe = ROOT / "configs" / f"captions_{name}_lora.yaml"
        walk.run("train", "--config", recipe, *data, *model, "--output_dir", f"e/{name}", says="report.html")
    judge = ("--judge", "function=diffusion_feedback.shapes.captions:reward", "--max_new_tokens", 24)
    walk.run(
        "judge", "e/dpo", "e/sft", "--prompts", "validation.jsonl", *judge, "--output_dir", "e/judged", says="win rate"
    )
    for name in ("peft", "merged"):
        walk.run("export", "e/dpo", "--format", name, "--output", f"e/{name}", says="error")


def from_python(walk: Walk) -> None:
    """F: three images, an own reward, an own Dataset."""
    walk.run(
        "score", "images", "--scorer", "my_reward.py:brightness", "--prompt", "a circle", "--output", "f/scores.csv"
    )
    walk.python(
        "import diffusion_feedback as dfb; from PIL import Image; from pathlib import Path\n"
        "images = [Image.open(path) for path in sorted(Path('images').iterdir())[:3]]\n"
        "mine = dfb.scorer_from(lambda images, prompts: [float(image.size[0]) for image in images], name='width')\n"
        f"print(dfb.score(images, ['a circle'] * 3, scorers=['pickscore={SCORER}', mine]).column_names)",
        says="score",
    )
    walk.python(
        "import diffusion_feedback as dfb; from datasets import Dataset\n"
        "from diffusers import StableDiffusionPipeline as Pipeline; import torch\n"
        f"pairs = Dataset.from_parquet({str(PAIRS[1])!r}).select(range(40))\n"
        f"recipe = dfb.load_recipe({str(ROOT / 'configs' / 'shapes_dpo_lora.yaml')!r}, {{'output_dir': 'f/run', "
        "'training.max_train_steps': 4, 'training.train_batch_size': 4, 'data.validation': None, 'data.cache_dir': 'cache'})\n"
        f"pipeline = Pipeline.from_pretrained({str(MODEL)!r}, dtype=torch.float32)\n"
        "run = dfb.train(recipe, model=pipeline, train_data=pairs); print(run)",
        says="f/run",
    )


def look_first(walk: Walk) -> None:
    """G: pairs viewed and audited before anyone votes on them."""
    walk.run("data", "view", PAIRS[1], "--count", 40, "--output", "g/sheet.html", says="sheet.html")
    walk.run("data", "audit", PAIRS[1], "--output", "g/audit.html", says="label")


def big_models(walk: Walk) -> None:
    """H: what a dry run says of SDXL without its weights, and of families that are not there."""
    recipe = ROOT / "configs" / "sdxl_dpo_lora_24gb.yaml"
    walk.run("train", "--config", recipe, *PAIRS, "--dry_run", "--output_dir", "h/sdxl", says="GiB")
    walk.run("train", "--config", recipe, *PAIRS, "--family", "flux", "--dry_run", expected=2, says="known")


def benchmarks(walk: Walk) -> None:
    """I: the HPSv2 benchmark on own images, and own prompts named as what they are."""
    walk.run("generate", MODEL, "--prompts", "prompts.txt", *CHEAP, "--output_dir", "i/images")
    # As the field keeps them: a list of prompts per style, and images by their numbers.
    (walk.folder / "i/set/photo").mkdir(parents=True)
    prompts = (walk.folder / "prompts.txt").read_text("utf-8").splitlines()
    (walk.folder / "photo.json").write_text(json.dumps(prompts), "utf-8")
    for number in range(len(prompts)):
        shutil.copy(walk.folder / f"i/images/images/{number:05d}-s0.png", walk.folder / f"i/set/photo/{number:05d}.png")
    judged = ("--scorer", f"pickscore={SCORER}", "--output_dir")
    walk.run("benchmark", "hpsv2", "--images", "i/set", "--prompts", "photo.json", "--allow_short", *judged, "i/hpsv2")
    walk.run("benchmark", "prompts", "--images", "i/images", "--prompts", "prompts.txt", *judged, "i/own")


JOBS: dict[str, Callable[[Walk], None]] = {
    "A": own_votes,
    "B": tune_and_prove,
    "C": steer,
    "D": give_away,
    "E": texts,
    "F": from_python,
    "G": look_first,
    "H": big_models,
    "I": benchmarks,
}


def main() -> int:
    """Walk the jobs that are named; 0 where every command ended as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/users_day"), help="a new folder")
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True)
    walk = Walk(arguments.output_dir.resolve())
    prepare(walk.folder)
    for name in arguments.jobs:
        walk.say(f"\n## {name}: {(JOBS[name].__doc__ or '').split(': ', 1)[1]}\n")
        JOBS[name](walk)
    walk.say(f"\n{len(walk.failures)} of the commands failed" + "".join(f"\n  {line}" for line in walk.failures))
    with atomic_write(walk.folder / "walk.md") as file:
        file.write_text("\n".join(walk.lines) + "\n", "utf-8")
    return 1 if walk.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
