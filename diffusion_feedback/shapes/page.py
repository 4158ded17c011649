"""What the demo shows: report.html, README.md and the before/after picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Resampling

from ..config.recipe import to_yaml
from ..documents import read_text
from ..evaluation.comparison import CaseRow, Comparison
from ..evaluation.statistics import mean_interval
from ..records import atomic_write, parse_json
from ..reports.content import Case, Metric, Rate, Report
from ..reports.figures import CurveFigure, image_grid
from ..reports.pages.folder import read_environment, write_pages
from ..reports.results import case_groups
from .result import Demo, VerifiedImages, average

_CASES = 6  # fills rows of two
_METHODS = {
    "dpo": ("Diffusion-DPO", "on the annotator's labels"),
    "ai": ("Diffusion-DPO, AI feedback", "on the embedded scorer's labels"),
    "sft": ("SFT", "on the chosen images, same steps and batch"),
}
_AGAIN = "start the demo over, with `overwrite`"


def write_demo_pages(demo: Demo) -> None:
    """Write report.html, README.md and before_after.png into the demo's folder."""
    recipe = demo.recipes["dpo"]
    comparison, before, after = demo.comparisons["dpo"], demo.images["base"], demo.images["dpo"]

    def case_of(row: CaseRow) -> Case:
        images = before.images[row.index], after.images[row.index]
        return Case(row.prompt, *images, row.before, row.after, recipe.validation.seed)

    report = Report(
        title="Diffusion-DPO on the embedded Stable Diffusion",
        summary=(
            "A small Stable Diffusion imitates a web in small: wrong captions, noise, blur, faded colours. Its own images "
            "were ranked in pairs, and Diffusion-DPO learnt from the pairs. An exact verifier, which reads size, colour, "
            "shape, background and cleanliness back from the pixels, judges prompts that no pair was made of."
        ),
        after_name="Diffusion-DPO",
        headline=Rate("Diffusion-DPO", comparison.win_rate),
        facts={
            "held-out prompts": str(comparison.win_rate.num),
            "training pairs per step": str(recipe.training.train_batch_size),
            "steps": str(recipe.training.max_train_steps),
            "seed": str(recipe.training.seed),
            "time": f"{demo.seconds / 60:.1f} min",
        },
        metrics=[
            _metric("attribute accuracy", before.attributes, after.attributes, "size, colour, shape, background"),
            _metric("cleanliness", before.cleanliness, after.cleanliness, "closeness to the ideal scene"),
            _metric("verified score", before.scores, after.scores, "half accuracy, half cleanliness"),
        ],
        methods=[
            Rate(name, demo.comparisons[method].win_rate, detail)
            for method, (name, detail) in _METHODS.items()
            if method in demo.comparisons
        ],
        score_name="verified score",
        cases=case_groups(comparison.rows, min(_CASES, len(comparison.rows) // 3), case_of),
        curves=_curves(demo.folder),
        recipe=to_yaml(recipe),
        environment=read_environment(demo.folder / "dpo", _AGAIN),
    )
    write_pages(report, "demo", demo.folder)
    _before_after(demo.folder, comparison, before, after)


def _metric(label: str, before: Sequence[float], after: Sequence[float], detail: str) -> Metric:
    bounds = mean_interval([b - a for a, b in zip(before, after, strict=True)])
    return Metric(label, average(before), average(after), bounds, is_share=True, detail=detail)


def _curves(folder: Path) -> list[CurveFigure]:
    path = folder / "dpo" / "metrics.jsonl"
    lines = read_text(path, _AGAIN).splitlines()
    every = [parse_json(line, f"{path}, line {number}", _AGAIN) for number, line in enumerate(lines, 1)]
    rows = [row for row in every if isinstance(row, dict) and "loss" in row]

    def series(name: str) -> list[tuple[float, float]]:
        values = [(float(row["step"]), float(row[name])) for row in rows]
        # The mean over ten steps: one step's batch is small, and its noise would hide the course.
        window = 10
        parts = [values[max(0, end - window) : end] for end in range(window, len(values) + 1, 2)] or [values]
        return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]

    mean = "Mean over ten steps."
    return [
        CurveFigure(
            "Loss", {"loss": series("loss")}, f"{mean} Dashed: ln 2, where training starts.", reference=0.693147
        ),
        CurveFigure(
            "Error of chosen and of rejected images, change against the base",
            {"chosen": series("error/chosen_change"), "rejected": series("error/rejected_change")},
            f"{mean} The rejected error should rise and the chosen one stay.",
            reference=0.0,
        ),
        CurveFigure("Implicit accuracy", {"accuracy": series("rewards/accuracies")}, mean, reference=0.5),
        CurveFigure("Reward margin", {"margin": series("rewards/margins")}, mean, reference=0.0),
    ]


def _before_after(folder: Path, comparison: Comparison, before: VerifiedImages, after: VerifiedImages) -> None:
    """Twelve prompts in the order of the prompt file, so that nobody picked them."""
    rows = sorted(comparison.rows, key=lambda row: row.index)[:12]
    images = [[before.images[row.index], after.images[row.index]] for row in rows]
    captions, titles = [row.prompt for row in rows], ["base", "Diffusion-DPO"]
    grid = image_grid(images, captions, titles, cell=104, blocks=4, resample=Resampling.NEAREST)
    with atomic_write(folder / "before_after.png") as file:
        grid.save(file, format="PNG")
