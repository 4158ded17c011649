"""Draws depend on (seed, draw, pair id) and on nothing else."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import kstest

from diffusion_feedback.likelihoods.draws import PairDraw, draw_noise, draw_pair


def test_same_counters_give_the_same_draw() -> None:
    assert draw_pair(1, 2, "a") == draw_pair(1, 2, "a")


def test_every_counter_matters() -> None:
    draws = {
        draw_pair(1, 2, "a"),
        draw_pair(2, 2, "a"),
        draw_pair(1, 3, "a"),
        draw_pair(1, 2, "b"),
        draw_pair(12, 2, "a"),
    }
    assert len(draws) == 5


def test_known_values_stay() -> None:
    """A change here changes every run: recorded once, from the definition."""
    assert draw_pair(0, 0, "pair") == PairDraw(
        timestep=0.028674646808244608,
        flip=0.002664662773550819,
        crop_x=0.6913222818211234,
        crop_y=0.5076744431654948,
        dropout=0.7917714061155184,
        noise_key=8669693164241612183,
    )


def test_uniforms_are_uniform_and_apart() -> None:
    draws = [draw_pair(0, 0, f"pair {i}") for i in range(4000)]
    columns = np.array([[d.timestep, d.flip, d.crop_x, d.crop_y, d.dropout] for d in draws])
    for column in columns.T:
        assert kstest(column, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(columns.T) - np.eye(5)
    assert np.abs(correlation).max() < 0.06


def test_noise_does_not_depend_on_the_batch() -> None:
    draws = [draw_pair(0, 0, f"pair {i}") for i in range(6)]
    together = draw_noise(draws, (4, 8, 8))
    for index, draw in enumerate(draws):
        assert torch.equal(draw_noise([draw], (4, 8, 8))[0], together[index])
    assert torch.equal(draw_noise(draws[::-1], (4, 8, 8)).flip(0), together)
    assert kstest(together.flatten().numpy(), "norm").pvalue > 1e-3
