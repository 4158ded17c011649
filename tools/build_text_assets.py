"""Builds the embedded language model and its preference data under assets/, the text side of the Shapes world.

    python tools/build_text_assets.py

The model (a small Llama) imitates the captions of the mixture; the pairs are completions of its own, labelled by a
Bradley-Terry annotator over the exact verifier. Resumable: run the same command again. Seeds are fixed; on another CPU or
thread count the floating-point rounding, and so the weights, differ.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pretrain_text
import torch
from image_world import split_scenes
from text_world import TEXT_MIXTURE, prompt_of

from diffusion_feedback.models.causal_lm import CausalLM, load
from diffusion_feedback.records import atomic_write
from diffusion_feedback.shapes.captions import reward

STEPS = 600
TRAIN_SAMPLES, HELDOUT_SAMPLES = 16, 4  # completions per prompt
TEMPERATURE = 0.15  # of the annotator, as for the pictures
MAX_NEW_TOKENS = 24


def draw(model: CausalLM, prompts: Sequence[str], count: int, seed: int) -> dict[str, list[str]]:
    """``count`` completions of the model's own for each prompt."""
    groups: dict[str, list[str]] = {}
    for number, prompt in enumerate(prompts):
        seeds = [int(np.random.default_rng([seed, number, sample]).integers(2**31)) for sample in range(count)]
        ids = model.tokenizer(prompt).input_ids
        drawn = model.sample(model.network, [ids] * count, seeds, max_new_tokens=MAX_NEW_TOKENS)
        groups[prompt] = [model.tokenizer.decode(completion, skip_special_tokens=True) for completion in drawn]
    return groups


def label(groups: dict[str, list[str]], seed: int) -> list[dict[str, object]]:
    """Pair the best with the worst, the second best with the second worst, ..., and ask the annotator.

    Completions that are the same are not paired, and a pair is used once. The annotator prefers the first with probability
    sigmoid((score_0 - score_1) / TEMPERATURE) (Bradley-Terry).
    """
    rows: list[dict[str, object]] = []
    for number, (prompt, completions) in enumerate(groups.items()):
        rng = np.random.default_rng([seed, 13, number])
        scores = np.array(reward([prompt] * len(completions), completions))
        order = np.argsort(-scores, kind="stable")
        seen: set[frozenset[str]] = set()
        for better, worse in zip(order[: len(order) // 2], order[::-1], strict=False):
            texts = frozenset((completions[better], completions[worse]))
            if len(texts) == 1 or texts in seen:
                continue
            seen.add(texts)
            chance = 1 / (1 + np.exp(-(scores[better] - scores[worse]) / TEMPERATURE))
            chosen, rejected = (better, worse) if rng.random() < chance else (worse, better)
            row = {"prompt": prompt, "chosen": completions[chosen], "rejected": completions[rejected]}
            verified = {"verified_chosen": float(scores[chosen]), "verified_rejected": float(scores[rejected])}
            rows.append(row | verified)
    return rows


def facts_of(part: str, rows: Sequence[dict[str, object]], groups: dict[str, list[str]]) -> dict[str, float]:
    """Counts, label noise and mean score of one part."""
    differences = np.array([float(str(r["verified_chosen"])) - float(str(r["verified_rejected"])) for r in rows])
    scores = [score for prompt, texts in groups.items() for score in reward([prompt] * len(texts), texts)]
    return {
        f"text_{part}_pairs": len(rows),
        f"text_{part}_label_noise": round(float(np.mean(differences[differences != 0] < 0)), 4),
        f"text_{part}_mean_score": round(float(np.mean(scores)), 4),
    }


def main() -> None:
    """Parse arguments and build model and data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=Path(__file__).parent.parent / "assets")
    parser.add_argument("--work", type=Path, default=Path("build/assets"), help="checkpoints")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    network, tokenizer = pretrain_text.train(arguments.work / "captions-lm.pt", steps=STEPS)
    target = arguments.assets / "captions-lm"
    shutil.rmtree(target, ignore_errors=True)
    network.save_pretrained(target)
    tokenizer.save_pretrained(target)
    model = load(str(target))
    facts: dict[str, float] = {f"text_mixture_{name}": share for name, share in TEXT_MIXTURE.items()}
    for part, scenes, count, seed in zip(
        ("train", "validation"), split_scenes(), (TRAIN_SAMPLES, HELDOUT_SAMPLES), (0, 1), strict=True
    ):
        groups = draw(model, [prompt_of(scene) for scene in scenes], count, seed)
        rows = label(groups, seed)
        with atomic_write(arguments.assets / "captions" / f"{part}.jsonl") as file:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        facts |= facts_of(part, rows, groups)
    path = arguments.assets / "facts.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | facts, indent=2) + "\n", "utf-8")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
