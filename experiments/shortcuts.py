"""The shortcut audit on the embedded pairs, on shortcuts planted at a known strength, and on shuffled labels.

    python -m experiments.shortcuts

Planted: the saturation (or the size) of one image of each pair is changed, and that image is preferred with the given
probability. The strength must lie in the 95 % interval for about 95 of 100 plantings, and must always raise an alarm.
Shuffled: properties are measured once, and the labels are then drawn by a coin, prompt by prompt.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageEnhance

import diffusion_feedback as dfb
from diffusion_feedback.data.pickapic import write_pickapic
from diffusion_feedback.data.readers import open_pairs
from diffusion_feedback.evaluation.shortcuts import (
    FALSE_ALARMS,
    JOINT,
    ComparedPairs,
    find_shortcuts,
    holm,
    sign_flip_p_values,
)
from diffusion_feedback.evaluation.statistics import proportion_interval
from diffusion_feedback.records import PairRecord
from diffusion_feedback.workflows.measured_pairs import measure_images

PAIRS = Path(__file__).resolve().parent.parent / "assets" / "pairs"
Change = Callable[[Image.Image], Image.Image]


def more_saturated(image: Image.Image) -> Image.Image:
    """Colours 1.6 times as strong."""
    return ImageEnhance.Color(image).enhance(1.6)


def larger(image: Image.Image) -> Image.Image:
    """Five quarters as wide and high."""
    return image.resize((image.width * 5 // 4, image.height * 5 // 4), Image.Resampling.BICUBIC)


PLANTED: dict[str, Change] = {"saturation": more_saturated, "size": larger}


def plant(pairs: list[PairRecord], change: Change, strength: float, seed: int) -> list[PairRecord]:
    """Both images of each pair are made of its first one, so that nothing else differs; the changed one wins at ``strength``."""
    source, planted = np.random.default_rng(seed), []
    for pair in pairs:
        image = Image.open(io.BytesIO(pair.image_0)).convert("RGB")
        changed_first, changed_wins = source.random() < 0.5, source.random() < strength
        sides = [encoded(change(image)), encoded(image)]
        first, second = sides if changed_first else sides[::-1]
        planted.append(replace(pair, image_0=first, image_1=second, label_0=float(changed_first == changed_wins)))
    return planted


def encoded(image: Image.Image) -> bytes:
    """As a PNG."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def planted_labels(pairs: ComparedPairs, name: str, strength: float, seed: int) -> ComparedPairs:
    """Other labels for the same pairs: the side with more of the property ``name`` is preferred with probability ``strength``."""
    has_more = np.subtract(*pairs.numbers[name].T) > 0
    wins = np.random.default_rng(seed).random(len(has_more)) < strength
    return replace(pairs, first_preferred=has_more == wins)


def shuffled(pairs: ComparedPairs, seed: int) -> ComparedPairs:
    """Labels that follow from nothing: those of each prompt are exchanged, all or none, by a coin."""
    flips = np.random.default_rng(seed).random(int(pairs.codes.max()) + 1) < 0.5
    return replace(pairs, first_preferred=pairs.first_preferred ^ flips[pairs.codes])


def num_alarms(pairs: ComparedPairs) -> int:
    """How many properties, all together among them, would be reported."""
    columns = [*pairs.columns().values(), pairs.joint()]
    return sum(each < FALSE_ALARMS for each in holm(sign_flip_p_values(columns, pairs.first_preferred, pairs.codes)))


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shuffles", type=int, default=200)
    parser.add_argument("--plantings", type=int, default=40)
    given = parser.parse_args()

    print("embedded pairs")
    print(dfb.audit(PAIRS), end="\n\n")

    embedded = measure_images(PAIRS, 10**9).compared()
    records = list(open_pairs(PAIRS))
    for seed, (name, change) in enumerate(PLANTED.items()):
        for strength in (0.55, 0.69, 0.9):
            with TemporaryDirectory() as folder:
                write_pickapic(plant(records[:1500], change, strength, seed), Path(folder) / "planted.parquet")
                shortcuts = dfb.audit(Path(folder) / "planted.parquet").shortcuts
            share = next(each.accuracy for each in shortcuts if each.name == name)
            level = next(each.level for each in shortcuts if each.name == name)
            print(
                f"planted {name} at {strength:.0%}, in the images: found {share.value:.1%}, 95 % interval"
                f" {share.low:.1%} to {share.high:.1%}, {'holds' if share.low <= strength <= share.high else 'MISSES'} it; alarm: {level}"
            )
    for name, strength in (("saturation", 0.55), ("saturation", 0.69), ("saturation", 0.9), ("brightness", 0.69)):
        held = alarmed = 0
        for seed in range(given.plantings):
            measured = next(
                each for each in find_shortcuts(planted_labels(embedded, name, strength, seed)) if each.name == name
            )
            held += measured.accuracy.low <= strength <= measured.accuracy.high
            alarmed += measured.level != "none"
        print(
            f"planted {name} at {strength:.0%}, in the labels: in the interval {held} of {given.plantings}, alarm {alarmed}"
        )

    alarms = sum(num_alarms(shuffled(embedded, seed)) > 0 for seed in range(given.shuffles))
    rate = proportion_interval(alarms, given.shuffles)
    print(
        f"shuffled labels: {alarms} of {given.shuffles} raise an alarm, {rate.value:.1%} (95 % interval {rate.low:.1%} to"
        f" {rate.high:.1%}); stated: at most {FALSE_ALARMS:.0%} ({len(embedded.columns()) + 1} properties, {JOINT} among them)"
    )


if __name__ == "__main__":
    main()
