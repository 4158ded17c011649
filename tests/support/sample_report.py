"""A report with every part filled, of pictures and numbers made up here."""

from __future__ import annotations

import io
import math
import random

from PIL import Image, ImageDraw

from diffusion_feedback.evaluation.statistics import Interval, WinRate
from diffusion_feedback.reports.content import Case, Group, Metric, Rate, Report
from diffusion_feedback.reports.figures import CurveFigure

HOSTILE = '<script>document.title="broken"</script><img src="http://example.com/x.png"> & "quotes" \'too\''


def picture(seed: int, side: int = 64, *, is_noisy: bool = False) -> Image.Image:
    """A disc on a plain ground, noisy on demand."""
    source = random.Random(seed)
    colors = ["#d62828", "#f48c1e", "#f2de3c", "#28a046", "#2850d2", "#8c3cb4", "#f5f5f5", "#161616"]
    ground, ink = source.sample(colors, 2)
    image = Image.new("RGB", (side, side), ground)
    radius = source.uniform(0.15, 0.33) * side
    middle = side / 2
    ImageDraw.Draw(image).ellipse((middle - radius, middle - radius, middle + radius, middle + radius), fill=ink)
    if is_noisy:
        noise = Image.frombytes("L", (side, side), source.randbytes(side * side)).convert("RGB")
        image = Image.blend(image, noise, 0.4)
    return image


def encoded(image: Image.Image, image_format: str) -> bytes:
    """The bytes of ``image`` as a file."""
    file = io.BytesIO()
    image.save(file, format=image_format)
    return file.getvalue()


def _cases(first: int, deltas: list[float]) -> list[Case]:
    cases = []
    for number, delta in enumerate(deltas, start=first):
        after = min(0.95, 0.55 + delta / 2)
        before, tuned = picture(number, is_noisy=delta > 0), picture(number, is_noisy=delta < 0)
        prompt = f"a small red circle on a {['blue', 'white', 'black'][number % 3]} background"
        cases.append(Case(prompt, encoded(before, "PNG"), encoded(tuned, "JPEG"), after - delta, after, seed=number))
    return cases


def _walk(start: float, slope: float, noise: float, num: int = 240) -> list[tuple[int, float]]:
    source = random.Random(f"{start} {slope}")
    return [(step * 1200 // num, start + slope * math.sqrt(step / num) + source.gauss(0, noise)) for step in range(num)]


def curves() -> list[CurveFigure]:
    """Loss, accuracy, errors and margin of a made-up run."""
    accuracy = {"training": _walk(0.5, 0.22, 0.06), "held out": _walk(0.5, 0.18, 0.01, num=13)}
    errors = {"chosen": _walk(0.0, 0.002, 0.0006), "rejected": _walk(0.0, 0.006, 0.0007)}
    return [
        CurveFigure("Loss", {"loss": _walk(0.693, -0.12, 0.03)}, "Starts at ln 2, dashed.", reference=math.log(2)),
        CurveFigure("Implicit accuracy", accuracy, "Share of pairs ranked as labelled.", reference=0.5),
        CurveFigure("Denoising error against the reference", errors, "Rejected should rise, chosen stay low."),
        CurveFigure("Reward margin", {"margin": _walk(0.0, 0.8, 0.1)}, "Chosen minus rejected."),
    ]


def won(rate: float, low: float, high: float) -> WinRate:
    """A win rate of 512 comparisons, 48 of them ties."""
    return WinRate(rate, low, high, round(512 * rate) - 24, 48, 512 - 24 - round(512 * rate), 512, 3.1e-13)


def bounds(low: float, high: float) -> Interval:
    """A change between these."""
    return Interval((low + high) / 2, low, high, 512)


def full_report(prompt: str = "a small red circle on a blue background") -> Report:
    """Every part of a report; ``prompt`` stands in one of the cases."""
    best = _cases(0, [0.62, 0.55, 0.51])
    best[1] = Case(prompt, picture(9, 512), picture(10, 512), 0.31, 0.86, seed=7)
    return Report(
        title="Diffusion-DPO on Shapes",
        summary="A small Stable Diffusion, tuned on 4 000 preference pairs, against the model it started from.",
        headline=Rate("DPO", won(0.684, 0.645, 0.721), "judged by the exact verifier"),
        facts={"Base": "shapes-sd", "Objective": "DPO, beta 5000", "Steps": "1 200", "Trained for": "38 min"},
        metrics=[
            Metric("All attributes right", 0.412, 0.633, bounds(0.175, 0.268), is_share=True),
            Metric("Cleanliness", 0.534, 0.782, bounds(0.221, 0.276), detail="1 is the ideal scene"),
            Metric("Diversity", 0.3312, 0.3101, bounds(-0.041, 0.001), detail="distance between seeds"),
            Metric("Denoising error on real images", 0.1021, 0.1043, bounds(0.0012, 0.0031), higher_is_better=False),
        ],
        methods=[
            Rate("Diffusion-DPO", won(0.684, 0.645, 0.721), "beta 5000"),
            Rate("SFT on chosen", won(0.571, 0.529, 0.612), "same steps"),
            Rate("Robust DPO", won(0.507, 0.464, 0.55)),
            Rate("DPO, labels swapped", won(0.302, 0.265, 0.343)),
        ],
        score_name="verifier's score, 0 to 1",
        cases=[
            Group("Best", best, "where the score rose most"),
            Group("Median", _cases(20, [0.12, 0.1, 0.0])),
            Group("Worst", _cases(30, [-0.08, -0.21, -0.34]), "where it fell most"),
        ],
        curves=curves(),
        recipe="model:\n  family: sd\nobjective:\n  name: dpo\n  beta: 5000\ntraining:\n  max_train_steps: 1200\n",
        environment={"Python": "3.12.4", "torch": "2.15.0", "Device": "8 cores", "Seed": "0"},
        notes=[("Verifier", "Reads colour, shape, size and background back from the pixels.")],
    )
