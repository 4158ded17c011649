"""One tiny run of every kind, through the command line alone, and what of its files is recorded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from golden.inputs import ASSETS, LANGUAGE_MODEL, SCORER, write_recipe
from golden.snapshot import snapshot

from diffusion_feedback.cli.main import main

Section = dict[str, Any]
# Runs the command into a folder that is not there yet; the inputs are only read.
Cell = Callable[[Path, Path], None]

IMAGE_PROMPTS = ["a large red circle on a purple background", "a large red star on a blue background"]
TEXT_PROMPTS = [
    "size: small\ncolor: red\nshape: triangle\nbackground: orange\ncaption:",
    "size: large\ncolor: white\nshape: star\nbackground: purple\ncaption:",
]
LORA: Section = {"tuning": "lora", "lora_rank": 2}
FULL: Section = {"tuning": "full"}


def _run(*argv: str | Path) -> None:
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is not None:  # accelerate keeps one state a process
        accelerate.AcceleratorState._reset_state(reset_partial_state=True)
    code = main([str(word) for word in argv])
    assert code == 0, f"dfb {argv[0]} ended with {code}"


def _training(steps: int = 20, batch: int = 4, rate: float = 1e-3, **more: Any) -> Section:
    common = {"seed": 0, "max_train_steps": steps, "train_batch_size": batch, "learning_rate": rate}
    return {"training": {**common, "checkpointing_steps": steps, **more}}


def _image_run(family: str, model: Section, objective: Section, **sections: Section) -> Cell:
    def run(inputs: Path, folder: Path) -> None:
        base: Section = {
            "model": {"pretrained_model_name_or_path": str(inputs / family), "family": family, **model},
            "data": {
                "train": str(inputs / "train.parquet"),
                "validation": str(inputs / "validation.parquet"),
                "cache_dir": str(folder.with_name("cache")),
                "resolution": 16,
            },
            "objective": objective,
            "output_dir": str(folder),
            "validation": {"prompts": IMAGE_PROMPTS, "num_inference_steps": 2, "steps": 10},
        }
        recipe = write_recipe(folder.with_suffix(".yaml"), base, _training(), sections)
        _run("train", "--config", recipe)

    return run


def _scorer_run(inputs: Path, folder: Path) -> None:
    base: Section = {
        "model": {"pretrained_model_name_or_path": str(inputs / "clip"), "family": "clip", **FULL},
        "data": {
            "train": str(inputs / "train.parquet"),
            "validation": str(inputs / "validation.parquet"),
            "cache_dir": str(folder.with_name("cache")),
        },
        "objective": {"name": "pickscore"},
        "output_dir": str(folder),
        "validation": {"steps": 10},
    }
    changes = _training(ema_decay=0.9, lr_scheduler="cosine", lr_warmup_steps=3)
    _run("train", "--config", write_recipe(folder.with_suffix(".yaml"), base, changes))


def _text_run(
    model: Section,
    objective: Section,
    *,
    train_file: str = "train.jsonl",
    heldout_file: str = "validation.jsonl",
    **more: Any,
) -> Cell:
    def run(inputs: Path, folder: Path) -> None:
        base: Section = {
            "model": {"pretrained_model_name_or_path": str(LANGUAGE_MODEL), "family": "causal_lm", **model},
            "data": {
                "train": str(inputs / train_file),
                "validation": str(inputs / heldout_file),
                "cache_dir": str(folder.with_name("cache")),
            },
            "objective": objective,
            "output_dir": str(folder),
            "validation": {"steps": 10},
        }
        sections = {name: _in(inputs, values) for name, values in more.items()}
        recipe = write_recipe(folder.with_suffix(".yaml"), base, _training(), sections)
        _run("train", "--config", recipe)

    return run


def _in(inputs: Path, values: Section) -> Section:
    """``values`` with the folder of the inputs where they say ``{inputs}``."""
    return {k: v.replace("{inputs}", str(inputs)) if isinstance(v, str) else v for k, v in values.items()}


ROLLOUTS: Section = {
    "reward": "function={inputs}/rewards.py:of_length", "max_new_tokens": 6, "batch_size": 16, "num_prompts": 4,
    "num_generations": 4, "num_ppo_epochs": 2, "num_mini_batches": 2,
}  # fmt: skip
PTX: Section = {"ptx_data": "{inputs}/train.jsonl", "ptx_coef": 0.5, "ptx_batch_size": 2}
SAMPLED: Section = {"validation": {"steps": 10, "prompts": TEXT_PROMPTS}, "rollouts": {"max_new_tokens": 6}}
PROMPTS: Section = {"train_file": "train-prompts.jsonl", "heldout_file": "validation-prompts.jsonl"}
TRAJECTORIES: Section = {"train_file": "train-trajectories.jsonl", "heldout_file": "validation-trajectories.jsonl"}


def _rounds(inputs: Path, folder: Path, modality: Section, rounds: Section) -> None:
    base: Section = {
        "output_dir": str(folder),
        "objective": {"name": "dpo"},
        "data": {"cache_dir": str(folder.with_name("cache"))},
        "rounds": {"num_rounds": 2, "num_samples": 3, **rounds},
    }
    parts = (base, _training(4, 2, 1e-2), modality)
    _run("rounds", "--config", write_recipe(folder.with_suffix(".yaml"), *parts))


def _rounds_of_images(inputs: Path, folder: Path) -> None:
    modality: Section = {
        "model": {"pretrained_model_name_or_path": str(inputs / "sd"), "family": "sd", **LORA},
        "data": {"train": str(inputs / "prompts.txt")},
        "objective": {"beta": 500.0},
        "validation": {"num_prompts": 0, "num_inference_steps": 2},
    }
    heldout = {"heldout_prompts": str(inputs / "heldout.txt"), "num_heldout_samples": 2}
    _rounds(inputs, folder, modality, {"scorer": f"pickscore={SCORER}", "reference": "previous", **heldout})


def _rounds_of_texts(inputs: Path, folder: Path) -> None:
    modality: Section = {
        "model": {"pretrained_model_name_or_path": str(LANGUAGE_MODEL), "family": "causal_lm", **LORA},
        "data": {"train": str(inputs / "train-prompts.jsonl")},
        "objective": {"beta": 0.1},
        "validation": {"num_prompts": 0},
        "rollouts": _in(inputs, {"reward": ROLLOUTS["reward"], "max_new_tokens": 6, "batch_size": 16}),
    }
    heldout = {"heldout_prompts": str(inputs / "validation-prompts.jsonl"), "num_heldout_samples": 2}
    _rounds(inputs, folder, modality, {"num_prompts": 4, "num_heldout_prompts": 4, "rule": "all_pairs", **heldout})


def _score(inputs: Path, folder: Path) -> None:
    scorers = ("--scorer", "shapes", f"pickscore={SCORER}", "--cache_dir", folder.with_name("cache"))
    folder.mkdir()
    _run("score", inputs / "images", *scorers, "--output", folder / "scores.parquet")
    _run("score", inputs / "validation.parquet", *scorers, "--output", folder / "scores.csv")


def _label(inputs: Path, folder: Path) -> None:
    scorers = ("--scorer", "shapes", f"pickscore={SCORER}", "--cache_dir", folder.with_name("cache"))
    folder.mkdir()
    every = ("--rule", "all_pairs", "--ties", "soft", "--use", "pickscore", "--scores", folder / "scores.parquet")
    _run("score", inputs / "images", *scorers, "--output", folder / "scores.parquet")
    _run("label", inputs / "images", *every, "--output", folder / "soft.parquet")
    _run("label", inputs / "images", "--scorer", "shapes", *scorers[-2:], "--output", folder / "best_worst.parquet")
    vote = ("--ensemble", "vote", "--relabel", "--calibration", folder / "calibration" / "calibration.json")
    calibrate = ("--output_dir", folder / "calibration")
    _run("calibrate", inputs / "labelled.parquet", *scorers, *calibrate)
    _run("label", inputs / "validation.parquet", *scorers, *vote, "--output", folder / "relabelled.parquet")


def _benchmark(inputs: Path, folder: Path) -> None:
    common = ("--prompts", inputs / "captions.txt", "--allow_short", "--cache_dir", folder.with_name("cache"))
    folder.mkdir()
    given = ("--images", inputs / "images", "--scorer", "shapes", f"pickscore={SCORER}")
    _run("benchmark", "shapes", *common, *given, "--output_dir", folder / "given")
    model = ("--model", inputs / "sd", "--num_inference_steps", "2", "--seeds", "0", "1")
    scorers = ("--scorer", "shapes", f"pickscore={SCORER}")
    first = ("--output_dir", folder / "model", "--baseline", folder / "given")
    _run("benchmark", "shapes", *common, *model, *scorers, *first)


def _judge(inputs: Path, folder: Path) -> None:
    drawn = ("--num_samples", "2", "--max_new_tokens", "8", "--seed", "3")
    tuned = folder.with_name("tuned")
    _text_run(FULL, {"name": "sft"}, **_training(4))(inputs, tuned)
    _run(
        "judge", tuned, LANGUAGE_MODEL, "--prompts", inputs / "heldout.txt", "--texts", inputs / "validation.jsonl",
        "--reference", LANGUAGE_MODEL, "--judge", _in(inputs, ROLLOUTS)["reward"], *drawn, "--output_dir", folder,
    )  # fmt: skip


def _calibrate(inputs: Path, folder: Path) -> None:
    where = ("--cache_dir", folder.with_name("cache"), "--output_dir", folder)
    more = ("--tune", inputs / "validation.parquet", "--ceiling_scorer", "shapes", "--per_prompt")
    scorers = ("--scorer", "shapes", f"pickscore={SCORER}")
    _run("calibrate", inputs / "labelled.parquet", *scorers, *more, *where)


def _generate_images(inputs: Path, folder: Path) -> None:
    more = ("--num_inference_steps", "2", "--seeds", "0", "1", "--noise", "prompt", "--negative_prompt", "a hat")
    _run("generate", inputs / "sd", "--prompts", inputs / "prompts.txt", *more, "--output_dir", folder)


def _generate_texts(inputs: Path, folder: Path) -> None:
    more = ("--num_samples", "3", "--max_new_tokens", "8", "--top_k", "20", "--temperature", "0.9")
    _run("generate", LANGUAGE_MODEL, "--prompts", inputs / "prompts.txt", *more, "--output_dir", folder)


CELLS: dict[str, Cell] = {
    "image_dpo_lora": _image_run("sd", LORA, {"name": "dpo", "beta": 500}, training={"gradient_accumulation_steps": 2}),
    "image_dpo_full": _image_run("sd", FULL, {"name": "dpo", "beta": 500}, data={"random_flip": True}),
    "image_dpo_sdxl": _image_run("sdxl", LORA, {"name": "dpo", "beta": 500}, data={"caption_dropout": 0.2}),
    "image_sft": _image_run("sd", FULL, {"name": "sft"}, training={"ema_decay": 0.9}),
    "image_kto": _image_run("sd", LORA, {"name": "kto", "beta": 500}),
    "scorer_clip": _scorer_run,
    "text_sft": _text_run(LORA, {"name": "sft"}, **SAMPLED),
    "text_dpo_cached": _text_run(FULL, {"name": "dpo", "beta": 0.1}, text={"cache_reference": True}, **SAMPLED),
    "text_kto": _text_run(LORA, {"name": "kto", "beta": 0.1}),
    "reward_model": _text_run({"family": "reward_model", **FULL}, {"name": "bradley_terry"}),
    "ppo_ptx": _text_run(LORA, {"name": "ppo"}, rollouts={**ROLLOUTS, **PTX}, **_training(20, 8), **PROMPTS),
    "grpo": _text_run(LORA, {"name": "grpo"}, rollouts=ROLLOUTS, **_training(20, 8), **PROMPTS),
    "ilql": _text_run(FULL, {"name": "ilql", "target_alpha": 0.5, "target_sync_steps": 2}, **TRAJECTORIES),
    "rounds_images": _rounds_of_images,
    "rounds_texts": _rounds_of_texts,
    "score": _score,
    "label": _label,
    "benchmark": _benchmark,
    "judge": _judge,
    "calibrate": _calibrate,
    "generate_images": _generate_images,
    "generate_texts": _generate_texts,
}


def result_of(name: str, inputs: Path, folder: Path) -> dict[str, Any]:
    """Run the cell ``name`` into the new folder ``folder``, and return what it wrote as a snapshot."""
    CELLS[name](inputs, folder)
    places = {str(folder.parent): "<run>", str(inputs): "<inputs>", str(ASSETS): "<assets>"}
    return snapshot(folder, places)
