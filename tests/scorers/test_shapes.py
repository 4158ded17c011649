"""The exact verifier as a scorer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_world import all_scenes, exact_scores, render

from diffusion_feedback.errors import UserError
from diffusion_feedback.scorers.loading import load_scorer


def small(folder: Path) -> str:
    """Its spec: it has no weights."""
    return "shapes"


def test_scores_are_the_verifier_s() -> None:
    scenes = all_scenes()[::41]
    images = [render(scene, np.random.default_rng(number)) for number, scene in enumerate(scenes)]
    captions = [scene.caption for scene in scenes]
    swapped = captions[1:] + captions[:1]
    scorer = load_scorer("shapes")
    for prompts in (captions, swapped):
        assert scorer.score(images, prompts).tolist() == pytest.approx(exact_scores(images, prompts).tolist(), abs=1e-7)


def test_what_it_cannot_read_is_refused() -> None:
    with pytest.raises(UserError, match="got weights 'x.pt'"):
        load_scorer("shapes=x.pt")
    with pytest.raises(UserError, match="scorer shapes: "):
        load_scorer("shapes").score([render(all_scenes()[0], np.random.default_rng(0))], ["a cat"])
