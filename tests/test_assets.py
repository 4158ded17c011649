"""The committed embedded world: what its card says is what the files hold."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from build_assets import label_groups, label_noise
from image_world import degrade, exact_scores, render, split_scenes
from PIL import Image
from text_world import prompt_of

from diffusion_feedback.models.causal_lm import load
from diffusion_feedback.records import content_hash
from diffusion_feedback.scorers.loading import load_scorers
from diffusion_feedback.shapes.captions import reward
from diffusion_feedback.shapes.scenes import Scene

ASSETS = Path(__file__).resolve().parent.parent / "assets"
FACTS = json.loads((ASSETS / "facts.json").read_text())


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[dict[str, object]]]:
    parts = ("train", "validation")
    return {part: pq.read_table(ASSETS / "pairs" / f"{part}-00000.parquet").to_pylist() for part in parts}


def test_numbers(pairs: dict[str, list[dict[str, object]]]) -> None:
    assert len(pairs["train"]) == FACTS["train_pairs"] >= 2000
    assert len(pairs["validation"]) == FACTS["validation_pairs"] >= 400
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) < 40_000_000


def test_heldout_prompts_are_held_out(pairs: dict[str, list[dict[str, object]]]) -> None:
    train, heldout = ({scene.caption for scene in scenes} for scenes in split_scenes())
    assert {row["caption"] for row in pairs["train"]} == train
    assert {row["caption"] for row in pairs["validation"]} == heldout
    assert set((ASSETS / "prompts" / "heldout.txt").read_text().splitlines()) == heldout
    assert not train & heldout


def test_every_image_stands_in_one_pair(pairs: dict[str, list[dict[str, object]]]) -> None:
    hashes = [content_hash(row[side]) for row in pairs["train"] for side in ("jpg_0", "jpg_1")]  # type: ignore[arg-type]
    assert len(set(hashes)) > 0.999 * len(hashes)


def test_labels_and_their_noise(pairs: dict[str, list[dict[str, object]]]) -> None:
    """The stored scores are the verifier's (up to JPEG), and the labels go against them as often as the card says."""
    rows = pairs["train"]
    sample = rows[::40]
    for side in ("0", "1"):
        images = [Image.open(io.BytesIO(row[f"jpg_{side}"])) for row in sample]  # type: ignore[arg-type]
        again = exact_scores(images, [str(row["caption"]) for row in sample])
        stored = np.array([row[f"score_{side}"] for row in sample], float)
        assert np.mean(np.abs(again - stored) < 0.15) > 0.9
    differences = np.array([row["score_0"] - row["score_1"] for row in rows])  # type: ignore[operator]
    labels = np.array([row["label_0"] for row in rows])
    decided = differences != 0
    noise = np.mean((differences > 0)[decided] != (labels > 0.5)[decided])
    assert noise == pytest.approx(FACTS["train_label_noise"], abs=1e-3)
    assert 0.05 < noise < 0.3


def test_the_annotator_pairs_best_with_worst() -> None:
    scene = split_scenes()[0][0]
    rng = np.random.default_rng(0)
    images = [render(scene, rng) for _ in range(3)] + [degrade(render(scene, rng), "noisy", rng) for _ in range(3)]
    groups = {scene.caption: images}
    found, scores = label_groups(groups, seed=0)
    again, _ = label_groups(groups, seed=0)
    assert [pair.example_id for pair in found] == [pair.example_id for pair in again]
    assert len(found) == 3
    spread = [abs(first - second) for first, second in zip(scores["score_0"], scores["score_1"], strict=True)]
    assert spread == sorted(spread, reverse=True)
    assert 0 <= label_noise(found, scores) <= 1


def agreement(folder: Path, rows: list[dict[str, object]]) -> tuple[float, float]:
    """How often the scorer in ``folder`` prefers what was chosen, and the negative log-likelihood of the choices."""
    (scorer,) = load_scorers([f"pickscore={folder}"])
    margins = []
    for start in range(0, len(rows), 96):
        part = rows[start : start + 96]
        images = [Image.open(io.BytesIO(row[side])) for side in ("jpg_0", "jpg_1") for row in part]  # type: ignore[arg-type]
        first, second = np.split(scorer.score(images, [str(row["caption"]) for row in part] * 2).double().numpy(), 2)
        sides = np.array([1 if row["label_0"] == 1 else -1 for row in part])
        margins.append(sides * (first - second))
    margin = np.concatenate(margins)
    return float(np.mean(margin > 0)), float(np.mean(np.logaddexp(0, -margin)))


@pytest.mark.slow
def test_the_scorer_judges_as_its_card_says(pairs: dict[str, list[dict[str, object]]]) -> None:
    rows = pairs["validation"]
    accuracy, loss = agreement(ASSETS / "shapes-scorer", rows)
    assert accuracy == pytest.approx(FACTS["scorer_validation_accuracy"], abs=2 / len(rows))
    assert loss == pytest.approx(FACTS["scorer_validation_loss"], abs=1e-3)
    assert 0.74 <= accuracy < 1 - FACTS["validation_label_noise"] + 0.03
    base, _ = agreement(ASSETS / "shapes-clip", rows[::3])
    assert base == pytest.approx(FACTS["scorer_base_validation_accuracy"], abs=0.07)
    assert FACTS["scorer_base_validation_accuracy"] < accuracy - 0.05


def test_the_scorer_is_small_and_says_nothing_of_where_it_was_made() -> None:
    files = [file for name in ("shapes-clip", "shapes-scorer") for file in (ASSETS / name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 7_000_000
    for file in files:
        assert file.suffix == ".safetensors" or "name_or_path" not in file.read_text()
        if file.name == "config.json":
            assert json.loads(file.read_text())["dtype"] == "float16"


# --- captions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "scenes"), list(zip(("train", "validation"), split_scenes(), strict=True)))
def test_captions_and_their_labels(part: str, scenes: list[Scene]) -> None:
    """Prompts are of their part alone, the stored scores are the verifier's, and the labels err as the card says."""
    rows = [json.loads(line) for line in (ASSETS / "captions" / f"{part}.jsonl").read_text().splitlines()]
    assert len(rows) == FACTS[f"text_{part}_pairs"] > 500
    assert {row["prompt"] for row in rows} <= {prompt_of(scene) for scene in scenes}
    for side in ("chosen", "rejected"):
        assert reward([r["prompt"] for r in rows], [r[side] for r in rows]) == [r[f"verified_{side}"] for r in rows]
    differences = np.array([row["verified_chosen"] - row["verified_rejected"] for row in rows])
    assert np.mean(differences[differences != 0] < 0) == pytest.approx(FACTS[f"text_{part}_label_noise"], abs=1e-4)
    sets = {(row["prompt"], frozenset((row["chosen"], row["rejected"]))) for row in rows}
    assert len(sets) == len(rows)
    assert all(row["chosen"] != row["rejected"] for row in rows)


def test_the_language_model_imitates_the_mixture() -> None:
    """Fresh completions of held-out prompts score as the card says."""
    model = load(str(ASSETS / "captions-lm"))
    prompts = [prompt_of(scene) for scene in split_scenes()[1]]
    ids = [model.tokenizer(prompt).input_ids for prompt in prompts]
    drawn = model.sample(model.network, ids, range(len(ids)), max_new_tokens=24)
    completions = [model.tokenizer.decode(completion, skip_special_tokens=True) for completion in drawn]
    assert np.mean(reward(prompts, completions)) == pytest.approx(FACTS["text_validation_mean_score"], abs=0.06)
    assert all(completion[-1] == model.tokenizer.eos_token_id for completion in drawn)
