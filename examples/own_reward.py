"""Rewards of one's own: plain functions, named on the command line, in recipes and in Python. Larger is better.

    dfb score out/images --scorer function=examples/own_reward.py:brightness --output scores.parquet
    dfb judge a.jsonl b.jsonl --judge function=examples/own_reward.py:brevity --output_dir runs/judged
    dfb train --config recipe.yaml --rollouts.reward function=examples/own_reward.py:brevity

    import diffusion_feedback as dfb
    dfb.score("out/images", scorers=[brightness])

A function's file is hashed: scores of an older version of it are computed again, never taken from the cache, and a run
does not go on under another version.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageStat


def brightness(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    """Mean luminance of each RGB image, in [0, 1]; one number for each, in order."""
    return [ImageStat.Stat(image.convert("L")).mean[0] / 255 for image in images]


def brevity(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Minus the number of words of each completion."""
    return [-float(len(text.split())) for text in completions]
