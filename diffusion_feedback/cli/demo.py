"""``dfb demo``: the whole story on the embedded model, from samples through Diffusion-DPO to a verified report."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..documents import read_object
from ..errors import UserError
from ..folders import hold_folder
from .flags import Flags

if TYPE_CHECKING:
    from PIL import Image

    from ..config import Recipe
    from ..evaluation.comparison import Comparison
    from ..reports.pages.demo import Judged

EPILOG = """examples:
  dfb demo
  dfb demo --seed 1 --output_dir runs/demo-seed1
  dfb demo --ai_feedback

Takes a few minutes on two CPU cores, with --ai_feedback half as much again. The folder holds report.html (open it),
results.json, the tuned model under dpo/, the baseline under sft/, and all images under samples/; with --ai_feedback also
the model tuned on the embedded scorer's labels of the same pairs, under ai/. Run the same command again to go on after an interruption.
"""
AI_PAIRS = "ai_pairs.parquet"
TIE_MARGIN = 0.02  # verified scores closer than this count as a tie; scores lie in [0, 1]
SCORER = "assets/shapes-scorer"
METHODS = {"dpo": "shapes_dpo_lora", "ai": "shapes_ai_dpo_lora", "sft": "shapes_sft_lora"}
"""The runs of the demo and their recipes: people's labels, the embedded scorer's labels, chosen images alone."""


def build_parser() -> argparse.ArgumentParser:
    """All flags of the command."""
    parser = Flags(
        prog="dfb demo",
        description="Beat the embedded Stable Diffusion by its own Diffusion-DPO fine-tune, and prove it.",
        epilog=EPILOG,
    )
    parser.add_argument("--output_dir", "--output-dir", default="runs/demo", help="folder to write (default runs/demo)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training runs (default 0)")
    parser.add_argument("--num_prompts", "--num-prompts", type=int, default=336, help="held-out prompts (default 336)")
    parser.add_argument(
        "--ai_feedback",
        "--ai-feedback",
        action="store_true",
        help="tune a third model on the embedded scorer's labels in place of the annotator's",
    )
    parser.add_argument("--overwrite", action="store_true", help="start over, even where the folder holds a demo")
    parser.add_argument("--configs", default="configs", help="folder of the recipes (default configs)")
    parser.add_argument("--prompts", default="assets/prompts/heldout.txt", help="held-out captions of the Shapes world")
    return parser


def run(argv: Sequence[str]) -> None:
    """Run the story as ``argv`` says. Raises UserError where the embedded assets are missing."""
    arguments = build_parser().parse_args(argv)
    if not Path(arguments.prompts).is_file():
        raise UserError(f"{arguments.prompts}: no such file", "run from the root of a clone, which holds assets/")
    if arguments.num_prompts < 1 or arguments.seed < 0:
        raise UserError(
            f"--num_prompts {arguments.num_prompts}, --seed {arguments.seed}", "allowed: 1 or more, 0 or more"
        )
    folder = Path(arguments.output_dir)
    own = {"samples", "cache", "stages.json", "results.json", "report.html", "README.md", "before_after.png", AI_PAIRS}
    with hold_folder(folder, "dfb demo"):
        if others := sorted(path.name for path in folder.glob("[!.]*") if path.name not in {*own, *METHODS}):
            raise UserError(f"{folder}: is there and holds {others[0]}", "choose another output_dir")
        Story(arguments).tell()


class Story:
    """The demo's stages; each is resumable, and its time is kept in stages.json when it is done."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from ..config import load_recipe
        from ..prompts import read_prompts

        self.folder = Path(arguments.output_dir)
        if arguments.overwrite:
            for name in ("samples", *METHODS):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            for name in ("stages.json", AI_PAIRS):
                (self.folder / name).unlink(missing_ok=True)
        self.prompts = [record.prompt for record in read_prompts(arguments.prompts)][: arguments.num_prompts]
        self.seed = arguments.seed
        self.recipes: dict[str, Recipe] = {}
        self.methods = [method for method in METHODS if method != "ai" or arguments.ai_feedback]
        for method in self.methods:
            config = Path(arguments.configs) / f"{METHODS[method]}.yaml"
            own = {
                "output_dir": self.folder / method,
                "training.seed": self.seed,
                "data.cache_dir": self.folder / "cache",
            }
            if method == "ai":
                own["data.train"] = self.folder / AI_PAIRS
            self.recipes[method] = load_recipe(config, own)

    @contextmanager
    def _stage(self, name: str, title: str) -> Iterator[None]:
        """Announce a stage, and keep its time when it is done; a stage done before keeps its first time."""
        print(f"\n== {title}", flush=True)
        start = time.monotonic()
        yield
        from ..records import atomic_write

        stages = {name: round(time.monotonic() - start, 1), **self._stages()}
        with atomic_write(self.folder / "stages.json") as file:
            file.write_text(json.dumps(stages, indent=2) + "\n", "utf-8")

    def _stages(self) -> dict[str, float]:
        path = self.folder / "stages.json"
        if not path.exists():
            return {}
        remedy = "remove the file: only the times of the stages are lost"
        stages = read_object(path, remedy)
        if not all(isinstance(seconds, int | float) for seconds in stages.values()):
            raise UserError(f"{path}: damaged: holds something else than seconds", remedy)
        return stages

    def tell(self) -> None:
        """Sample, tune, sample again, judge, report."""
        from ..workflows.training.run import train

        judged: dict[str, Judged] = {}
        with self._stage("sample base", f"base model, {len(self.prompts)} held-out prompts"):
            judged["base"] = self._sample("base", None)
        if "ai" in self.methods:
            with self._stage("label", "the embedded scorer labels the training pairs anew"):
                self._label()
        for method in self.methods:
            recipe = self.recipes[method]
            steps, size = recipe.training.max_train_steps, recipe.training.train_batch_size
            with self._stage(f"train {method}", f"{method}: {steps} steps of {size} pairs"):
                train(recipe, resume=(self.folder / method / "recipe.yaml").exists())
            with self._stage(f"sample {method}", f"{method}: the same prompts and seeds"):
                judged[method] = self._sample(method, str(self.folder / method))
        with self._stage("report", "judging by the exact verifier"):
            comparisons = {method: self._compare(judged["base"], judged[method]) for method in self.methods}
        seconds = sum(self._stages().values())
        self._write(judged, comparisons, seconds)

    def _label(self) -> None:
        """The training pairs under the scorer's labels, in place of the annotator's."""
        from ..data.image_sets import open_images
        from ..labeling.panel import LabelPolicy
        from ..workflows.labeling import write_relabelled
        from ..workflows.scoring import add_scoring_flags, score_items

        output = self.folder / AI_PAIRS
        if output.exists():
            return
        parser = Flags()
        add_scoring_flags(parser)
        flags = ["--scorer", f"pickscore={SCORER}", "--cache_dir", str(self.folder / "cache"), "--batch_size", "64"]
        items = open_images(self.recipes["dpo"].data.train)
        records = score_items(items, parser.parse_args(flags))
        print(write_relabelled(items, items, records, LabelPolicy(), None, output))

    def _sample(self, name: str, lora: str | None) -> Judged:
        from ..catalog import resolve
        from ..generation import generate, load_generated, own_noise
        from ..reports.pages.demo import Judged
        from ..scorers.shapes import parse_caption, read_scene

        recipe = self.recipes["dpo"]
        denoiser = resolve("family", recipe.model.family)(recipe.model.pretrained_model_name_or_path)
        if lora:
            denoiser.load_lora(lora)
        validation = recipe.validation
        settings = {"num_inference_steps": validation.num_inference_steps, "guidance_scale": validation.guidance_scale}
        folder = self.folder / "samples" / name
        generate(
            self.prompts,
            [validation.seed],
            folder,
            sampler=own_noise(lambda prompts, seeds: denoiser.sample(denoiser.network, prompts, seeds, **settings)),
            model_hash=denoiser.model_hash(),
            settings={**settings, "noise": "by prompt and seed"},
            batch_size=32,
        )
        paths = [path for _, path in load_generated(folder)]
        readings = [read_scene(_open(path)) for path in paths]
        targets = [parse_caption(prompt) for prompt in self.prompts]
        correct = [reading.correct(target) for reading, target in zip(readings, targets, strict=True)]
        return Judged(
            paths,
            [reading.score(target) for reading, target in zip(readings, targets, strict=True)],
            [sum(found.values()) / len(found) for found in correct],
            [reading.cleanliness for reading in readings],
        )

    def _compare(self, before: Judged, after: Judged) -> Comparison:
        from ..evaluation.comparison import compare

        return compare(self.prompts, before.scores, after.scores, tie_margin=TIE_MARGIN)

    def _write(self, judged: dict[str, Judged], comparisons: dict[str, Comparison], seconds: float) -> None:
        from ..records import atomic_write
        from ..reports.pages.demo import write_demo_report

        results = summary(judged, comparisons, seconds)
        with atomic_write(self.folder / "results.json") as file:
            file.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
        write_demo_report(self.folder, self.recipes, judged, comparisons, results)
        print(
            f"\nDiffusion-DPO against the base: win rate {results['win_rate']:.3f} "
            f"(95 % interval {results['win_rate_low']:.3f} to {results['win_rate_high']:.3f}, "
            f"{results['ties']} ties, {results['num_prompts']} held-out prompts)\n"
            f"attribute accuracy {results['attribute_accuracy_before']:.3f} -> {results['attribute_accuracy_after']:.3f}, "
            f"cleanliness {results['cleanliness_before']:.3f} -> {results['cleanliness_after']:.3f}\n"
            + (f"on the embedded scorer's labels: win rate {results['ai_win_rate']:.3f}\n" if "ai" in judged else "")
            + f"SFT on the chosen images: win rate {results['sft_win_rate']:.3f}\n"
            f"{seconds:.0f} seconds; open {self.folder / 'report.html'}"
        )


def _open(path: Path) -> Image.Image:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def summary(judged: dict[str, Judged], comparisons: dict[str, Comparison], seconds: float) -> dict[str, Any]:
    """The figures of results.json."""
    won, sft = comparisons["dpo"].win_rate, comparisons["sft"].win_rate
    ai: dict[str, Any] = {}
    if "ai" in comparisons:
        rate = comparisons["ai"].win_rate
        ai = {
            "ai_win_rate": rate.win_rate,
            "ai_win_rate_low": rate.low,
            "ai_win_rate_high": rate.high,
            "ai_attribute_accuracy": _mean(judged["ai"].attributes),
            "ai_cleanliness": _mean(judged["ai"].cleanliness),
        }
    return {
        "win_rate": won.win_rate,
        "win_rate_low": won.low,
        "win_rate_high": won.high,
        "wins": won.wins,
        "ties": won.ties,
        "losses": won.losses,
        "p_value": won.p_value,
        "num_prompts": won.num,
        "attribute_accuracy_before": _mean(judged["base"].attributes),
        "attribute_accuracy_after": _mean(judged["dpo"].attributes),
        "cleanliness_before": _mean(judged["base"].cleanliness),
        "cleanliness_after": _mean(judged["dpo"].cleanliness),
        "score_before": _mean(judged["base"].scores),
        "score_after": _mean(judged["dpo"].scores),
        **ai,
        "sft_win_rate": sft.win_rate,
        "sft_win_rate_low": sft.low,
        "sft_win_rate_high": sft.high,
        "sft_attribute_accuracy": _mean(judged["sft"].attributes),
        "sft_cleanliness": _mean(judged["sft"].cleanliness),
        "seconds": seconds,
    }
