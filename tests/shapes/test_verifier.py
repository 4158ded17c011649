"""The exact verifier against pictures of known attributes; the renderer shares no geometry code with it."""

from __future__ import annotations

import numpy as np
import pytest
from image_world import MIXTURE, all_scenes, degrade, exact_scores, miscaption, mixture_sample, render, split_scenes
from PIL import Image, ImageFilter

from diffusion_feedback.shapes.scenes import ATTRIBUTES, Scene, parse_caption
from diffusion_feedback.shapes.verifier import read_scene

SCENES = all_scenes()


def pictures(count: int, seed: int) -> list[tuple[Scene, Image.Image]]:
    rng = np.random.default_rng(seed)
    scenes = [SCENES[int(rng.integers(len(SCENES)))] for _ in range(count)]
    return [(scene, render(scene, rng)) for scene in scenes]


def test_reads_clean_pictures() -> None:
    """At least 99 % of the pictures have all four attributes right, and look clean; every scene of the world once."""
    rng = np.random.default_rng(1)
    readings = [(scene, read_scene(render(scene, rng))) for scene in SCENES]
    right = [all(reading.correct(scene).values()) for scene, reading in readings]
    assert np.mean(right) >= 0.99
    assert np.mean([reading.cleanliness > 0.8 for _, reading in readings]) >= 0.99


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_fails_on_wrong_captions(attribute: str) -> None:
    """A caption that is wrong in one attribute is caught in that attribute, and scores lower."""
    rng = np.random.default_rng(2)
    caught = []
    for scene, image in pictures(150, 3):
        wrong = scene
        while getattr(wrong, attribute) == getattr(scene, attribute):
            wrong = miscaption(scene, rng)
        reading = read_scene(image)
        verdict = reading.correct(wrong)
        caught.append(
            not verdict.pop(attribute) and all(verdict.values()) and reading.score(wrong) < reading.score(scene)
        )
    assert np.mean(caught) >= 0.99


@pytest.mark.parametrize("flaw", [kind for kind in MIXTURE if kind != "clean"])
def test_flaws_cost_cleanliness(flaw: str) -> None:
    rng = np.random.default_rng(4)
    lost = [read_scene(i).cleanliness - read_scene(degrade(i, flaw, rng)).cleanliness for _, i in pictures(150, 5)]
    assert np.mean(np.array(lost) > 0) >= 0.99
    assert np.median(lost) > 0.2


def test_cleanliness_falls_with_blur() -> None:
    scene = Scene("large", "red", "star", "white")
    image = render(scene, np.random.default_rng(6))
    seen = [read_scene(image.filter(ImageFilter.GaussianBlur(radius))).cleanliness for radius in (0, 1, 2, 3, 4)]
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_sees_nothing_in_a_plain_picture(level: int) -> None:
    reading = read_scene(Image.new("RGB", (64, 64), (level, level, level)))
    assert (reading.scene.shape, reading.scene.size, reading.cleanliness) == ("unknown", "unknown", 0.0)


def test_sees_nothing_in_noise() -> None:
    noise = np.random.default_rng(7).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    readings = [read_scene(Image.fromarray(pixels)) for pixels in noise]
    assert np.mean([reading.scene.shape == "unknown" or reading.cleanliness < 0.3 for reading in readings]) == 1


def test_larger_pictures_are_judged_alike() -> None:
    for scene, image in pictures(20, 8):
        large = image.resize((256, 256), Image.Resampling.NEAREST)
        assert read_scene(large) == read_scene(image)
        assert all(read_scene(large).correct(scene).values())


def test_score_is_half_accuracy_half_cleanliness() -> None:
    (scene, image), (other, _) = pictures(2, 9)
    reading = read_scene(image)
    right = sum(getattr(scene, name) == getattr(other, name) for name in ATTRIBUTES)
    expected = [0.5 + 0.5 * reading.cleanliness, 0.5 * right / 4 + 0.5 * reading.cleanliness]
    assert exact_scores([image, image], [scene.caption, other.caption]).tolist() == pytest.approx(expected)


def test_captions_read_back() -> None:
    assert all(parse_caption(scene.caption) == scene for scene in SCENES)


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("two cats", "'two cats'"),
        ("a small mauve circle on a red background", "unknown color 'mauve'"),
        ("a small red blob on a blue background", "unknown shape 'blob'"),
        ("a huge red circle on a blue background", "unknown size 'huge'"),
        ("a small red circle on a mauve background", "unknown background 'mauve'"),
    ],
)
def test_foreign_captions_are_named(caption: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_caption(caption)


def test_the_mixture_is_what_it_says() -> None:
    samples = [mixture_sample(index) for index in range(600)]
    for kind, share in MIXTURE.items():
        assert abs(np.mean([found == kind for _, _, found in samples]) - share) < 0.06
    clean = [(parse_caption(caption), read_scene(image)) for image, caption, kind in samples if kind == "clean"]
    wrong = np.mean([not all(reading.correct(scene).values()) for scene, reading in clean])
    assert 0.13 < wrong < 0.27
    again, caption, kind = mixture_sample(17)
    assert (again.tobytes(), caption, kind) == (samples[17][0].tobytes(), *samples[17][1:])


def test_the_split_parts_the_world() -> None:
    train, heldout = split_scenes()
    assert len(train) == len(heldout) == len(SCENES) // 2
    assert {*train, *heldout} == {*SCENES}
